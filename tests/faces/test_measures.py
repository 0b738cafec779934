import io

import cv2
import numpy as np
import pytest
from conftest import P1, P2, open_picture
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from headshotkit.config import CheckConfig
from headshotkit.faces import measures, recognition


@pytest.fixture(scope="module")
def aligned(good_photo):
    face = recognition.detect_faces(good_photo)[0]
    return recognition.align_face(good_photo, face.points, measures.FACE_PX)


def test_sharpness_falls_with_every_blur(aligned):
    blurred = [np.asarray(Image.fromarray(aligned).filter(ImageFilter.GaussianBlur(r))) for r in (0, 0.5, 1, 2, 4)]
    values = [measures.sharpness(x) for x in blurred]
    assert values == sorted(values, reverse=True) and values[0] > 4 * values[-1]


def test_sharpness_does_not_mistake_dim_light_for_blur(aligned):
    dim = (aligned * 0.5).astype(np.uint8)
    assert measures.sharpness(dim) == pytest.approx(measures.sharpness(aligned), rel=0.1)


def test_a_bar_over_the_eyes_shows(aligned):
    covered = aligned.copy()
    y = int(recognition.ARCFACE_TEMPLATE[0, 1] * len(covered))
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
        values.append(measures.blockiness(image, recognition.detect_faces(image)[0].box, 4 if halved else 8))
    assert values == sorted(values) and values[0] < 1.4 and values[2] > (1.5 if halved else 3)


def test_skin_share_falls_when_something_covers_the_face():
    photo = np.asarray(open_picture(P1 / "p1_04.jpg"))
    aligned = recognition.align_face(photo, recognition.detect_faces(photo)[0].points, measures.FACE_PX)
    covered = aligned.copy()
    covered[68:] = (60, 110, 170)  # a mask, up to the tip of the nose
    assert measures.skin_share(aligned) > 0.9 and measures.skin_share(covered) < 0.6


TINTS = {
    "grey": ("black", "white"), "sepia": ((0, 0, 0), (255, 221, 172)), "faded sepia": ((40, 25, 10), (255, 240, 200)),
    "blue": ((0, 0, 30), (210, 230, 255)),
}  # fmt: skip


@pytest.mark.parametrize("tint", TINTS)
@pytest.mark.parametrize("name", ["p1/p1_04", "p2/p2_04"])
def test_one_tint_has_no_hues(name, tint):
    photo = open_picture(P1.parent / f"{name}.jpg")
    buffer = io.BytesIO()
    ImageOps.colorize(photo.convert("L"), *TINTS[tint]).save(buffer, "JPEG", quality=85)
    points = recognition.detect_faces(np.asarray(photo))[0].points
    seen, tinted = (
        recognition.align_face(np.asarray(p), points, 128) for p in (photo, Image.open(buffer).convert("RGB"))
    )
    assert measures.hue_spread(tinted) < CheckConfig().min_hue_spread < 2.3 < measures.hue_spread(seen)


@pytest.mark.parametrize("dark, light", [((0, 80, 20), (255, 90, 220)), ((30, 20, 80), (30, 215, 96))])
def test_two_tints_have_no_hues_but_noise_that_brightness_does_not_explain(dark, light):
    """A strong JPEG makes pixels of one brightness differ more than skin does."""
    photo = open_picture(P2 / "p2_09.jpg")
    (face,) = recognition.detect_faces(np.asarray(photo))
    buffer = io.BytesIO()
    ImageOps.colorize(photo.convert("L"), dark, light).save(buffer, "JPEG", quality=40)
    tinted, plain = (recognition.align_face(np.asarray(Image.open(one).convert("RGB")), face.points, measures.FACE_PX)
                     for one in (buffer, P2 / "p2_09.jpg"))  # fmt: skip
    assert measures.hue_spread(tinted) < CheckConfig().min_hue_spread < measures.hue_spread(plain)


def test_hues_stay_in_low_light_and_where_light_is_warm(aligned):
    whole = measures.hue_spread(aligned)
    for light in ([0.3, 0.3, 0.3], [1, 0.8, 0.55], [0.4, 0.3, 0.2]):
        assert measures.hue_spread((aligned * light).astype(np.uint8)) > 0.6 * whole
    pale = (127 + (aligned.astype(float) - 127) * 0.3).round().astype(np.uint8)
    assert measures.hue_spread(pale) > 0.6 * whole
    assert measures.hue_spread(np.zeros_like(aligned)) is None


def test_a_face_in_the_dark_is_visible_by_its_contrast(aligned):
    assert measures.visible(aligned) == pytest.approx(measures.contrast(aligned))
    dim = (aligned * 0.3).astype(np.uint8)
    assert measures.visible(dim) == pytest.approx(measures.contrast(dim)) and measures.visible(dim) > 5
    assert measures.visible((aligned * 0.05).astype(np.uint8)) < 5
    pale = (200 + aligned * 0.02).astype(np.uint8)
    assert measures.visible(pale) > 5 > measures.contrast(pale)


