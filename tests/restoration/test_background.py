"""The background behind a person, with planted mattes, and with MODNet where its weights are."""

import numpy as np
import pytest
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.faces import recognition
from headshotkit.restoration import background
from headshotkit.restoration.background import COLOURS, change_backgrounds, find_modnet, matte_of, replaced


def halves() -> tuple[np.ndarray, np.ndarray]:
    """A picture whose left half is the person, and its matte, soft over some pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    matte = np.clip((70 - np.arange(128)) / 12, 0, 1).astype(np.float32)
    return picture, np.tile(matte, (128, 1))


@pytest.mark.parametrize("kind", ["blur", *COLOURS])
def test_the_persons_pixels_stay_and_the_background_changes(kind):
    picture, matte = halves()
    made = replaced(picture, matte, kind)
    assert np.array_equal(made[matte == 1], picture[matte == 1])
    behind = made[:, 100:].astype(float)
    if kind == "blur":
        assert behind.std() < 0.5 * picture[:, 100:].std()
    else:
        assert np.abs(behind - COLOURS[kind]).max() < 1


def test_the_old_background_leaves_no_rim():
    """A dark person before a green wall gets a white background: no pixel of the edge is green."""
    _, matte = halves()
    dark, green = np.float32([30, 30, 30]), np.float32([20, 220, 20])
    picture = (dark * matte[..., None] + green * (1 - matte[..., None])).astype(np.uint8)
    made = replaced(picture, matte, "white").astype(int)
    greenness = made[..., 1] - made[..., [0, 2]].mean(-1)
    assert greenness.max() < 30


def test_without_weights_the_pictures_stay_and_the_facts_say_what_is_missing(tmp_path):
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("none.onnx", "empty.onnx"):
        config = RestoreConfig(background="blur", matting_weights=str(tmp_path / name))
        facts = change_backgrounds(tmp_path, ["a.png"], config)
        assert len(facts["background_missing"]) == 2 and (tmp_path / "a.png").read_bytes() == before
    assert change_backgrounds(tmp_path, ["a.png"], RestoreConfig()) == {}


def test_modnet_finds_the_person_and_a_second_pass_changes_nothing(tmp_path, good_photo):
    weights, _ = find_modnet(RestoreConfig())
    if weights is None:
        pytest.skip(f"MODNet's weights are not here: {background.PIP}")
    matte = matte_of(good_photo, weights)
    x, y = recognition.detect_faces(good_photo)[0].points[2].astype(int)
    assert matte.shape == good_photo.shape[:2] and matte[y, x] > 0.95 and matte[:20, :20].mean() < 0.2
    Image.fromarray(good_photo).save(tmp_path / "a.png")
    config = RestoreConfig(background="navy")
    assert change_backgrounds(tmp_path, ["a.png"], config)["background"][0]["background"] == "navy"
    once = (tmp_path / "a.png").read_bytes()
    change_backgrounds(tmp_path, ["a.png"], config)
    assert (tmp_path / "a.png").read_bytes() == once
