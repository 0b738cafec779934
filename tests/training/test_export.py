"""The exported LoRA: the same pictures, under the names that A1111 and ComfyUI look for.

ComfyUI's own loader (Comfy-Org/ComfyUI at a125cd84b054a57729b5eecab930ca9408719832, version 0.3.64) was run by hand on
2026-11-20 on the export of a real-size SDXL LoRA: it loaded all 2352 keys of its 784 layers, each pair fitted the
weight it was for, and that weight was the one that ComfyUI's own table has for the layer's name in diffusers.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import note_again
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load, load_file, save, save_file

from headshotkit.cli import main
from headshotkit.config import TrainConfig
from headshotkit.core.errors import BadConfig, BadLora, StageMissing
from headshotkit.core.run import Run, write_json
from headshotkit.families import Sampling, load_family
from headshotkit.families.lora_files import file_bytes
from headshotkit.families.sdxl import TARGETS
from headshotkit.families.sdxl_kohya import kohya_names
from headshotkit.training.export import export_lora, header_of
from headshotkit.training.train import train_lora


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


@pytest.fixture(scope="module", params=["attention", "all"])
def shaken_run(request, prepared, tmp_path_factory):
    """A LoRA of rank 8 and alpha 4 with random weights: it proves what a file carries, not that it is good."""
    run = Run(shutil.copytree(prepared, tmp_path_factory.mktemp("shaken") / "run"))
    config = TrainConfig.for_base("mini", rank=8, alpha=4, targets=request.param, steps=1, batch=1)
    file = run.path("lora") / train_lora(run, config).path
    generator = torch.Generator().manual_seed(0)
    tensors = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in load_file(file).items()}
    save_file(tensors, file, metadata=header_of(file))
    note_again(run, "lora")
    return run


def picture(family):
    return np.asarray(family.render(["photo of a man"], [""], [5], Sampling((256, 256), 4, 3.0))[0], np.int16)


def test_kohyas_file_gives_equal_pixels_by_diffusers_own_converter(shaken_run, family, tmp_path):
    family.use_lora(shaken_run.path("lora") / "person.safetensors", 1.0)
    wanted = picture(family)
    file = export_lora(shaken_run, tmp_path / "me.safetensors")
    family.use_lora(file, 1.0)
    assert (picture(family) == wanted).all()
    family.use_lora(file, 0.0)
    assert (picture(family) != wanted).mean() > 0.3
    assert header_of(file).keys().isdisjoint({"lora_adapter_metadata"})


def test_every_layer_becomes_three_tensors(shaken_run, tmp_path):
    trained = load_file(shaken_run.path("lora") / "person.safetensors")
    made = load_file(export_lora(shaken_run, tmp_path / "me.safetensors"))
    assert len(made) == len(trained) * 3 // 2
    assert {name.partition(".")[2] for name in made} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(name.startswith(("lora_unet_input_", "lora_unet_middle_", "lora_unet_output_")) for name in made)
    assert all(float(tensor) == 4.0 for name, tensor in made.items() if name.endswith(".alpha"))
    convolutions = [t for name, t in made.items() if name.endswith("in_layers_2.lora_down.weight")]
    assert all(t.shape[0] == 8 and t.shape[2:] == (3, 3) for t in convolutions)
    assert bool(convolutions) == any("conv1" in name for name in trained)


@pytest.fixture(scope="module")
def real_size_layers():
    """The layers of a LoRA on SDXL in its real size, whose tensors hold no data; and the U-Net's config."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        unet.add_adapter(LoraConfig(r=4, target_modules=TARGETS["all"]), "person")
    names = get_peft_model_state_dict(unet, adapter_name="person")
    return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in names)), unet.config


def test_real_size_names_are_kohyas(real_size_layers):
    """A few that kohya's SDXL trainer is known to write, from each kind of place; and none twice."""
    names = kohya_names(real_size_layers[0])
    assert len(names) == len(set(names.values())) == 784
    for layer, name in {
        "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0":
            "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
        "mid_block.resnets.0.time_emb_proj": "middle_block_0_emb_layers_1",
        "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
        "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
        "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj":
            "output_blocks_0_1_transformer_blocks_0_ff_net_0_proj",
        "up_blocks.1.attentions.2.proj_out": "output_blocks_5_1_proj_out",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks_8_0_skip_connection",
    }.items():  # fmt: skip
        assert names[layer] == f"lora_unet_{name}"


