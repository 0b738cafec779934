import numpy as np
import pytest
from PIL import Image, ImageFilter

from headshotkit import faces, measures


@pytest.fixture(scope="module")
def aligned(good_photo):
    face = faces.detect_faces(good_photo)[0]
    return faces.align_face(good_photo, face.points, measures.FACE_PX)


def test_sharpness_falls_with_every_blur(aligned):
    blurred = [np.asarray(Image.fromarray(aligned).filter(ImageFilter.GaussianBlur(r))) for r in (0, 0.5, 1, 2, 4)]
    values = [measures.sharpness(x) for x in blurred]
    assert values == sorted(values, reverse=True) and values[0] > 4 * values[-1]


def test_sharpness_does_not_mistake_dim_light_for_blur(aligned):
    dim = (aligned * 0.5).astype(np.uint8)
    assert measures.sharpness(dim) == pytest.approx(measures.sharpness(aligned), rel=0.1)


def test_brightness_and_clipping_follow_the_exposure(aligned):
    assert measures.brightness((aligned * 0.2).astype(np.uint8)) < 50 < measures.brightness(aligned)
    white = np.full_like(aligned, 255)
    assert measures.clipped(white) == 1.0 and measures.clipped((aligned * 0.5).astype(np.uint8)) == 0.0


def test_a_bar_over_the_eyes_shows(aligned):
    covered = aligned.copy()
    y = int(faces.ARCFACE_TEMPLATE[0, 1] * len(covered))
    covered[y - 12 : y + 12] = 10
    assert measures.eye_contrast(covered) < 0.15 < 0.5 < measures.eye_contrast(aligned)


def test_eye_openness_is_height_over_width():
    landmarks = np.zeros((106, 2))
    landmarks[measures.LEFT_EYE] = [[x, 0.3 * (x % 2) * 9] for x in range(10)]
    landmarks[measures.RIGHT_EYE] = [[x, 0] for x in range(10)]
    assert measures.eye_openness(landmarks) == pytest.approx(0.3)


def test_face_inside_counts_what_the_frame_leaves():
    points = faces.ARCFACE_TEMPLATE * 100
    assert measures.face_inside(points, 100, 100) == 1.0
    assert measures.face_inside(points - [50, 0], 100, 100) == pytest.approx(0.5, abs=0.02)


def test_the_hash_knows_a_picture_again(good_photo):
    image = Image.fromarray(good_photo)
    again = np.asarray(image.resize((500, 500)).filter(ImageFilter.GaussianBlur(1)))
    mirrored = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    first = measures.difference_hash(good_photo)
    assert (first != measures.difference_hash(again)).sum() <= 3
    assert (first != measures.difference_hash(mirrored)).sum() > 10
