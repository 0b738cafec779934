"""Which photos are held out of training, and who uses them."""

import json
import shutil

import numpy as np
import pytest
from conftest import P1, open_picture

from headshotkit.config import CheckConfig, GenerateConfig, PrepareConfig, RunSettings
from headshotkit.core.records import Headshot, Pick, Verdict
from headshotkit.core.results import DatasetResult, PhotosResult
from headshotkit.core.run import Run, fingerprint, settings_of, write_json
from headshotkit.dataset.build import prepare_dataset
from headshotkit.dataset.held_out import hold_out, number_held_out
from headshotkit.generation.picking import _candidate, choose_pick
from headshotkit.photos.check import check_photos
from headshotkit.photos.coverage import FIXED, shown_by
from headshotkit.pipeline import do_stage
from headshotkit.scoring.identity import held_out_of, judge_headshot, known_person


def kept(number, **measures):
    """A verdict on a kept photo of its own scene, frontal, neutral, in soft light."""
    usual = {"moment": number, "yaw_deg": 0.0, "pitch_deg": 0.0, "smile": 0.0, "light_side": 0.0, "brightness": 120.0,
             "highlights": 220.0, "face_height": 0.45, "identity": 0.75, "quality": 0.9}  # fmt: skip
    return Verdict(f"{number:02}.jpg", True, measures=usual | measures)


@pytest.fixture(scope="module")
def with_unseen(prepared, tmp_path_factory) -> Run:
    """A run of the sample person, prepared as with SDXL: a few photos are held out; copy it, don't change it."""
    run = Run(shutil.copytree(prepared, tmp_path_factory.mktemp("unseen") / "run"))
    prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man", held_out="auto"))
    return run


def test_the_embedded_base_holds_none_out_unless_told_to(prepared):
    assert held_out_of(Run(prepared)) == () and PrepareConfig.for_base("sdxl").held_out == "auto"


def test_two_or_three_of_eight_and_more_are_held_out_of_training(with_unseen):
    result, photos = DatasetResult.load(with_unseen), PhotosResult.load(with_unseen).kept
    names = {verdict.photo for verdict in photos}
    assert len(names) == 17 and len(result.held_out) == 3 and {*result.held_out} < names
    assert {photo.photo for photo in result.dataset.photos} == names - {*result.held_out}
    assert all(name in result.outcome for name in result.held_out)
    assert [number_held_out(count) for count in (7, 8, 14, 15)] == [0, 2, 2, 3]


def test_the_training_keeps_every_pose_expression_light_and_framing(prepared):
    """What the photos show of the sample person, some of it only twice, is still there to be learnt."""
    photos = PhotosResult.load(Run(prepared)).kept
    for count in (1, 2, 3):
        held = hold_out(photos, count)
        trained = [shown for verdict, shown in zip(photos, shown_by(photos), strict=True) if verdict.photo not in held]
        for axis in FIXED:
            assert {shown[axis] for shown in trained} == {shown[axis] for shown in shown_by(photos)}


