"""The layer names of SDXL's U-Net in kohya's trainer, and so in A1111 and ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Iterable

from headshotkit.core.errors import BadLora

KOHYA_VERSION = "sdxl_base_v1-0"
"""Kohya's name for SDXL in a file's header; A1111 reads a file whose header lacks it as SD 1."""
KOHYA_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
                "conv_shortcut": "skip_connection"}  # fmt: skip
LAYER = re.compile(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions)\.(\d+)\.(.+)")


def kohya_names(layers: Iterable[str]) -> dict[str, str]:
    """Return kohya's names for the U-Net's layers, which A1111 and ComfyUI look for: layer -> name.

    Stability's own code, which kohya follows, numbers the blocks consecutively: `input_blocks` are conv_in, then each
    down block's layers and its downsampler; `output_blocks` are the up blocks' layers. The number of layers a block is
    taken from the down blocks.

    Raises:
        BadLora: headshotkit trains no such layer.

    >>> names = kohya_names(["down_blocks.1.attentions.0.proj_in", "down_blocks.0.resnets.1.conv1"])
    >>> list(names.values())
    ['lora_unet_input_blocks_4_1_proj_in', 'lora_unet_input_blocks_2_0_in_layers_2']
    """
    found = {layer: LAYER.fullmatch(layer) for layer in layers}
    strange = [layer for layer, m in found.items() if not m or (m[3] == "resnets" and m[5] not in KOHYA_RESNET)]
    depths = [int(match[4]) + 1 for match in found.values() if match and match[1] == "down_blocks"]
    if strange or not depths:
        raise BadLora(
            f"{len(strange)} of {len(found)} layers have no name in kohya's naming: {', '.join(strange[:3])}.",
            "The file has layers outside of the attentions and resnets of an SDXL U-Net's blocks.",
            "Give a LoRA that headshotkit trained.",
        )
    return {layer: _kohya_name(match, max(depths)) for layer, match in found.items()}


def _kohya_name(match: re.Match, depth: int) -> str:
    """Return one layer's name, if a down block has `depth` layers."""
    place, block, kind, number, inner = match.groups()
    attention = kind == "attentions"
    if place == "mid_block":
        where = f"middle_block.{2 * int(number) + attention}"
    else:
        first, name = (1, "input_blocks") if place == "down_blocks" else (0, "output_blocks")
        where = f"{name}.{first + int(block) * (depth + 1) + int(number)}.{int(attention)}"
    return "lora_unet_" + f"{where}.{inner if attention else KOHYA_RESNET[inner]}".replace(".", "_")