def test_a_beard_is_not_a_light_bar_over_the_eyes(aligned):
    bearded = aligned.copy()
    bearded[82:, 24:104] = np.random.default_rng(0).normal(28, 8, (46, 80, 1)).clip(0, 255).astype(np.uint8)
    assert measures.eye_contrast(bearded) == pytest.approx(measures.eye_contrast(aligned), rel=0.25)
    eyes = aligned.copy()
    eyes[52:66, 28:100] = 255
    assert measures.eye_contrast((eyes * [0.9]).astype(np.uint8)) > measures.eye_contrast(bearded) + 0.2


@pytest.mark.parametrize("colour", [(20, 10, 10), (220, 120, 150), (30, 60, 200), (90, 50, 30)])
def test_a_drawn_nose_is_no_skin(colour):
    photo = open_picture(P1 / "p1_04.jpg")
    face = recognition.detect_faces(np.asarray(photo))[0]
    aligned = recognition.align_face(np.asarray(photo), face.points, 128)
    nose = recognition.ARCFACE_TEMPLATE[2] * 128
    drawn = Image.fromarray(aligned)
    ImageDraw.Draw(drawn).ellipse((nose[0] - 9, nose[1] - 5, nose[0] + 9, nose[1] + 8), fill=colour)
    assert measures.nose_free(np.asarray(drawn), nose) < 0.4 < 0.5 < measures.nose_free(aligned, nose)


def test_bars_are_plain_and_end_straight(good_photo):
    assert measures.bars(good_photo) == 0
    for pad in (((100, 100), (0, 0)), ((0, 0), (60, 90)), ((40, 180), (40, 40)), ((0, 150), (0, 0))):
        for fill in (0, 255, 90):
            framed = np.pad(good_photo, (*pad, (0, 0)), constant_values=fill)
            sides = [sorted(p[k] / n for k in (0, 1)) for p, n in zip(pad, framed.shape, strict=False)]
            least = max(high if high >= 1 / 12 else low for low, high in sides)
            buffer = io.BytesIO()
            Image.fromarray(framed).save(buffer, "JPEG", quality=80)
            assert measures.bars(np.asarray(Image.open(buffer))) == pytest.approx(least, abs=0.02)
    wall = np.full((400, 300, 3), 235, np.uint8)
    y, x = np.mgrid[:400, :300]
    wall[((x - 150) / 80) ** 2 + ((y - 260) / 200) ** 2 < 1] = (160, 120, 100)  # a head in front of a white wall
    assert measures.bars(wall) == 0 and measures.bars(np.full((40, 30, 3), 9, np.uint8)) == 0


def surrounded(photo: Image.Image, how: str) -> Image.Image:
    """Put something around a photo that belongs to no photo."""
    width, height = photo.size
    if how == "blurred copy":
        large = photo.resize((2 * width, 2 * height)).filter(ImageFilter.GaussianBlur(30))
        around = large.crop((0, height // 2, 2 * width, height + height // 2))
        around.paste(photo, (width // 2, 0))
    elif how == "picture frame":
        grain = np.random.default_rng(0).integers(60, 200, (height * 6 // 5, width * 6 // 5, 3)).astype(np.uint8)
        around = Image.fromarray(grain).filter(ImageFilter.GaussianBlur(2))
        around.paste(photo, (width // 10, height // 10))
    else:
        colour, words = {"app": ("white", "black"), "caption": ("black", "white")}[how]
        around = Image.new("RGB", (width, height * 3 // 2), colour)
        around.paste(photo, (0, height // 4))
        draw = ImageDraw.Draw(around)
        for line in (0.02, 0.12, 1.3, 1.4):
            draw.text((20, line * height), "somebody likes this photo", fill=words, font_size=height // 14)
    return around


@pytest.mark.parametrize("quality", [60, 75, 95])
@pytest.mark.parametrize("how", ["app", "caption", "picture frame", "blurred copy"])
def test_what_is_around_a_photo_is_a_bar_whatever_it_shows(how, quality):
    buffer = io.BytesIO()
    surrounded(open_picture(P1 / "p1_04.jpg"), how).save(buffer, "JPEG", quality=quality)
    assert 0.07 < measures.bars(np.asarray(Image.open(buffer))) < 0.3


def test_the_hash_knows_a_picture_again(good_photo):
    image = Image.fromarray(good_photo)
    again = np.asarray(image.resize((500, 500)).filter(ImageFilter.GaussianBlur(1)))
    mirrored = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    first = measures.difference_hash(good_photo)
    assert (first != measures.difference_hash(again)).sum() <= 3
    assert (first != measures.difference_hash(mirrored)).sum() > 10
