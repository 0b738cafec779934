"""The coach on staged sets: what it counts, which photos it chooses, what it asks for, word by word."""

import itertools
import json
import random
import re
import shutil

import numpy as np
import pytest
from conftest import P1, P2
from PIL import Image

from headshotkit.config import CheckConfig
from headshotkit.core.records import REASON_CODES, Reason, Verdict
from headshotkit.core.run import Run
from headshotkit.photos import coach, coverage, selection
from headshotkit.photos.check import check_photos

CONFIG = CheckConfig()
BLUE, RED, WHITE, GREY = [40, 5, -35], [45, 55, 35], [95, 0, 0], [60, 0, 0]
POSES = [(0, 0), (-30, 0), (30, 0), (0, 25)]


def photo(name, scene=None, **measures):
    """A kept photo: frontal, neutral, soft light, head and shoulders, blue top, plain white background."""
    usual = {
        "yaw_deg": 0, "pitch_deg": 0, "roll_deg": 0, "smile": 0.1, "light_side": 0, "brightness": 130, "clipped": 0,
        "highlights": 230, "face_height": 0.4, "backdrop_lab": WHITE, "backdrop_busy": 3, "clothes_lab": BLUE,
        "quality": 0.6, "identity": 0.7,
    }  # fmt: skip
    return Verdict(f"{name}.jpg", True, (), usual | measures | ({} if scene is None else {"moment": scene}))


def refused(name, code, **measures):
    return Verdict(f"{name}.jpg", False, (Reason(code, 1.0, 2.0, code),), measures)


def good_set(count=16):
    """Poses, expressions, light, clothes and backgrounds in turn."""
    return [
        photo(
            f"g{i:02d}", yaw_deg=POSES[i % 4][0], pitch_deg=POSES[i % 4][1], smile=0.9 if i // 4 % 2 else 0.1,
            clothes_lab=[BLUE, RED, GREY][i % 3], backdrop_lab=[WHITE, GREY][i // 3 % 2],
        )
        for i in range(count)
    ]  # fmt: skip


def asked(verdicts):
    return coach.requests(verdicts, coach.coverage(verdicts), CONFIG)


def figures(text: str) -> list[int]:
    """Return the numbers in a sentence, in its order."""
    return [int(number) for number in re.findall(r"\d+", text)]


def texts(verdicts):
    return [r.text for r in asked(verdicts)]


# --- what a set shows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axis, measures, value",
    [
        ("pose", {"yaw_deg": 14.9}, "front"),
        ("pose", {"yaw_deg": 15}, "right"),
        ("pose", {"yaw_deg": -15, "pitch_deg": 40}, "left"),
        ("pose", {"pitch_deg": -20}, "up or down"),
        ("expression", {"smile": 0.5}, "smiling"),
        ("expression", {"smile": 0.49}, "neutral"),
        ("light", {"light_side": 0.15}, "soft"),
        ("light", {"light_side": 0.16}, "from the right"),
        ("light", {"light_side": -0.16}, "from the left"),
        ("light", {"light_side": 0.5, "brightness": 84, "highlights": 169}, "dim or hard"),
        ("light", {"clipped": 0.16}, "dim or hard"),
        ("framing", {"face_height": 0.56}, "face fills the frame"),
        ("framing", {"face_height": 0.55}, "head and shoulders"),
        ("framing", {"face_height": 0.29}, "half body"),
        ("background", {"backdrop_busy": 6}, "plain white"),
        ("background", {"backdrop_busy": 6.1, "backdrop_lab": [45, -30, 30]}, "busy green"),
        ("clothes", {"clothes_lab": RED}, "red"),
    ],
)
def test_each_axis_at_its_limits(axis, measures, value):
    assert coach.coverage([photo("a", **measures)]).axis(axis).most == value


def test_what_was_not_measured_counts_nowhere():
    bare = Verdict("a.jpg", True, (), {"yaw_deg": None, "backdrop_lab": None})
    covered = coach.coverage([bare])
    assert (covered.photos, covered.scenes) == (1, 1)
    assert all(sum(axis.scenes) == 0 and axis.share == 0 and axis.most == "" for axis in covered.axes)
    assert not np.array(covered.grid).any()


def test_a_scene_counts_once_by_its_best_photo():
    burst = [photo(f"b{i}", scene=7, smile=0.9 if i == 3 else 0.1, quality=0.5 + i / 100) for i in range(4)]
    covered = coach.coverage([*burst, photo("left", scene=8, yaw_deg=-30)])
    assert (covered.photos, covered.scenes) == (5, 2)
    assert covered.grid == ((1, 0), (0, 1), (0, 0), (0, 0))
    assert covered.axis("expression").scenes == (1, 1) and covered.axis("clothes").share == 1.0


