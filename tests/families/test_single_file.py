"""SDXL from a single file, against the same weights in a folder. A small SDXL of random weights: plumbing only."""

import json
import shutil

import counting
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from sdxl_files import original_names, small_sdxl
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from headshotkit.config.bases import find_base
from headshotkit.core.errors import BaseUnavailable, NotEnoughMemory
from headshotkit.families import Sampling, load_family, load_tokenizers, sdxl_single_file, weighing

PROMPTS = (["photo of a woman, smiling"], ["blurry"], [3], Sampling((128, 128), 3, 5.0))


@pytest.fixture(scope="module")
def pipeline():
    return small_sdxl()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """The small SDXL in diffusers' layout."""
    place = tmp_path_factory.mktemp("small") / "net"
    pipeline.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def file(pipeline, tmp_path_factory):
    """The same weights in a single file."""
    path = tmp_path_factory.mktemp("file") / "net.safetensors"
    save_file(original_names(pipeline), path)
    return path


@pytest.fixture
def small_layout(folder, tmp_path, monkeypatch):
    """The small one's configs in place of SDXL 1.0's."""
    place = tmp_path / "layout"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    monkeypatch.setattr(sdxl_single_file, "LAYOUT", place)
    return place


def test_a_single_file_draws_what_the_folder_draws(file, folder, small_layout):
    one, other = load_family(str(file)), load_family(str(folder))
    assert one.base.is_file and not other.base.is_file
    pictures = [family.render(*PROMPTS)[0] for family in (one, other)]
    assert pictures[0].tobytes() == pictures[1].tobytes() and len(set(pictures[0].tobytes())) > 20
    assert one.prompt_pieces("photo of ohwx man") == other.prompt_pieces("photo of ohwx man")
    drawn = one.pipeline.unet.state_dict()
    one.restore_unet()
    again = one.pipeline.unet.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in drawn.items() if tensor.device.type != "meta")
    assert one.render(*PROMPTS)[0].tobytes() == pictures[0].tobytes()


def test_a_single_file_says_that_it_predicts_velocity(pipeline, small_layout, tmp_path):
    """ComfyUI's marks: tensors without meaning but their names."""
    marked = original_names(pipeline) | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file(marked, tmp_path / "v.safetensors")
    config = load_family(str(tmp_path / "v.safetensors")).pipeline.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


def test_weights_of_other_sizes_are_refused(file):
    """The small one with the configs of SDXL 1.0, as they come with the package."""
    with pytest.raises(BaseUnavailable):
        load_family(str(file))


def test_the_tokenizers_of_a_single_file_come_with_the_package(file):
    assert [len(tokenizer) for tokenizer in load_tokenizers(str(file))] == [49408, 49408]


def test_the_layout_is_that_of_sdxl():
    """Parameters as published: the U-Net's 2.6 B, CLIP ViT-L's text part, OpenCLIP bigG's, and the autoencoder's."""
    place, sizes = str(sdxl_single_file.LAYOUT), []
    with torch.device("meta"):
        for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
            sizes.append(kind.from_config(kind.load_config(place, subfolder=part)))
        for kind, part in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")):
            sizes.append(kind(CLIPTextConfig.from_pretrained(place, subfolder=part)))
    counted = [sum(parameter.numel() for parameter in network.parameters()) for network in sizes]
    assert counted == [2_567_463_684, 83_653_863, 123_060_480, 694_659_840]
    unet = json.loads((sdxl_single_file.LAYOUT / "unet" / "config.json").read_text())
    assert {name: unet[name] for name in counting.UNET} == json.loads(json.dumps(counting.UNET))


def test_a_local_base_that_the_host_cannot_hold_is_refused_before_it_is_loaded(file, monkeypatch):
    numbers = find_base(str(file)).download_gb * 1e9 / 2
    monkeypatch.setattr("headshotkit.core.runtime.free_host_gib", lambda: numbers * 4 / 2**30 - 0.001)
    with pytest.raises(NotEnoughMemory):
        weighing.demand_room_for_base(find_base(str(file)), "cpu", 4)
    weighing.demand_room_for_base(find_base(str(file)), "cpu", 2)
