"""A photo of the person, laid over a headshot."""

import cv2
import numpy as np
import pytest
from conftest import P1, open_picture

from headshotkit.faces import recognition
from headshotkit.restoration import reference


@pytest.fixture(scope="module")
def photos() -> list[reference.Photo]:
    pictures = [np.asarray(open_picture(P1 / name)) for name in ("p1_09.jpg", "p1_14.jpg", "p1_16.jpg")]
    return [reference.photo_of(picture, recognition.detect_faces(picture)[0]) for picture in pictures]


def eye_distance(marks: np.ndarray) -> float:
    left, right = (marks[eye].mean(0) for eye in reference.EYES)
    return float(np.linalg.norm(right - left))


def test_a_photo_lies_feature_on_feature(photos):
    """The landmarks that are found in the bent photo are those of the other one."""
    source, target = photos[0], photos[1]
    side = 512
    marks = target.marks * (side / max(target.picture.shape[:2]))
    laid = reference.laid_over(source.picture, source.marks, marks, side)
    assert laid.shape == (side, side, 3) and laid.dtype == np.uint8
    (face,) = recognition.detect_faces(laid)
    off = np.linalg.norm(recognition.landmarks_106(laid, face) - marks, axis=1) / eye_distance(marks)
    plain = reference.moved(source.marks, marks)
    assert np.median(off) < 0.04 and np.median(off) < np.median(np.linalg.norm(plain - marks, axis=1)) / eye_distance(
        marks
    )
    arcface = recognition.load_recogniser("arcface")
    known = arcface.embed(source.picture, recognition.detect_faces(source.picture)[0])
    assert arcface.similarity(arcface.embed(laid, face), known)[0] > 0.6


def test_a_photo_laid_over_itself_is_itself(photos):
    photo = photos[0]
    side = min(photo.picture.shape[:2]) // reference.STEP_PX * reference.STEP_PX
    laid = reference.laid_over(photo.picture, photo.marks, photo.marks, side).astype(int)
    inside = cv2.boundingRect(photo.marks.astype(np.float32))
    x, y, wide, high = inside
    there = slice(y, y + high), slice(x, x + wide)
    assert np.abs(laid[there] - photo.picture[:side, :side][there]).mean() < 1.5


def test_off_the_head_nothing_is_known(photos):
    laid = reference.laid_over(photos[0].picture, photos[0].marks, photos[0].marks / 4 + 200, 512)
    assert (laid[:40] == reference.UNKNOWN).all() and (laid[300:340, 300:340] != reference.UNKNOWN).any()


def test_the_photo_with_the_headshots_expression_is_chosen(photos):
    for photo in photos:
        turned = reference.moved(photo.marks, photo.marks[:, ::-1] * [1, -1] + [0, 700])
        assert reference.choose_photo(photos, turned) is photo
    soft = reference.Photo("", photos[0].picture, photos[0].marks, 0.0)
    assert reference.choose_photo([soft, photos[0]], photos[0].marks + 1) is photos[0]
