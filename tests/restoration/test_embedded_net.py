import numpy as np
import pytest
import torch
from conftest import P1, open_picture
from safetensors.torch import load_file, save_file

from headshotkit.core.errors import BadWeights
from headshotkit.faces import colours, recognition
from headshotkit.restoration import embedded, embedded_net
from headshotkit.restoration.embedded_net import (
    FACE_POINTS,
    MAPS,
    PERSON,
    FaceMaps,
    FaceRestorer,
    load_restorer,
    person_vector,
    save_restorer,
)

POINTS = torch.from_numpy(FACE_POINTS * 14 + 16)[None]
"""A face in the middle of a picture of 32 px."""


@pytest.fixture(scope="module")
def random_net() -> FaceRestorer:
    """A small network with random weights: it proves plumbing only."""
    torch.manual_seed(1)
    net = FaceRestorer((8, 16), (8, 8), code=8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.fixture
def folder(random_net, tmp_path):
    save_restorer(random_net, tmp_path / "net")
    return tmp_path / "net"


def test_an_untrained_network_enlarges_and_takes_half_of_the_photos_detail():
    """So training begins with a picture of the person, and what is not known of the photo changes nothing."""
    pixels, person = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(1, PERSON)
    photo = torch.rand(1, 3, 128, 128) * 0.9 + 0.1
    photo[..., :40] = 0
    net = FaceRestorer((8, 16), (8, 8), code=8)
    with torch.no_grad():
        alone, made = (net(pixels, person, POINTS, seen) for seen in (torch.zeros_like(photo), photo))
    enlarged = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bicubic", align_corners=False)
    assert torch.equal(alone, enlarged) and torch.allclose(made[..., :36], enlarged[..., :36], atol=1e-6)
    inner = (..., slice(64, None))
    finest = [embedded_net._bands(picture)[0] for picture in (enlarged, made, photo)]
    assert torch.allclose((finest[0] + finest[2])[inner] / 2, finest[1][inner], atol=0.05)


def test_weights_come_back_from_their_folder(random_net, folder):
    loaded, pixels, person = load_restorer(folder), torch.rand(1, 3, 32, 32), torch.randn(1, PERSON)
    photo = torch.rand(1, 3, 64, 64) * 2 - 1
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        made = loaded(pixels, person, POINTS, photo)
        assert torch.allclose(made, random_net(pixels, person, POINTS, photo), rtol=0.02, atol=0.05)
        nowhere = POINTS * torch.nan
        for other in (
            (-person, POINTS, photo),
            (person, POINTS + 3, photo),
            (person, nowhere, photo),
            (person, POINTS, -photo),
        ):
            assert (made - loaded(pixels, *other)).abs().max() > 0.02


def test_maps_lie_under_the_face():
    """Wherever it is, however large it is, and however it is turned; nowhere if no face is known."""
    torch.manual_seed(2)
    maps, code = FaceMaps(4), torch.zeros(1, 4)
    torch.nn.init.normal_(maps.maps)
    turned = POINTS.flip(2) * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 31.0])  # by 90 degrees
    with torch.no_grad():
        at, moved, larger, quarter, nowhere = (
            maps(code, points, (32, 32), 1)
            for points in (POINTS, POINTS + 4, POINTS * 2 + 0.5, turned, POINTS * torch.nan)
        )
        doubled = maps(code, POINTS * 2 + 0.5, (32, 32), 2)
    assert at.shape == (1, MAPS, 32, 32) and at.std() > 0.3
    assert torch.allclose(moved[..., 4:, 4:], at[..., :-4, :-4], atol=1e-4)
    assert torch.allclose(doubled, at, atol=1e-4) and not torch.allclose(larger, at, atol=0.1)
    assert torch.allclose(quarter, at.rot90(1, (2, 3)), atol=1e-4)
    assert not nowhere.any()


def spoil(folder, how: str) -> None:
    weights, config = folder / embedded_net.WEIGHTS, folder / embedded_net.CONFIG
    if how == "missing":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "pickled":
        torch.save({"a": torch.zeros(2)}, weights)
    elif how == "other sizes":
        config.write_text(config.read_text().replace('"code": 8', '"code": 16'))
    elif how == "no config":
        config.unlink()
    elif how == "newer":
        config.write_text(config.read_text().replace('"version": 2', '"version": 99'))
    elif how == "too few":
        save_file(dict(list(load_file(weights).items())[1:]), weights)
    elif how == "not finite":
        state = load_file(weights)
        state["leave.bias"][0] = float("nan")
        save_file(state, weights)


@pytest.mark.parametrize(
    "how", ["missing", "truncated", "pickled", "other sizes", "no config", "newer", "too few", "not finite"]
)
def test_other_files_are_refused(folder, how):
    spoil(folder, how)
    with pytest.raises(BadWeights):
        load_restorer(folder)


def test_a_person_is_the_mean_embedding_and_the_median_colours():
    photos = [np.asarray(open_picture(P1 / name)) for name in ("p1_09.jpg", "p1_14.jpg", "p1_16.jpg")]
    arcface = recognition.load_recogniser("arcface")
    embeddings = np.stack([arcface.embed(photo, recognition.detect_faces(photo)[0]) for photo in photos])
    vector = person_vector(photos, embeddings)
    assert vector.shape == (PERSON,) and vector.dtype == np.float32
    mean = embeddings.mean(0) / np.linalg.norm(embeddings.mean(0))
    assert np.allclose(vector[:512] / 512**0.5, mean, atol=1e-5)
    assert vector[[515, 519]].tolist() == [1, 1]
    assert not np.array_equal(person_vector(photos[:1], embeddings)[512:], vector[512:])


def test_colours_that_nobody_knows_are_zeros():
    blank = np.zeros((64, 64, 3), np.uint8)
    vector = person_vector([blank], np.ones((1, 512), np.float32))
    assert vector[512:].tolist() == [0] * 8 and np.allclose(vector[:512], 1)


def test_irises_get_another_colour_and_nothing_else_changes():
    photo = np.asarray(open_picture(P1 / "p1_09.jpg"))
    (face,) = recognition.detect_faces(photo)
    marks, wanted = recognition.landmarks_106(photo, face), np.float32([20, -5, -15])
    before = colours.iris_colour(photo, marks)
    made = embedded.with_eye_colour(photo, face, wanted)
    after = colours.iris_colour(made, marks)
    assert np.abs(after - wanted)[1:].max() < 3 and abs(after[0] - (before[0] + wanted[0]) / 2) < 3
    centres = marks[list(colours.IRIS_CENTRES)]
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    away = np.min([np.hypot(x - cx, y - cy) for cx, cy in centres], axis=0) / np.linalg.norm(centres[1] - centres[0])
    assert np.array_equal(made[away > embedded.IRIS[1]], photo[away > embedded.IRIS[1]])
    dark = (photo * 0.2).astype(np.uint8)
    lit = embedded.with_eye_colour(dark, face, np.float32([40, -5, -15]))
    gained = [colours.iris_colour(picture, marks)[0] for picture in (lit, dark)]
    assert 0 <= gained[0] - gained[1] < 6, "eyes don't glow in the dark"
    blank = np.full_like(photo, 90)
    assert embedded.with_eye_colour(blank, face, colours.to_lab(np.uint8([[90, 90, 90]]))[0]).std() < 1