def test_refused_photos_do_not_count():
    assert coach.coverage([photo("a"), refused("b", "blurred", yaw_deg=30)]).axis("pose").scenes == (0, 1, 0, 0)


def test_coverage_goes_to_json_and_back():
    covered = coach.coverage(good_set())
    assert coach.Coverage.from_dict(json.loads(json.dumps(covered.to_dict()))) == covered
    assert covered.to_dict()["grid"][0] == list(covered.grid[0])


def test_shades_of_a_colour_are_one_and_colours_are_not():
    shades = [photo(f"a{i}", clothes_lab=[40 + i, 5 + i / 2, -35 + i]) for i in range(8)]
    assert coach.coverage([*shades, photo("b", clothes_lab=RED)]).axis("clothes").scenes == (8, 1)


# --- scenes -------------------------------------------------------------------------------------------------------


def faces(count, cosine):
    """Unit vectors, shape (count, 512), any two of which have that cosine."""
    return np.sqrt(cosine) * np.eye(512)[[0] * count] + np.sqrt(1 - cosine) * np.eye(512)[1 : count + 1]


SAME = {"yaw_deg": 0, "pitch_deg": 0, "roll_deg": 0, "backdrop_lab": WHITE, "clothes_lab": BLUE}


@pytest.mark.parametrize(
    "change, together",
    [
        ({}, True),
        ({"yaw_deg": 8}, True),
        ({"yaw_deg": 8.1}, False),
        ({"roll_deg": -9}, False),
        ({"clothes_lab": RED}, False),
        ({"backdrop_lab": GREY}, False),
        ({"clothes_lab": None}, True),
        ({"taken_at": "2026-11-20T10:01:00"}, True),
        ({"taken_at": "2026-11-20T10:01:01"}, False),
        ({"taken_at": "2026-11-20T10:00:30+01:00"}, True),
        ({"taken_at": "no time"}, True),
    ],
)
def test_two_photos_of_one_scene(change, together):
    first = SAME | {"taken_at": "2026-11-20T10:00:00"}
    assert coach.scenes([first, SAME | change], faces(2, 0.9)) == ([0, 0] if together else [0, 1])


def test_other_faces_are_other_scenes():
    assert coach.scenes([SAME, SAME], faces(2, 0.8)) == [0, 1]
    assert coach.scenes([], np.zeros((0, 512))) == []


def test_a_slow_turn_of_the_head_is_not_one_scene():
    turning = [SAME | {"yaw_deg": yaw} for yaw in range(-40, 41, 4)]
    found = coach.scenes(turning, faces(len(turning), 0.9))
    assert 4 <= len(set(found)) <= 6 and found == sorted(found)


# --- the choice ---------------------------------------------------------------------------------------------------


def value_of(verdicts, places):
    """The value of a choice by its definition, without the greedy code's running sums."""
    weights, cells, worth = selection._choice_arrays(verdicts)
    total = 0.0
    for column, weight in enumerate(weights):
        for cell in set(cells[list(places), column]) - {-1}:
            total += weight * np.sqrt(sum(worth[i] for i in places if cells[i, column] == cell))
    return total


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_near_the_best_possible(seed):
    draw = random.Random(seed)
    verdicts = [
        photo(
            f"p{i:02d}", yaw_deg=draw.choice([-40, -20, 0, 0, 0, 30]), smile=draw.choice([0, 0, 1]),
            clothes_lab=draw.choice([BLUE, BLUE, RED, GREY]), backdrop_lab=draw.choice([WHITE, GREY, RED]),
            light_side=draw.choice([0, 0, 0.3]), quality=draw.uniform(0.1, 1),
        )
        for i in range(11)
    ]  # fmt: skip
    chosen = coach.choose_photos(verdicts, most=4).names
    names = [v.photo for v in verdicts]
    best = max(value_of(verdicts, s) for s in itertools.combinations(range(11), 4))
    reached = value_of(verdicts, [names.index(n) for n in chosen])
    assert len(chosen) == 4 and (1 - 1 / np.e) * best <= reached <= best + 1e-9
    assert coach.choose_photos(list(reversed(verdicts)), most=4).names == chosen


def test_a_unique_pose_beats_a_slightly_sharper_duplicate():
    same = [photo(f"same{i}", quality=0.80 + i / 100) for i in range(6)]
    left = photo("left", yaw_deg=-30, quality=0.7)
    assert coach.choose_photos([*same, left], most=2).names == ("same5.jpg", "left.jpg")


