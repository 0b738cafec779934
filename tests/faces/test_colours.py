import numpy as np
import pytest

from headshotkit.faces import colours, recognition
from headshotkit.faces.traits import to_lab

BROWN, BLUE = (92, 58, 36), (96, 128, 160)


@pytest.fixture(scope="module")
def face(good_photo):
    return recognition.detect_faces(good_photo)[0]


@pytest.fixture(scope="module")
def marks(good_photo, face):
    return recognition.landmarks_106(good_photo, face)


def with_irises(photo: np.ndarray, marks: np.ndarray, colour: tuple, plain: bool = False) -> np.ndarray:
    """Paints both irises, with a pupil and a highlight unless `plain`."""
    painted, y, x = photo.copy(), *np.mgrid[: photo.shape[0], : photo.shape[1]]
    eyes = np.linalg.norm(marks[38] - marks[88])
    for centre in marks[[38, 88]]:
        apart = np.hypot(x - centre[0], y - centre[1]) / eyes
        painted[apart < 0.09] = colour
        if not plain:
            painted[apart < 0.025] = (8, 8, 8)
            painted[np.hypot(x - centre[0] - 0.03 * eyes, y - centre[1] + 0.02 * eyes) < 0.012 * eyes] = (255, 255, 255)
    return painted


@pytest.mark.parametrize("colour", [BROWN, BLUE])
def test_the_iris_is_measured_without_pupil_and_highlight(good_photo, face, marks, colour):
    measured = colours.eye_colour(with_irises(good_photo, marks, colour), face)
    assert np.abs(measured - to_lab(np.uint8([[colour]]))[0]).max() < 4
    assert np.abs(measured - colours.eye_colour(with_irises(good_photo, marks, colour, True), face)).max() < 4


def test_a_small_picture_shows_the_same_eyes_or_none(good_photo):
    brown, found = colours.eye_colour(good_photo, recognition.detect_faces(good_photo)[0]), []
    for step in (2, 3, 8):
        small = np.ascontiguousarray(good_photo[::step, ::step])
        found.append(colours.eye_colour(small, recognition.detect_faces(small)[0]))
    assert np.abs(found[0] - brown).max() < 6 and np.abs(found[1] - brown).max() < 8 and found[2] is None


def test_closed_eyes_have_no_colour(good_photo, marks):
    closed = marks.copy()
    for eye in (slice(33, 43), slice(87, 97)):
        middle = marks[eye, 1].mean()
        closed[eye, 1] = middle + 0.2 * (marks[eye, 1] - middle)
    assert colours.iris_colour(good_photo, marks) is not None and colours.iris_colour(good_photo, closed) is None


def test_an_eye_outside_the_picture_does_not_count(good_photo, marks):
    left = colours.iris_discs(marks)[0][1].max() + 1
    painted = with_irises(good_photo, marks, BROWN)
    painted[:, :left] = with_irises(good_photo, marks, BLUE)[:, :left]
    half = painted[:, left:]
    beyond = marks - [left, 0]
    assert np.abs(colours.iris_colour(half, beyond) - to_lab(np.uint8([[BROWN]]))[0]).max() < 4
    assert colours.iris_colour(half[:, half.shape[1] // 2 :], marks - [left + half.shape[1] // 2, 0]) is None


def test_hair_is_measured_over_the_forehead_or_not_at_all(good_photo, face):
    red, top = good_photo.copy(), int(face.points[:2, 1].mean() - 1.3 * np.ptp(face.points[:, 1]))
    red[:top] = (150, 70, 40)
    assert np.abs(colours.hair_colour(red, face) - to_lab(np.uint8([[(150, 70, 40)]]))[0]).max() < 4
    cut = np.ascontiguousarray(good_photo[top:])
    assert colours.crown_colour(cut, face.points - [0, top]) is None