@pytest.mark.parametrize("only", [{"yaw_deg": 30.0}, {"smile": 1.0}, {"light_side": 0.4}, {"face_height": 0.7}])
def test_the_only_photo_of_its_kind_is_trained_on(only):
    photos = [kept(number) for number in range(9)]
    photos[4] = kept(4, **only, quality=1.0, identity=0.9)
    for count in (1, 2, 3):
        assert "04.jpg" not in hold_out(photos, count) and len(hold_out(photos, count)) == count
    in_scenes = [Verdict(v.photo, True, measures=v.measures | {"moment": n // 3 if n < 3 or n > 6 else n})
                 for n, v in enumerate(photos)]  # fmt: skip
    assert hold_out(in_scenes, 3) == ["03.jpg", "05.jpg", "06.jpg"] and "04.jpg" not in hold_out(in_scenes, 4)


def test_a_photo_with_a_near_duplicate_among_the_others_is_trained_on():
    photos = [kept(number, moment=number // 2 if number < 6 else number) for number in range(9)]
    assert hold_out(photos, 3) == ["06.jpg", "07.jpg", "08.jpg"]


def test_a_photo_that_is_not_typical_is_trained_on():
    """The least similar one and the least sharp one are no measure of how similar a headshot can be."""
    photos = [kept(number) for number in range(9)]
    photos[0], photos[1] = kept(0, identity=0.4), kept(1, quality=0.2)
    assert hold_out(photos, 3) == ["02.jpg", "03.jpg", "04.jpg"]


def test_photos_held_out_are_of_other_days_and_lights_and_a_photo_that_is_needed_is_none():
    days = ["2026-05-01"] * 4 + ["2026-06-01"] * 5
    photos = [kept(n, taken_at=f"{day}T10:0{n}:00", light_side=0.3 * (n % 4 == 3)) for n, day in enumerate(days)]
    first, second = hold_out(photos, 2)
    assert {days[int(name[:2])] for name in (first, second)} == {*days}
    assert first not in hold_out(photos, 2, needed=[first])
    assert hold_out(photos[::-1], 2) == [first, second]


def test_with_fewer_than_eight_none_is_held_out_and_that_is_said(three_photos, tmp_path):
    run = Run(shutil.copytree(three_photos, tmp_path / "run"))
    prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man", held_out="auto"))
    result = DatasetResult.load(run)
    assert result.held_out == () and "only 3 were kept, fewer than 8" in result.outcome
    assert held_out_of(run) == ()
    assert known_person(run, GenerateConfig.for_base("mini")).held_out is None


def test_a_person_decides_how_many_and_a_photo_with_an_edited_caption_is_trained_on(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in (2, 4, 5, 8, 9, 10, 12, 15):
        shutil.copy(P1 / f"p1_{number:02}.jpg", tmp_path / "photos")
    run = Run(tmp_path / "run")
    check_photos(tmp_path / "photos", run, CheckConfig(min_photos=3))
    config = PrepareConfig.for_base("mini", class_word="man", size_px=64, held_out="auto")
    prepare_dataset(run, config.replace(held_out=0))
    result = DatasetResult.load(run)
    assert result.held_out == () and "held_out" not in run.peek("dataset")["config"]
    (file,) = [photo.file for photo in result.dataset.photos if photo.photo == "p1_10.jpg"]
    prepare_dataset(run, config)
    assert "p1_10.jpg" in DatasetResult.load(run).held_out
    prepare_dataset(run, config.replace(held_out=0))
    (run.path("dataset") / file).with_suffix(".txt").write_text("photo of ohwx man in a red coat")
    prepare_dataset(run, config)
    result = DatasetResult.load(run)
    assert len(result.held_out) == 2 and "p1_10.jpg" not in result.held_out


def test_a_run_of_an_earlier_version_goes_on_as_it_began(three_photos, tmp_path):
    """It knows no held-out photos: its manifest lacks the setting and the names, and nothing is done again."""
    run = Run(shutil.copytree(three_photos, tmp_path / "run"))
    manifest = run.peek("dataset")
    old = {name: value for name, value in manifest["config"].items() if name != "held_out"}
    assert settings_of(PrepareConfig.from_dict(old)) == old and PrepareConfig.from_dict(old).held_out == 0
    del manifest["held_out"]
    manifest |= {"config": old, "fingerprint": fingerprint(old, manifest["inputs"])}
    write_json(run.path("dataset") / "manifest.json", manifest)
    assert do_stage("dataset", run, RunSettings()) == manifest and DatasetResult.load(run).held_out == ()
    assert not (run.folder / "earlier").exists()
    assert do_stage("dataset", run, RunSettings(held_out="auto"))["config"]["held_out"] == "auto"


def test_headshots_are_compared_with_photos_that_the_lora_never_saw(with_unseen):
    run, config = with_unseen, GenerateConfig.for_base("mini")
    person, held = known_person(run, config), held_out_of(run)
    own = [judge_headshot(np.asarray(open_picture(P1 / name)), person, config) for name in (held[0], "p1_09.jpg")]
    assert own[0].held_out > own[1].held_out > 0.5 and 0.5 < person.held_out_median < 1
    assert own[0].held_out > own[0].identity  # it is one of the three
    shot = Headshot("a.png", "a", "", "", 0, 1, 1.0, 0.7, True, held_out=own[1].held_out)
    assert Headshot.from_dict(json.loads(json.dumps(shot.to_dict()))) == shot


def test_a_candidate_is_chosen_by_its_likeness_to_photos_that_were_not_trained_on():
    """The second one learnt its photos by heart: it is more similar to all photos, and less to those held out."""
    shots = [Headshot("a.png", "a", "", "", 0, 1, 1.0, 0.7, True, likeness=0.9, held_out=value) for value in (0.3, 0.4)]
    assert (
        _candidate(shots, 100, 1.0, "a", 0.7).held_out == 0.5 and _candidate(shots, 100, 1.0, "a", 0.0).held_out is None
    )
    assert _candidate([Headshot("a.png", "a", "", "", 0, 1, 1.0, None, False)], 1, 1.0, "a", 0.7).held_out == 0
    first = Pick(100, 1.0, "a", 6, likeness=0.80, adherence=0.9, passed=1.0, held_out=0.75)
    second = Pick(200, 1.0, "b", 6, likeness=0.95, adherence=0.9, passed=1.0, held_out=0.65)
    assert choose_pick([first, second]) == first
    assert choose_pick([Pick.from_dict({**one.to_dict(), "held_out": None}) for one in (first, second)]).step == 200