def test_diffusers_finds_every_real_size_layer_again(real_size_layers):
    layers, config = real_size_layers
    names = kohya_names(layers)
    file = {f"{name}.lora_{part}.weight": torch.zeros(1) for name in names.values() for part in ("down", "up")}
    found, _ = StableDiffusionXLPipeline.lora_state_dict(file, unet_config=config)
    found = convert_unet_state_dict_to_peft({name.removeprefix("unet."): t for name, t in found.items()})
    again = {name.rpartition(".lora_")[0].replace(".processor", "") for name in found}
    assert {layer.removesuffix(".0") for layer in again} == {layer.removesuffix(".0") for layer in layers}


def test_the_header_tells_a1111_what_it_is(shaken_run, tmp_path):
    header = header_of(export_lora(shaken_run, tmp_path / "me.safetensors"))
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["headshotkit.base"]) == ("8", "4", "mini")
    assert json.loads(header["ss_tag_frequency"])["ohwx"]["photo of ohwx man"] >= 1
    assert "ss_base_model_version" not in header, "the embedded base is no SDXL that A1111 could load"
    run = Run(shutil.copytree(shaken_run.folder, tmp_path / "run"))
    known = run.peek("lora")
    write_json(run.path("lora") / "manifest.json", known | {"lora": known["lora"] | {"base": "sdxl"}})
    header = header_of(export_lora(run, tmp_path / "me.safetensors"))
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["ss_sd_model_name"] == "SG161222/RealVisXL_V5.0"


def test_on_the_command_line(shaken_run, tmp_path, capsys):
    trained = shaken_run.path("lora") / "person.safetensors"
    assert main(["export", str(tmp_path), "--out", str(shaken_run.folder), "--format", "diffusers", "--json"]) == 0
    printed = capsys.readouterr()
    assert (tmp_path / "person.safetensors").read_bytes() == trained.read_bytes()
    assert json.loads(printed.out) == header_of(trained) and printed.err.startswith("export     ")
    assert main(["export", str(tmp_path / "me.safetensors"), "--out", str(shaken_run.folder)]) == 0
    assert "me.safetensors, kohya, " in capsys.readouterr().out
    assert main(["export", str(tmp_path / "me.pt"), "--out", str(shaken_run.folder)]) == 2
    assert "me.safetensors" in capsys.readouterr().err


def test_what_cannot_be_exported_is_said(shaken_run, tmp_path):
    with pytest.raises(StageMissing, match="check, prepare, train"):
        export_lora(Run(tmp_path / "nowhere"), tmp_path / "me.safetensors")
    with pytest.raises(BadConfig, match="format is 'onnx'"):
        export_lora(shaken_run, tmp_path / "me.safetensors", "onnx")
    for strange in ("text_model.layers.0", "down_blocks.0.resnets.0.norm1"):
        with pytest.raises(BadLora, match=f"1 of 2 layers .*{strange}"):
            kohya_names(["down_blocks.0.resnets.0.conv1", strange])
    assert not list(tmp_path.glob("*.safetensors"))


def test_equal_loras_are_equal_bytes():
    """Whatever order the library gives the header's parts; and the file stays one that it reads."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.float16)}
    metadata = {f"headshotkit.{letter}": f'"é" {letter}' for letter in "abcdefghijklm"} | {"format": "pt"}
    made = {file_bytes(tensors, dict(sorted(metadata.items(), reverse=bool(n % 2)))) for n in range(8)}
    assert len(made) == 1 and len({save(tensors, metadata) for _ in range(8)}) > 1
    read = load(made.pop())
    assert read.keys() == tensors.keys() and all(read[name].equal(tensors[name]) for name in read)


def test_the_header_of_equal_bytes_is_read_as_it_was_given(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(file_bytes({"a": torch.zeros(1)}, {"z": "é", "a": "1"}))
    assert header_of(tmp_path / "a.safetensors") == {"a": "1", "z": "é"}