def test_quality_decides_where_nothing_else_differs():
    verdicts = [photo(f"a{i}", quality=i / 10) for i in range(1, 10)]
    assert coach.choose_photos(verdicts, most=3).names == ("a9.jpg", "a8.jpg", "a7.jpg")


def test_quality_comes_from_sharpness_and_size_where_the_gate_has_none():
    small, large = {"sharpness": 9.0, "face_px": 120}, {"sharpness": 9.0, "face_px": 300}
    assert coverage.quality({}) == 0.05 < coverage.quality(small) < coverage.quality(large) < 1
    assert coverage.quality({"quality": 3.0}) == 1.0


def test_a_burst_is_chosen_from_once():
    burst = [photo(f"burst{i}", scene=0, quality=0.9) for i in range(30)]
    others = [photo(f"other{i:02d}", scene=i + 1, quality=0.3) for i in range(12)]
    chosen = coach.choose_photos([*burst, *others])
    assert len(chosen.names) == 13 and sum("burst" in n for n in chosen.names) == 1
    assert chosen.text.startswith("13 of 42 ") and "13 of 13" in chosen.text


def test_few_scenes_are_filled_up_from_bursts():
    verdicts = [photo(f"{m}{i}", scene=m, yaw_deg=-30 * m) for m in range(2) for i in range(9)]
    chosen = coach.choose_photos(verdicts, most=20, least=10)
    assert len(chosen.names) == len(set(chosen.names)) == 10
    assert ["same scene" in c.why for c in chosen.photos] == [False] * 2 + [True] * 8


def test_five_hundred_photos_give_twenty_that_show_everything():
    verdicts = [photo(f"f{i:03d}", quality=0.9) for i in range(492)]
    rare = good_set(8)
    chosen = coach.choose_photos([*verdicts, *rare])
    everything, shown = coach.coverage([*verdicts, *rare]), coach.coverage([*verdicts, *rare])
    shown = coach.coverage([v for v in [*verdicts, *rare] if v.photo in chosen.names])
    assert len(chosen.names) == 20
    assert [axis.values for axis in everything.axes if min(axis.scenes)] == [
        axis.values for axis in shown.axes if min(axis.scenes)
    ]
    assert {v.photo for v in rare[1:4]} <= set(chosen.names)


def test_refused_photos_are_never_chosen():
    assert coach.choose_photos([refused("a", "blurred"), photo("b")]).names == ("b.jpg",)
    assert coach.choose_photos([]).names == ()


# --- the requests -------------------------------------------------------------------------------------------------


def test_a_good_set_is_told_so():
    verdicts = good_set()
    assert asked(verdicts) == ()
    words = coach.summary((), coach.coverage(verdicts))
    assert figures(words) == [16, 16, 4, 2, 2, 3], words


def test_all_frontal():
    verdicts = [photo(v.photo[:3], **v.measures | {"yaw_deg": 3, "pitch_deg": 2}) for v in good_set()]
    (request,) = asked(verdicts)
    assert (request.code, request.count) == ("pose", 4)
    assert request.text.count("two ") == 2 and request.text.index("left") < request.text.index("right")
    assert "0 left, 16 front, 0 right" in request.why


def test_one_side_only():
    verdicts = [v for v in good_set() if v.measures["yaw_deg"] != 30] + [photo("r", yaw_deg=30)]
    (request,) = asked(verdicts)
    assert (request.code, request.count) == ("pose", 1) and "right" in request.text and "left" not in request.text


def test_all_one_shirt():
    verdicts = [photo(v.photo[:3], **v.measures | {"clothes_lab": BLUE}) for v in good_set()]
    (request,) = asked(verdicts)
    assert (request.code, request.count) == ("clothes", 3) and "blue" in request.text
    assert figures(request.why) == [16, 16, 75]


def test_one_background():
    verdicts = [photo(v.photo[:3], **v.measures | {"backdrop_lab": WHITE}) for v in good_set()]
    (request,) = asked(verdicts)
    assert (request.code, request.count) == ("background", 3) and "plain white" in request.text


def test_nobody_smiles_and_everybody_smiles():
    calm = [photo(v.photo[:3], **v.measures | {"smile": 0.1}) for v in good_set()]
    merry = [photo(v.photo[:3], **v.measures | {"smile": 0.9}) for v in good_set()]
    for verdicts, word in ((calm, "smile"), (merry, "calm")):
        (request,) = asked(verdicts)
        assert (request.code, request.count) == ("expression", 2) and word in request.text


