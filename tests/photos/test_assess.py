import cv2
import numpy as np
import pytest
from conftest import P1, P2

from headshotkit.config import CheckConfig
from headshotkit.core.records import REASON_CODES
from headshotkit.faces import recognition
from headshotkit.photos import assess
from headshotkit.photos.files import Opened, open_photo


@pytest.fixture(scope="module")
def measured():
    return assess.measure_photo(open_photo(P1 / "p1_04.jpg", assess.LEAST_PX))


def test_a_good_photo_has_every_measure_and_no_reason_against_it(measured):
    used = {rule.measure for rule in assess.RULES}
    assert used <= set(measured.measures) and all(measured.measures[name] is not None for name in used)
    assert assess.reasons_against(measured.measures, CheckConfig()) == []
    assert 0.8 < measured.measures["quality"] <= 1


@pytest.mark.parametrize("rule", assess.RULES, ids=lambda rule: f"{rule.code}-{rule.side}-{rule.measure}")
def test_each_limit_is_exact_and_names_the_number(rule, measured):
    limit, step = getattr(CheckConfig(), rule.limit), 1 if rule.limit in ("min_faces", "max_faces") else 0.001
    at = measured.measures | {rule.measure: limit}
    beyond = measured.measures | {rule.measure: limit + step if rule.side == "most" else limit - step}
    assert assess.reasons_against(at, CheckConfig()) == []
    (reason,) = assess.reasons_against(beyond, CheckConfig())
    assert (reason.code, reason.limit) == (rule.code, limit) and reason.value == beyond[rule.measure]
    assert rule.code in REASON_CODES and (rule.code == "no_face" or any(c.isdigit() for c in reason.text))


def with_beard(image: np.ndarray) -> np.ndarray:
    """Draw a full black beard that leaves the lips free."""
    points = recognition.detect_faces(image)[0].points
    mouth, eyes = points[3:].mean(0), float(np.linalg.norm(points[1] - points[0]))
    centre, beard = (int(mouth[0]), int(mouth[1])), np.zeros(image.shape[:2], np.float32)
    below = (centre[0], int(mouth[1] + 0.15 * eyes))
    cv2.ellipse(beard, below, (int(0.98 * eyes), int(0.95 * eyes)), 0, 0, 360, 1, -1)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    aside = np.clip(np.abs(x - mouth[0]) / (0.98 * eyes) - 0.55, 0, 1)
    beard *= y > points[2][1] + 0.18 * eyes - 0.55 * eyes * aside
    cv2.ellipse(beard, centre, (int(0.36 * eyes), int(0.11 * eyes)), 0, 0, 360, 0, -1)
    beard = 0.95 * cv2.GaussianBlur(beard, (0, 0), max(2, 0.04 * eyes))[..., None]
    hair = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, image.shape[:2]), (0, 0), max(0.8, 0.012 * eyes))
    drawn = np.array([34, 27, 23]) + 14 * (hair / hair.std())[..., None]
    return (image * (1 - beard) + drawn * beard).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("photo", [P1 / "p1_05.jpg", P2 / "p2_01.jpg", P2 / "p2_12.jpg"], ids=lambda path: path.stem)
def test_a_beard_covers_nothing_and_tints_nothing(photo):
    image = with_beard(open_photo(photo).pixels)
    measured = assess.measure_photo(Opened(image, image.shape[1], image.shape[0], 1.0, None))
    assert assess.reasons_against(measured.measures, CheckConfig()) == []


def test_every_limit_of_the_config_is_used():
    set_level = {
        "min_photos", "max_photos", "min_same_person", "max_hash_distance", "min_duplicate_identity",
        "min_duplicate_structure", "max_stops_below",
    }  # fmt: skip
    limits = set(CheckConfig.model_fields)
    assert limits == {rule.limit for rule in assess.RULES} | set_level


def test_turning_left_or_right_counts_alike(measured):
    for yaw in (-60, 60):
        (reason,) = assess.reasons_against(measured.measures | {"yaw_deg": yaw}, CheckConfig())
        assert reason.code == "profile" and "60 degrees" in reason.text


def test_the_cause_is_named_and_not_what_follows_from_it(measured):
    dark = measured.measures | {"visible": 1.0, "noise": 9.0, "disagreement": 0.5, "recognisable": 3.0}
    assert [r.code for r in assess.reasons_against(dark, CheckConfig())] == ["dark"]
    two = measured.measures | {"other_face": 0.9, "face_px": 40}
    assert [r.code for r in assess.reasons_against(two, CheckConfig())] == ["many_faces", "small_face"]


def test_measures_do_not_depend_on_how_large_the_file_is_decoded(tmp_path):
    """A photo of 3,000 px is measured at half of its size, and says so in its own px."""
    from PIL import Image

    with Image.open(P1 / "p1_04.jpg") as image:
        image.resize((3200, 3200), Image.Resampling.LANCZOS).save(tmp_path / "large.jpg", quality=95)
    large = assess.measure_photo(open_photo(tmp_path / "large.jpg", assess.LEAST_PX)).measures
    whole = assess.measure_photo(open_photo(tmp_path / "large.jpg")).measures
    for name in ("face_px", "yaw_deg", "brightness", "sharpness", "steadiness", "face_fraction", "recognisable"):
        assert large[name] == pytest.approx(whole[name], rel=0.06, abs=1.0), name
    assert np.allclose(large["face_box_px"], whole["face_box_px"], atol=12)


def test_a_picture_of_nothing_has_no_face():
    grey = np.full((300, 300, 3), 128, np.uint8)
    measured = assess.measure_photo(Opened(grey, 300, 300, 1.0, None, None, None))
    (reason,) = assess.reasons_against(measured.measures, CheckConfig())
    assert (reason.code, measured.embedding) == ("no_face", None)


def test_the_recognisers_limit_is_left_out_where_it_was_not_measured(measured, monkeypatch):
    monkeypatch.setattr("headshotkit.faces.recognition.norm_is_known", lambda: False)
    unknown = assess.measure_photo(open_photo(P1 / "p1_04.jpg", assess.LEAST_PX)).measures
    assert unknown["recognisable"] is None and assess.reasons_against(unknown, CheckConfig()) == []
