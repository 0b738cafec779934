"""Manifests as records: what must be there, what may be missing, and what else stands in the file."""

import pytest

from headshotkit.core.errors import DamagedRun, StageMissing
from headshotkit.core.records import Dataset, Headshot, Lora, Photo, Pick, Verdict
from headshotkit.core.results import RESULTS, HeadshotsResult, PhotosResult
from headshotkit.core.run import COMMANDS, Run, write_json

SHOT = Headshot("a.png", "office", "", "", 1, 1, 1.0, 0.5, True)
PICK = Pick(6, 1.0, "person.safetensors", 2, 0.5, 0.5, 1.0)
REQUIRED = {
    "photos": {"verdicts": [Verdict("a.jpg", True), Verdict("b.jpg", False)],
               "photos": [Photo("a.jpg", 8, 8, "00"), Photo("b.jpg", 8, 8, "01")], "folder": "~/me", "advice": "none"},
    "dataset": {"dataset": Dataset(".", "ohwx", "man", 128, ())},
    "lora": {"lora": Lora("a.safetensors", "mini", 4, 4, "ohwx", "man", 1)},
    "picked": {"chosen": PICK, "candidates": [PICK]},
    "headshots": {"headshots": [SHOT], "delivered": ["a.png"], "pass_mark": {"mark": 0.4}},
    "restored": {"restored": [{"file": "a.png", "kept": "restored"}]},
    "report": {"metrics": {}},
    "gallery": {},
}  # fmt: skip
"""The least that each finished stage's manifest holds besides what all of them do."""


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def finished(folder, stage, **others):
    """A run with one finished stage, as an old version may have left it, and further keys in its manifest."""
    run = Run(folder)
    begun = run.begin(stage, {}, {})
    begun.finish("well", **{key: plain(value) for key, value in REQUIRED[stage].items()})
    manifest = {key: value for key, value in begun.manifest.items() if key not in ("files", "headshotkit")}
    write_json(run.path(stage) / "manifest.json", manifest | others)
    return run


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_least_that_a_manifest_holds_is_a_result_and_nothing_less(tmp_path, stage):
    run = finished(tmp_path, stage, unheard_of=[1])
    result, manifest = RESULTS[stage].load(run), run.peek(stage)
    assert (result.outcome, result.files, result.planned) == ("well", {}, ())
    for key in (*REQUIRED[stage], "outcome", "seconds", "finished", "inputs"):
        without = {one: value for one, value in manifest.items() if one != key}
        for damaged in (without, without | {key: None}, without | {key: [[3]]}):
            write_json(run.path(stage) / "manifest.json", damaged)
            with pytest.raises(DamagedRun):
                RESULTS[stage].load(run)
    write_json(run.path(stage) / "manifest.json", manifest)
    assert run.peek(stage)["unheard_of"] == [1]


@pytest.mark.parametrize(
    ("stage", "key"),
    [("photos", "left_out"), ("photos", "coverage"), ("photos", "requests"), ("dataset", "digests"),
     ("headshots", "missing"), ("headshots", "causes"), ("headshots", "few_steps"), ("headshots", "drawing_seconds"),
     ("restored", "missing"), ("picked", "pass_mark"), ("lora", "planned"), ("gallery", "files")],
)  # fmt: skip
def test_what_may_be_missing_has_its_type_if_it_is_there(tmp_path, stage, key):
    """A value of another type used to end in a traceback where it was read."""
    run = finished(tmp_path, stage)
    write_json(run.path(stage) / "manifest.json", run.peek(stage) | {key: [[3]]})
    with pytest.raises(DamagedRun):
        RESULTS[stage].load(run)


def test_an_unfinished_stage_is_no_result(tmp_path):
    run = Run(tmp_path)
    run.begin("headshots", {}, {})
    with pytest.raises(StageMissing):
        HeadshotsResult.load(run)
    assert "headshots" not in run.peek("headshots")


def test_what_is_read_most_is_a_property(tmp_path):
    photos = PhotosResult.load(finished(tmp_path / "a", "photos", coverage={"moments": 3}))
    assert [verdict.photo for verdict in photos.kept] == ["a.jpg"] and photos.scenes == 3
    generated = HeadshotsResult.load(finished(tmp_path / "b", "headshots"))
    assert generated.best == [SHOT] and generated.threshold.value == 0.4
