"""Enlarging for print. The network's weights are random or set by hand: they prove loading, tiles and sizes only."""

import numpy as np
import pytest
import torch
from codeformer_weights import saved
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.core.errors import BadWeights
from headshotkit.faces import recognition
from headshotkit.restoration.printing import enlarge
from headshotkit.restoration.upscaling import MARGIN_PX, TILE_PX, Upscaler, load_upscaler, upscale


@pytest.mark.parametrize(("shape", "made"), [((512, 512), (2048, 2048)), ((1152, 896), (2048, 1593)), ((3, 2), (9, 6))])
def test_the_longer_side_gets_the_size_and_the_shape_stays(shape, made):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert upscale(picture, max(made)).shape == (*made, 3)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Upscaler(1, 8, 4)


@pytest.mark.parametrize("channels", [3, 12])
def test_weights_of_every_size_are_loaded_strictly_from_a_file(tmp_path, channels):
    torch.manual_seed(0)
    net = Upscaler(2, 8, 4, channels)
    (tmp_path / "net.pth").write_bytes(saved({"params_ema": net.state_dict()}))
    loaded = load_upscaler(tmp_path / "net.pth")
    pixels = torch.rand(1, 3, 10, 12)
    with torch.no_grad():
        assert torch.equal(loaded(pixels), net(pixels)) and loaded(pixels).shape[2:] == (10 * net.scale, 12 * net.scale)
    short = {name: tensor for name, tensor in net.state_dict().items() if name != "conv_hr.bias"}
    for data in (saved({"params_ema": short}), saved({"a": torch.zeros(1)}), b"", saved([1])):
        (tmp_path / "net.pth").write_bytes(data)
        with pytest.raises(BadWeights):
            load_upscaler(tmp_path / "net.pth")


def test_tiles_leave_no_seam(small):
    """A tile sees its neighbours for as far as this network looks, so a picture in tiles equals the whole."""
    side = TILE_PX + 40
    picture = np.random.default_rng(0).integers(0, 256, (side, side + 3, 3)).astype(np.uint8)
    pixels = torch.from_numpy(np.pad(picture, ((MARGIN_PX,) * 2, (MARGIN_PX,) * 2, (0, 0)), mode="edge"))
    with torch.no_grad():
        whole = small(pixels.permute(2, 0, 1)[None] / 255)[0].clamp(0, 1)
    whole = (whole.permute(1, 2, 0).numpy() * 255).round()[
        4 * MARGIN_PX : -4 * MARGIN_PX, 4 * MARGIN_PX : -4 * MARGIN_PX
    ]
    made = upscale(picture, 4 * (side + 3), small)
    assert made.shape == whole.shape and np.abs(made - whole).max() <= 1


def test_a_network_that_is_not_finite_is_an_error(small):
    torch.nn.init.constant_(small.conv_last.bias, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        upscale(np.zeros((8, 8, 3), np.uint8), 32, small)


@pytest.mark.parametrize("weights", ["random", "black"])
def test_the_networks_picture_is_kept_only_if_it_is_the_person(small, good_photo, weights):
    if weights == "black":
        torch.nn.init.zeros_(small.conv_last.weight)
    centre = recognition.load_recogniser("arcface").embed(good_photo, recognition.detect_faces(good_photo)[0])
    image = np.asarray(Image.fromarray(good_photo).resize((128, 128)))
    made, row = enlarge(image, RestoreConfig(print_px=512), small, centre)
    assert (row["by"], made.shape) == ("Lanczos", (512, 512, 3)) and row["why"]