@pytest.mark.parametrize(
    "change, code",
    [
        ({"light_side": 0.4}, "light"),
        ({"brightness": 45, "highlights": 150}, "light"),
        ({"face_height": 0.7}, "framing"),
        ({"face_height": 0.2}, "framing"),
    ],
)
def test_light_and_framing(change, code):
    (request,) = asked([photo(v.photo[:3], **v.measures | change) for v in good_set()])
    assert (request.code, request.count) == (code, 3)


def test_at_most_three_in_order_of_use():
    verdicts = [photo(f"a{i:02d}", light_side=0.4, face_fraction=0.7) for i in range(16)]
    assert [r.code for r in asked(verdicts)] == ["pose", "clothes", "background"]
    words = coach.summary(asked(verdicts), coach.coverage(verdicts))
    places = [words.index(request.text) for request in asked(verdicts)]
    assert places == sorted(places)


def test_half_of_them_another_person():
    verdicts = [photo(f"a{i}", **v.measures) for i, v in enumerate(good_set(12)[:9])]
    verdicts += [refused(f"b{i}", "other_person", identity=0.05) for i in range(9)]
    first = asked(verdicts)[0]
    assert (first.code, first.count) == ("two_people", 9)
    assert all(", ".join(f"{letter}{i}.jpg" for i in range(9)) in first.text for letter in "ab")
    assert figures(first.why) == [9, 18]


def test_a_few_strangers_are_strays():
    strangers = [refused(f"b{i}", "other_person", identity=0.05) for i in range(5)]
    assert asked([*good_set(), *strangers]) == ()
    assert asked([*good_set(15), *strangers])[0].code == "two_people"


def test_three_people_are_three():
    strangers = [refused(f"{'bc'[i % 2]}{i}", "other_person", identity=0.05, person=1 + i % 2) for i in range(10)]
    text = texts([*good_set(), *strangers])[0]
    assert "three people" in text and "16 of " in text and "b0.jpg, b2.jpg" in text and "c1.jpg, c3.jpg" in text


def test_eighteen_photos_of_two_scenes():
    verdicts = [photo(f"{m}{i}", scene=m, yaw_deg=-30 * m) for m in range(2) for i in range(9)]
    request, *others = asked(verdicts)
    assert (request.code, request.count) == ("moments", 8)
    assert {other.code for other in others} == {"pose", "expression"}
    assert figures(request.why) == [18, 2, 10]


def test_a_burst_whose_photos_were_refused_as_duplicates():
    verdicts = [photo(f"{m}", scene=m) for m in range(2)] + [refused(f"d{i}", "duplicate") for i in range(16)]
    request = asked(verdicts)[0]
    assert (request.code, request.count) == ("moments", 8)
    assert figures(request.why) == [18, 2, 10]


def test_too_few():
    request, smile = asked(good_set(4))
    assert (request.code, request.count) == ("few_photos", 6) and "six" in request.text
    assert (smile.code, smile.count) == ("expression", 2)
    assert figures(request.why) == [4, 4, 10]
    assert (asked(good_set(9))[0].count, "photos" in texts(good_set(9))[0]) == (1, False)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("scenes", [1, 4])
def test_a_small_uniform_set_is_asked_to_turn_and_to_smile(count, scenes):
    """Frontal, neutral selfies of one day; with min_photos as low as their number nothing else is in the way."""
    verdicts = [photo(f"a{i}", scene=i % scenes) for i in range(count)]
    config = CheckConfig(min_photos=min(count, 3))
    codes = [r.code for r in coach.requests(verdicts, coach.coverage(verdicts), config)]
    assert {"pose", "clothes" if min(count, scenes) >= 3 else "expression"} <= set(codes)
    lacking = coach.requests(
        [photo(f"a{i}", smile=0.9, yaw_deg=-30) for i in range(count)],
        coach.coverage([photo(f"a{i}", smile=0.9, yaw_deg=-30) for i in range(count)]),
        config,
    )
    pose = next(r for r in lacking if r.code == "pose")
    assert "left" not in pose.text and "right" in pose.text and "straight" in pose.text


def test_a_small_set_that_shows_everything_once_is_not_asked_for_it_again():
    shown = [photo("a", yaw_deg=-30), photo("b", yaw_deg=30, smile=0.9, clothes_lab=RED, backdrop_lab=GREY), photo("c")]
    covered = coach.coverage(shown)
    assert coach.requests(shown, covered, CheckConfig(min_photos=3)) == ()


def test_a_dark_skin_in_good_light_is_not_in_dim_light():
    own = [photo(f"a{i}", brightness=55 + i) for i in range(12)]
    assert coach.coverage(own).axis("light").most == "soft"
    mixed = [photo(f"a{i}", brightness=55, highlights=140 if i < 3 else 230) for i in range(12)]
    assert coach.coverage(mixed).axis("light").count("dim or hard") == 3


