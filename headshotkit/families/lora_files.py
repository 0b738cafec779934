"""LoRA files as diffusers reads and writes them: what goes in, and whether all of one has a place in a network."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from headshotkit.bases import Base
from headshotkit.errors import BadLora


def lora_bytes(
    network: torch.nn.Module, adapter: str, prefix: str, state: dict[str, torch.Tensor], metadata: dict[str, str]
) -> bytes:
    """A LoRA as a safetensors file; its header also holds peft's own config, so that rank and alpha come back.

    Args:
        network: the one that the LoRA is in.
        adapter: peft's name of it.
        prefix: what diffusers puts before the names, such as "transformer.".
        state: the LoRA's tensors by their names in the network.
    """
    config = network.peft_config[adapter].to_dict()
    known = {f"{prefix}{name}": sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(known, default=str, sort_keys=True)}
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in state.items()}
    return save(tensors, metadata=header | metadata)


def check_fits(path: Path, prefix: str, network: torch.nn.Module, base: Base) -> None:
    """Refuses a file of which a tensor has no place, for diffusers would load the rest and only log it.

    Raises:
        BadLora: it was trained on another base, is no LoRA, or is damaged.
    """
    layers = dict(network.named_modules())
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        strange = [name for name, shape in shapes.items() if not _fits(name, shape, prefix, layers)]
        problem = f"{len(strange)} of {len(shapes)} tensors have no place: {', '.join(strange[:2])}"
    except (OSError, SafetensorError) as error:
        shapes, strange, problem = {}, [], str(error).splitlines()[0][:200]
    if strange or not shapes:
        raise BadLora(
            f"{path} can't be loaded on base {base.name!r}.",
            f"It was trained on another base, or is damaged: {problem}",
            "Render with the base it was trained on, or train again.",
        )


def _fits(name: str, shape: list[int], prefix: str, layers: dict[str, torch.nn.Module]) -> bool:
    """Whether a LoRA's tensor, A (rank, in) or B (out, rank), belongs to a linear layer of that width."""
    place, _, half = name.removesuffix(".weight").rpartition(".lora_")
    layer = layers.get(place.removeprefix(prefix))
    if not name.startswith(prefix) or half not in ("A", "B") or not hasattr(layer, "in_features"):
        return False
    return shape[1] == layer.in_features if half == "A" else shape[0] == layer.out_features
