import json
from pathlib import Path

import pytest

from headshotkit.core.errors import TooFewPhotos
from headshotkit.core.records import Dataset, Lora, Reason, TrainingPhoto, Verdict, kept_photos
from headshotkit.photos.coverage import Axis, Coverage


def test_records_survive_json():
    photo = TrainingPhoto("a.png", "a.jpg", "photo of ohwx man", (768, 700), (0, 3), (1.0, 2.0, 3.0, 4.0))
    for record in (
        Verdict("a.jpg", False, (Reason("dark", 11.0, 30.0, "too dark"),), {"faces": 1}),
        Dataset(Path("."), "ohwx", "man", 128, (photo,), ("class/000.png",)),
        Lora(Path("person.safetensors"), "mini", 16, 16, "ohwx", "man", 400),
    ):
        assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_verdict_has_the_names_that_others_build_on():
    verdict = Verdict("a.jpg", False, (Reason("dark", 11.0, 30.0, "too dark"),), {}).to_dict()
    assert list(verdict) == ["photo", "kept", "reasons", "measures", "overruled"]
    assert list(verdict["reasons"][0]) == ["code", "value", "limit", "text"]


def test_too_few_photos_says_how_many_and_why():
    verdicts = [Verdict("a", True)] * 6 + [Verdict("b", False, (Reason("dark", 1, 2, ""),))] * 9
    with pytest.raises(TooFewPhotos, match=r"6 of 15 (.|\n)*10(.|\n)*9 dark"):
        kept_photos(verdicts, 10)
    with pytest.raises(TooFewPhotos, match="To take next: four photos"):
        kept_photos(verdicts, 10, "To take next: four photos.")
    with pytest.raises(TooFewPhotos) as error:
        kept_photos(verdicts, 10, "", "2 photos in 1 subfolder")
    assert "2 photos in 1 subfolder" in error.value.why and "JPEG" in error.value.next_step
    by_hand = [Verdict("c", True, (Reason("dark", 1, 2, ""),), {}, overridden=True)] * 3
    with pytest.raises(TooFewPhotos, match="3 of 3 .* 10"):
        kept_photos(by_hand, 10)
    assert len(kept_photos(verdicts, 6)) == 6


def test_a_field_may_have_another_key_in_files():
    shown = Coverage(3, 2, (Axis("pose", ("left", "front"), (1, 1), "left", 0.5),), ())
    values = shown.to_dict()
    assert values["moments"] == 2 and values["axes"][0]["moments"] == [1, 1] and "scenes" not in values
    assert Coverage.from_dict(values) == shown
    with pytest.raises(ValueError, match="moments"):
        Coverage.from_dict({name: value for name, value in values.items() if name != "moments"})
