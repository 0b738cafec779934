import io

import cv2
import numpy as np
import pytest
from conftest import P1, open_picture
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


def test_contrast_falls_with_fog_and_steadiness_does_not(aligned):
    pale = (127 + (aligned.astype(float) - 127) * 0.4).astype(np.uint8)
    assert measures.contrast(pale) == pytest.approx(0.4 * measures.contrast(aligned), rel=0.05)
    assert measures.steadiness(pale) == pytest.approx(measures.steadiness(aligned), rel=0.15)


def test_steadiness_sees_a_moved_camera_that_sharpness_forgives(aligned):
    streak = np.zeros((17, 17), np.float32)
    streak[8] = 1 / 17
    moved = cv2.filter2D(aligned, -1, streak)
    assert measures.sharpness(moved) > measures.sharpness(cv2.GaussianBlur(aligned, (0, 0), 4)) * 1.5
    assert measures.steadiness(moved) < 4.5 < 9 < measures.steadiness(aligned)


def test_noise_is_estimated_to_a_fifth(aligned):
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(aligned, (0, 0), 2).astype(float)
    for sigma in (3, 8, 15):
        grey = rng.normal(0, sigma, aligned.shape[:2])[..., None]
        assert measures.noise(np.clip(smooth + grey, 0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.2)


@pytest.mark.parametrize("halved", [False, True])
def test_blockiness_rises_with_compression(good_photo, halved):
    values = []
    for quality in (95, 30, 3):
        buffer = io.BytesIO()
        Image.fromarray(good_photo).save(buffer, "JPEG", quality=quality, subsampling=0)
        again = Image.open(buffer)
        if halved:
            again.draft("RGB", (384, 384))
        image = np.asarray(again)
        values.append(measures.blockiness(image, faces.detect_faces(image)[0].box, 4 if halved else 8))
    assert values == sorted(values) and values[0] < 1.4 and values[2] > (1.5 if halved else 3)


def test_skin_share_falls_when_something_covers_the_face():
    photo = np.asarray(open_picture(P1 / "p1_04.jpg"))
    aligned = faces.align_face(photo, faces.detect_faces(photo)[0].points, measures.FACE_PX)
    covered = aligned.copy()
    covered[68:] = (60, 110, 170)  # a mask, up to the tip of the nose
    assert measures.skin_share(aligned) > 0.9 and measures.skin_share(covered) < 0.6


def test_light_from_the_right_is_positive(aligned):
    ramp = np.linspace(0.3, 1, aligned.shape[1])[None, :, None]
    lit = (aligned * ramp).astype(np.uint8)
    assert measures.light_side(lit) > measures.light_side(aligned) + 0.15
    assert measures.light_side(lit[:, ::-1]) == pytest.approx(-measures.light_side(lit), abs=0.01)


def test_greyscale_has_no_colour(good_photo):
    grey = np.repeat(good_photo.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    assert measures.colourfulness(grey) == 0 and measures.colourfulness(good_photo) > 15


def test_colours_are_in_cielab():
    assert measures.to_lab(np.full((4, 4, 3), 255, np.uint8))[0] == pytest.approx([100, 0, 0], abs=0.5)
    red = measures.to_lab(np.full((4, 4, 3), (255, 0, 0), np.uint8))[0]
    assert red == pytest.approx([53.2, 80.1, 67.2], abs=1)  # sRGB red, CIE 1976


def test_a_lit_wall_is_plain_and_a_shelf_is_busy():
    wall = np.broadcast_to(np.linspace(60, 220, 400)[None, :, None], (300, 400, 3)).astype(np.uint8).copy()
    assert measures.backdrop_busy(wall) < 1
    assert measures.backdrop_busy(wall.transpose(1, 0, 2)) < 1
    wall[:, ::40] = 10
    wall[::40] = 10
    assert measures.backdrop_busy(wall) > 8


def test_clothes_are_seen_only_below_the_chin_and_without_the_neck():
    picture = np.full((400, 300, 3), 240, np.uint8)
    picture[:300, 100:200] = (200, 150, 130)  # face and neck
    picture[270:, 60:240] = (20, 40, 140)  # a blue shirt
    box = np.array([100, 100, 200, 220])
    light, a, b = measures.clothes_lab(picture, box)
    assert light < 35 and b < -40
    assert measures.clothes_lab(picture[:250], box) is None
    assert measures.clothes_lab(np.full((400, 300, 3), (200, 150, 130), np.uint8), box) is None


def test_the_hash_knows_a_picture_again(good_photo):
    image = Image.fromarray(good_photo)
    again = np.asarray(image.resize((500, 500)).filter(ImageFilter.GaussianBlur(1)))
    mirrored = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    first = measures.difference_hash(good_photo)
    assert (first != measures.difference_hash(again)).sum() <= 3
    assert (first != measures.difference_hash(mirrored)).sum() > 10