def test_photos_that_an_earlier_version_measured_are_counted():
    """It noted neither highlights nor the face's height relative to the photo's, but the face's to the shorter side."""
    old = [photo("a", face_fraction=0.6, brightness=47), photo("b", face_fraction=0.4, brightness=49)]
    for verdict in old:
        del verdict.measures["face_height"], verdict.measures["highlights"]
    covered = coach.coverage(old)
    assert covered.axis("framing").scenes == (1, 1, 0) and covered.axis("light").scenes == (1, 0, 0, 1)


def test_too_few_for_they_are_blurred():
    verdicts = [*good_set(4), *(refused(f"b{i}", "blurred") for i in range(5)), refused("c", "no_face")]
    assert [(r.code, r.count) for r in asked(verdicts)][:2] == [("few_photos", 6), ("refused_blurred", 5)]
    assert asked(verdicts)[1].code == "refused_blurred"
    assert figures(asked(verdicts)[1].why) == [5, 10]


def test_spoilt_photos_of_a_set_that_is_large_enough_come_last():
    verdicts = [photo(f"a{i:02d}") for i in range(12)] + [refused(f"b{i}", "dark") for i in range(3)]
    assert [r.code for r in asked(verdicts)] == ["pose", "clothes", "background"]
    few = [*good_set(), *(refused(f"b{i}", "dark") for i in range(3))]
    assert [request.code for request in asked(few)] == ["refused_dark"]
    assert asked(few[:-1]) == ()


def test_every_refusal_that_can_be_mended_is_one_of_the_gate():
    assert set(coach.FIXABLE) | set(coach.REPEATED) < set(REASON_CODES)


def test_refusals_do_not_matter_where_enough_was_kept():
    assert asked([*good_set(20), *(refused(f"b{i}", "dark") for i in range(9))]) == ()


def test_an_overridden_stranger_is_no_stranger():
    kept = [
        Verdict(f"b{i}.jpg", True, (Reason("other_person", 0.1, 0.3, ""),), good_set()[i].measures) for i in range(9)
    ]
    assert all(r.code != "two_people" for r in asked([*good_set(), *kept]))


def test_requests_go_to_json_and_back():
    request = asked(good_set(4))[0]
    assert coach.Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    chosen = coach.choose_photos(good_set())
    assert coach.Choice.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


# --- real pictures through the real gate --------------------------------------------------------------------------


def judged(photos, folder):
    """The manifest of a folder's photos."""
    run = Run(folder)
    check_photos(photos, run)
    return run.manifest("photos")


def test_the_sample_person_looks_to_one_side_only(prepared):
    requests = Run(prepared).manifest("photos")["requests"]
    assert [r["code"] for r in requests] == ["pose", "framing"]
    assert (requests[0]["code"], requests[0]["count"]) == ("pose", 2) and "left" in requests[0]["text"]


@pytest.mark.slow
def test_real_photos_of_two_people_are_named(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(1, 6):
        for folder, name in ((P1, f"p1_{number:02d}.jpg"), (P2, f"p2_{number:02d}.jpg")):
            shutil.copy(folder / name, tmp_path / "photos")
    manifest = judged(tmp_path / "photos", tmp_path / "run")
    first = manifest["requests"][0]
    assert first["code"] == "two_people" and first["count"] == 5
    for person in (1, 2):
        names = ", ".join(f"p{person}_{number:02d}.jpg" for number in range(1, 6))
        assert f"({names})" in first["text"]


@pytest.mark.slow
def test_a_real_burst_is_one_scene(tmp_path):
    """Five frames each of two photos, moved and lit a little differently, as a hand-held burst is."""
    (tmp_path / "photos").mkdir()
    for name in ("p1_03", "p1_09"):
        with Image.open(P1 / f"{name}.jpg") as original:
            for frame in range(5):
                moved = original.rotate(frame * 1.0).crop((10 * frame, 8 * frame, 700 + 10 * frame, 700 + 8 * frame))
                lit = moved.point([min(255, round(v * (1 - frame * 0.03))) for v in range(256)] * 3)
                lit.save(tmp_path / "photos" / f"{name}_{frame}.jpg", quality=92)
    manifest = judged(tmp_path / "photos", tmp_path / "run")
    assert manifest["coverage"]["moments"] == 2
    assert manifest["requests"][0]["code"] == "moments"
    assert figures(manifest["requests"][0]["why"]) == [10, 2, 10]
