"""Cutting a face out and pasting it back, on the bundled sample person's photo."""

import cv2
import numpy as np
import pytest

from headshotkit.faces import measures, recognition
from headshotkit.restoration.alignment import SIDE_PX, TEMPLATE, aligned_face, face_mask, paste_back


def turned(photo: np.ndarray, degrees: float) -> np.ndarray:
    side = len(photo)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), degrees, 0.8)
    return cv2.warpAffine(photo, turn, (side, side), borderValue=(90, 90, 90))


def placed(photo: np.ndarray, kind: str) -> np.ndarray:
    """The photo as a picture of that kind, with a wall around it, as its face fills it."""
    photo = np.pad(photo, ((300, 300), (300, 300), (0, 0)), mode="reflect")
    match kind:
        case "rotated":
            return turned(photo, 25)
        case "at the border":
            return photo[:, int(0.4 * photo.shape[1]) :]
        case "large":
            return cv2.resize(photo, (4000, 4000), interpolation=cv2.INTER_CUBIC)
        case "small":
            return cv2.resize(photo, (340, 340), interpolation=cv2.INTER_AREA)
    return photo


def changed_by(picture: np.ndarray, restorer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture with its face through a restorer, where the mask allows a change, and the face's points."""
    points = recognition.detect_faces(picture)[0].points
    aligned = aligned_face(picture, points)
    made = paste_back(picture, restorer(aligned), aligned, points)
    back = cv2.invertAffineTransform(recognition.template_transform(points, SIDE_PX, TEMPLATE))
    return made, cv2.warpAffine(face_mask(), back, picture.shape[1::-1]) > 0, points


@pytest.mark.parametrize("kind", ["plain", "rotated", "at the border", "large", "small"])
def test_a_restorer_that_changes_nothing_changes_no_pixel(good_photo, kind):
    picture = placed(good_photo, kind)
    made, _, _ = changed_by(picture, lambda face: face)
    assert np.array_equal(made, picture)


@pytest.mark.parametrize("kind", ["plain", "rotated", "at the border", "small"])
def test_pasting_back_changes_the_face_and_no_bit_outside_of_the_mask(good_photo, kind):
    picture = placed(good_photo, kind)
    made, inside, points = changed_by(picture, lambda face: face[::-1])
    assert np.array_equal(made[~inside], picture[~inside]) and not inside.all()
    x, y = points[3].astype(int)
    assert np.abs(made[y, x].astype(int) - picture[y, x]).max() > 10


def test_a_tinted_face_gets_the_colours_of_its_picture(good_photo):
    def tint(face):
        return np.clip(face.astype(np.float32) * [0.85, 1, 1.1] + 12, 0, 255).astype(np.uint8)

    picture = placed(good_photo, "plain")
    made, inside, _ = changed_by(picture, tint)
    shift = np.abs(made[inside].mean(0) - picture[inside].mean(0))
    assert shift.max() < 1.5


def test_a_smoothed_face_gets_the_grain_of_its_surroundings(good_photo):
    picture = cv2.resize(placed(good_photo, "plain"), (800, 800), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(1).normal(0, 5, picture.shape[:2])[..., None]
    grainy = np.clip(picture + noise, 0, 255).astype(np.uint8)
    points = recognition.detect_faces(grainy)[0].points
    aligned = aligned_face(grainy, points)
    smooth = cv2.GaussianBlur(aligned, (0, 0), 4)
    inside = face_mask() > 0.5
    plain = measures.noise_in(smooth, inside)
    made = aligned_face(paste_back(grainy, smooth, aligned, points), points)
    assert plain < 0.5 < 0.6 * measures.noise_in(aligned, ~inside) < measures.noise_in(made, inside)


def test_a_face_at_the_border_shows_no_black_corner(good_photo):
    picture = placed(np.maximum(good_photo, 30), "at the border")
    aligned = aligned_face(picture, recognition.detect_faces(picture)[0].points)
    assert aligned.min() > 10
