"""SDXL in files: a small one of random weights, its tensors under the names of a single file, and bare headers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from headshotkit.config.families import FAMILIES
from headshotkit.config.pretrained import FIRST_LAYER
from headshotkit.core import runtime

WIDTHS = (32, 48)
"""Widths of the two text encoders; diffusers tells them apart by it."""
LAYERS = 1
"""The U-Net's residual blocks a level."""
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP = {"embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm": "ln_final",
        "encoder.layers": "transformer.resblocks", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "self_attn": "attn"}  # fmt: skip


def write_header(path: Path, shapes: dict[str, list[int]], more: bytes = b"") -> Path:
    """Write a safetensors file of zeros: names -> shapes, float16."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end) + more)
    return path


def sdxl_names(channels: int = 4) -> dict[str, list[int]]:
    """Return one tensor of each part of SDXL in a single file; the U-Net reads that number of channels."""
    return {FIRST_LAYER: [8, channels, 3, 3]} | {f"{begin}x": [4] for begin in FAMILIES["sdxl"].file_parts.values()}


def small_sdxl() -> StableDiffusionXLPipeline:
    """Return a small SDXL of random weights, for pictures of 128 px. It proves plumbing only."""
    torch.manual_seed(0)
    common = {"vocab_size": 49408, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 0,
              "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    first, second = (
        CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, projection_dim=width, **common)
        for width in WIDTHS
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    place = runtime.data_path("mini", "base")
    pads = ("<|endoftext|>", "!")
    tokenizers = [CLIPTokenizer.from_pretrained(place, subfolder="tokenizer", pad_token=pad) for pad in pads]
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4, layers_per_block=1, scaling_factor=0.13,
                          **blocks),
        text_encoder=CLIPTextModel(first), text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        unet=UNet2DConditionModel(
            sample_size=32, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=LAYERS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4), norm_num_groups=8,
            cross_attention_dim=sum(WIDTHS), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                         steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )  # fmt: skip


def original_names(pipeline: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """Return a pipeline's tensors by their names in a single file: the inverse of diffusers' conversion."""
    made = {f"model.diffusion_model.{_unet_name(n)}": t for n, t in pipeline.unet.state_dict().items()}
    levels = len(pipeline.vae.config.block_out_channels)
    for name, tensor in pipeline.vae.state_dict().items():
        as_conv = ".attentions." in name and tensor.ndim == 2
        made[f"first_stage_model.{_vae_name(name, levels)}"] = tensor[:, :, None, None] if as_conv else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        made[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in (made | _open_clip(pipeline.text_encoder_2)).items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def _unet_name(name: str) -> str:
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = block * (LAYERS + 1) + (LAYERS if kind.endswith("samplers") else number) + (way == "down")
        begin = f"{'input' if way == 'down' else 'output'}_blocks.{place}"
        if kind == "downsamplers":
            return f"{begin}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":  # stands behind the attention, which only the lowest level has here
            return f"{begin}.2.{rest}"
        return f"{begin}.1.{rest}" if kind == "attentions" else f"{begin}.0.{_renamed(rest, RESNET)}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        if found[1] == "attentions":
            return f"middle_block.1.{found[3]}"
        return f"middle_block.{2 * int(found[2])}.{_renamed(found[3], RESNET)}"
    layer, _, kind = name.rpartition(".")
    return f"{UNET[layer]}.{kind}"


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    name = name.replace("down_blocks", "down").replace("samplers.0", "sample").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        return _renamed(name.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION)
    return name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut")


def _open_clip(encoder: CLIPTextModelWithProjection) -> dict[str, torch.Tensor]:
    made, together = {}, {}
    for name, tensor in encoder.state_dict().items():
        name = _renamed(name.removeprefix("text_model."), CLIP)
        if name == "text_projection.weight":
            made["text_projection"] = tensor.T
        elif found := re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", name):
            together.setdefault(f"{found[1]}.in_proj_{found[3]}", {})[found[2]] = tensor
        else:
            made[name] = tensor
    made |= {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in together.items()}
    return {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in made.items()}
