"""What a picture shows: head direction, smile, light, framing, background, clothes; and that all its users agree."""

import numpy as np
import pytest
from conftest import P1, P2, open_picture
from PIL import Image

from headshotkit.core.records import Verdict
from headshotkit.dataset import captions
from headshotkit.faces import measures, recognition, traits
from headshotkit.photos import assess, coverage
from headshotkit.photos.files import open_photo
from headshotkit.scoring.adherence import shown_by


@pytest.fixture(scope="module")
def seen(good_photo):
    face = recognition.detect_faces(good_photo)[0]
    return face, recognition.landmarks_106(good_photo, face)


@pytest.fixture(scope="module")
def aligned(good_photo, seen):
    return recognition.align_face(good_photo, seen[0].points, measures.FACE_PX)


# --- head direction and smile -------------------------------------------------------------------------------------


def turned_head(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Landmarks of the average head, turned by degrees and seen from far away."""
    y, p, r = np.radians([yaw, pitch, roll])
    around_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    around_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    around_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = np.zeros((106, 2))
    points[list(traits.HEAD_POINTS)] = (traits.HEAD_CM @ (around_z @ around_y @ around_x).T)[:, :2] * 30 + 400
    return points


@pytest.mark.parametrize("yaw", [-60, -30, -10, 0, 10, 30, 60])
def test_yaw_is_told_to_the_degree_on_the_average_head(yaw):
    assert traits.head_pose(turned_head(yaw, 0, 0))[0] == pytest.approx(yaw, abs=0.01)


@pytest.mark.parametrize(("pitch", "roll"), [(-20, 0), (15, 0), (0, 30), (0, -40)])
def test_pitch_and_roll_have_their_signs(pitch, roll):
    found = traits.head_pose(turned_head(0, pitch, roll))
    assert found[1] + traits.LEVEL_PITCH_DEG == pytest.approx(pitch, abs=0.01)
    assert found[2] == pytest.approx(roll, abs=0.01)


def test_a_mirrored_photo_has_the_opposite_yaw():
    photo = np.asarray(open_picture(P1 / "p1_06.jpg"))
    yaws = []
    for image in (photo, np.ascontiguousarray(photo[:, ::-1])):
        yaws.append(traits.head_pose(recognition.landmarks_106(image, recognition.detect_faces(image)[0]))[0])
    assert yaws[0] > 12 and yaws[1] == pytest.approx(-yaws[0], abs=4)


def test_pose_does_not_depend_on_the_size_of_the_photo(good_photo, seen):
    _, points = seen
    small = np.asarray(Image.fromarray(good_photo).resize((384, 384)))
    again = recognition.landmarks_106(small, recognition.detect_faces(small)[0])
    assert np.abs(np.subtract(traits.head_pose(points), traits.head_pose(again))).max() < 4


def test_a_wider_mouth_is_rated_higher():
    """Five points with eyes 40 px apart; the mouth's width is what is rated."""
    rated = [
        traits.smile(np.array([[30, 40], [70, 40], [50, 60], [50 - w / 2, 80], [50 + w / 2, 80]]))
        for w in (20, 31, 33.9, 34.1, 37, 50)
    ]
    assert rated == sorted(rated) and rated[0] == 0 and rated[2] < traits.SMILE < rated[3] and rated[-1] == 1


# --- light, framing, background, clothes --------------------------------------------------------------------------


def test_brightness_and_clipping_follow_the_exposure(aligned):
    assert traits.brightness((aligned * 0.2).astype(np.uint8)) < 50 < traits.brightness(aligned)
    white = np.full_like(aligned, 255)
    assert traits.clipped(white) == 1.0 and traits.clipped((aligned * 0.5).astype(np.uint8)) == 0.0


def test_light_from_the_right_is_positive(aligned):
    ramp = np.linspace(0.3, 1, aligned.shape[1])[None, :, None]
    lit = (aligned * ramp).astype(np.uint8)
    assert traits.light_side(lit) > traits.light_side(aligned) + 0.15
    assert traits.light_side(lit[:, ::-1]) == pytest.approx(-traits.light_side(lit), abs=0.01)


def test_colours_are_in_cielab():
    assert traits.to_lab(np.full((4, 4, 3), 255, np.uint8))[0] == pytest.approx([100, 0, 0], abs=0.5)
    red = traits.to_lab(np.full((4, 4, 3), (255, 0, 0), np.uint8))[0]
    assert red == pytest.approx([53.2, 80.1, 67.2], abs=1)  # sRGB red, CIE 1976


def test_a_lit_wall_is_plain_and_a_shelf_is_busy():
    wall = np.broadcast_to(np.linspace(60, 220, 400)[None, :, None], (300, 400, 3)).astype(np.uint8).copy()
    assert traits.background(wall).busy < 1
    assert traits.background(wall.transpose(1, 0, 2)).busy < 1
    wall[:, ::40] = 10
    wall[::40] = 10
    assert traits.background(wall).busy > 8


def test_clothes_are_seen_only_below_the_chin_and_without_the_neck():
    picture = np.full((400, 300, 3), 240, np.uint8)
    picture[:300, 100:200] = (200, 150, 130)  # face and neck
    picture[270:, 60:240] = (20, 40, 140)  # a blue shirt
    box = np.array([100, 100, 200, 220])
    worn = traits.clothes(picture, box)
    assert worn.lab[0] < 35 and worn.lab[2] < -40 and worn.share > 0.85
    assert traits.clothes(picture[:250], box) is None
    assert traits.clothes(np.full((400, 300, 3), (200, 150, 130), np.uint8), box) is None


@pytest.mark.parametrize("exposure", [0.3, 0.6, 1.0])
def test_side_light_does_not_depend_on_the_exposure(aligned, exposure):
    lit = aligned * np.linspace(0.5, 1, aligned.shape[1])[None, :, None]
    assert traits.light_side((lit * exposure).astype(np.uint8)) == pytest.approx(traits.light_side(lit), abs=0.01)


def test_dark_skin_in_good_light_is_not_in_dim_light():
    assert traits.is_dim(60, 169) and not traits.is_dim(60, 230) and not traits.is_dim(90, 169)
    assert traits.is_dim(47, None) and not traits.is_dim(60, None), "an earlier version's photo has no highlights"
    picture = np.full((300, 200, 3), 40, np.uint8)
    picture[:30] = 250
    assert traits.highlights(picture) == pytest.approx(250, abs=1) and traits.highlights(picture[30:]) < 41


def test_the_height_of_the_picture_decides_the_framing():
    """A tall picture shows more of the body than a square one of its width."""
    box = np.array([20, 10, 60, 60])
    square, tall = np.zeros((100, 100, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)
    assert (traits.face_height(box, square), traits.face_height(box, tall)) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("paint", "colour"),
    [((250, 250, 250), "white"), ((200, 202, 200), "grey"), ((120, 120, 122), "grey"), ((12, 12, 14), "dark"),
     ((60, 140, 70), "")],
)  # fmt: skip
def test_a_wall_has_a_colour_and_two_walls_are_not_plain(paint, colour):
    wall = np.full((90, 90, 3), paint, np.uint8)
    assert traits.background(wall).colour == colour and traits.background(wall).is_plain
    wall[:, 45:] = (220, 60, 60)
    assert not traits.background(wall).is_plain


@pytest.mark.parametrize(
    "lab, name",
    [
        ([100, 0, 0], "white"), ([0, 0, 0], "black"), ([53.6, 0, 0], "grey"), ([53.2, 80.1, 67.2], "red"),
        ([32.3, 79.2, -107.9], "blue"), ([13, 47.5, -64.7], "dark blue"), ([14, 5, -12], "black"),
            ([20, 25, -50], "dark blue"),
        ([79.2, -14.8, -21.3], "light blue"), ([46.2, -51.7, 49.9], "green"), ([97.1, -21.6, 94.5], "light yellow"),
        ([74.9, 23.9, 79], "orange"), ([83.6, 24.1, 3.3], "light pink"), ([29.8, 58.9, -36.5], "dark purple"),
        ([37.5, 26.4, 41], "brown"), ([25.5, 48, 38], "dark red"), ([35, 18, 22], "brown"), ([95, -4, 12], "beige"),
            ([48.3, -28.8, -8.5], "turquoise"),
    ],
)  # fmt: skip
def test_colour_names(lab, name):
    assert traits.colour_name(lab) == name


# --- one measure, whatever the words ------------------------------------------------------------------------------

PHOTOS = (*(P1 / f"p1_{n}.jpg" for n in ("06", "07", "13")), *(P2 / f"p2_{n}.jpg" for n in ("08", "13")))


@pytest.mark.parametrize("file", PHOTOS, ids=lambda file: file.stem)
def test_captions_coverage_and_adherence_agree_about_a_photo(file):
    image, found = np.asarray(open_picture(file)), assess.measure_photo(open_photo(file, assess.LEAST_PX)).measures
    face = recognition.detect_faces(image)[0]
    (covered,) = coverage.shown_by([Verdict(file.name, True, (), found)])
    shown = shown_by(image, face.points, recognition.landmarks_106(image, face))
    direction = captions.direction(found["yaw_deg"]).removeprefix("looking ").removeprefix("at the ")
    assert direction in ("", shown["direction"])
    assert covered["pose"] in ("front", "up or down", shown["direction"])
    word = {"smile": "smiling", "neutral": "neutral"}[shown["expression"]]
    assert covered["expression"] == word and captions.expression(face.points).split(" ")[0] in ("", word)
    backdrop = captions.backdrop(image)
    assert backdrop in ("", captions.BACKDROPS.get(shown["background"]))
    assert backdrop in ("", captions.BACKDROPS["dark"]) or covered["background"].startswith("plain")
    aligned = recognition.align_face(image, face.points, measures.FACE_PX)
    assert captions.light(image, aligned) != "side light" or covered["light"].startswith("from the ")


def test_the_limits_of_traits_stand_in_one_place():
    limits = {name for name in vars(traits) if name.isupper() and isinstance(getattr(traits, name), float)}
    assert len(limits) >= 20
    assert not limits & {*vars(captions), *vars(coverage), *vars(assess)}
