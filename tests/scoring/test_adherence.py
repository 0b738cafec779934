"""What a prompt asks and a picture shows, on photos of the sample person whose names say what they show, and paint."""

import numpy as np
import pytest
from conftest import P1, open_picture

from headshotkit.config import GenerateConfig
from headshotkit.faces import recognition
from headshotkit.generation.prompts import load_prompts
from headshotkit.scoring.adherence import asked_of, prompt_adherence, shown_by
from headshotkit.scoring.identity import Person, calibrate, judge_headshot


def marks_of(image):
    face = recognition.detect_faces(image)[0]
    return face.points, recognition.landmarks_106(image, face)


@pytest.fixture(scope="module")
def seen(good_photo):
    """The sample photo with the five points and the landmarks of its face."""
    return good_photo, *marks_of(good_photo)


def test_every_prompt_of_the_bank_asks_for_a_direction_and_an_expression():
    asked = [asked_of(prompt.brief) for prompt in load_prompts()]
    assert all({"direction", "expression"} <= set(one) for one in asked)
    assert {one.get("background") for one in asked} == {None, "white", "grey", "dark"}


@pytest.mark.parametrize(
    "paint, word",
    [((250, 250, 250), "white"), ((120, 120, 122), "grey"), ((12, 12, 14), "dark"), ((60, 140, 70), "other")],
)
def test_the_background_is_told_by_the_upper_corners(seen, paint, word):
    image = seen[0].copy()
    image[: len(image) // 3, : image.shape[1] // 8] = paint
    image[: len(image) // 3, -image.shape[1] // 8 :] = paint
    assert shown_by(image, *seen[1:])["background"] == word


def test_a_face_that_smiles_to_the_right_smiles_to_the_left_when_mirrored():
    image = np.asarray(open_picture(P1 / "p1_06.jpg"))
    for picture, side in ((image, "right"), (image[:, ::-1].copy(), "left")):
        shown = shown_by(picture, *marks_of(picture))
        assert (shown["direction"], shown["expression"]) == (side, "smile")


def test_shares_count_what_is_asked_alone():
    shown = {"direction": "left", "expression": "smile", "background": "grey"}
    assert prompt_adherence({}, shown) is None
    assert prompt_adherence({"direction": "right"}, shown) == 0
    assert prompt_adherence({"direction": "left", "background": "white"}, shown) == 0.5


def test_the_gate_reports_it_and_decides_nothing_by_it(seen):
    image = seen[0]
    embedding = recognition.load_recogniser("arcface").embed(image, recognition.detect_faces(image)[0])
    config = GenerateConfig.for_base("mini", max_copy=1.0)
    person = Person(embedding, calibrate(np.stack([embedding] * 3), config), ())
    shown = shown_by(image, *seen[1:])
    lines = [
        judge_headshot(image, person, config, asked) for asked in (None, shown, {axis: "not it" for axis in shown})
    ]
    assert [one.adherence for one in lines] == [None, 1.0, 0.0] and len({one.accepted for one in lines}) == 1
