"""A LoRA in a network, and in files as diffusers reads and writes them; checks that a file fits completely."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, import_utils
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from headshotkit.config.bases import Base
from headshotkit.core.errors import BadLora
from headshotkit.core.finite import demand_finite, spoilt
from headshotkit.families import weighing
from headshotkit.families.loading import quiet

ADAPTER = "person"
"""Peft's name for the LoRA."""
CONFIG_KEPT = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
"""Settings of peft that a file holds even at their defaults; diffusers 0.39 reads the last two from it."""
RAISING_CHECKS = ("is_torchao_available", "is_gptqmodel_available")
"""Peft's checks for a quantization package that raise an error if it is too old, instead of returning False."""


def answer_for_old_packages() -> list[str]:
    """Make peft treat a quantization package that is too old for it as absent; return the checks changed.

    Peft checks these packages at each layer that gets a LoRA, quantized or not. Colab preinstalls such a torchao, and
    nothing here quantizes with it. The modules of peft hold the checks by name, so each of them is changed.
    """
    changed = []
    for name in RAISING_CHECKS:
        check = getattr(import_utils, name)
        try:
            check()
        except ImportError:
            modules = [module for place, module in sys.modules.items() if place.split(".")[0] == "peft"]
            for module in modules:
                if vars(module).get(name) is check:
                    setattr(module, name, lambda: False)
            changed.append(name)
    return changed


answer_for_old_packages()  # here, as every module that gives a network a LoRA imports this one


def put_lora(network: torch.nn.Module, config: LoraConfig, seed: int) -> list[torch.nn.Parameter]:
    """Put a new LoRA, drawn from the seed, into a network; return its parameters, float32.

    Raises:
        NotEnoughMemory: the host can't hold it with gradients and optimizer state.
    """
    count, device = lora_numbers(network, config), next(network.parameters()).device.type
    weighing.demand_room_for_trained(count, f"a LoRA of rank {config.r}", device, "Choose a smaller --rank.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, ADAPTER)
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def lora_numbers(network: torch.nn.Module, config: LoraConfig) -> int:
    """Return the number of values in a LoRA for a network: A (rank, in) and B (out, rank) of each layer."""
    layers = [
        layer.weight
        for name, layer in network.named_modules()
        if any(f".{name}".endswith(f".{target}") for target in config.target_modules) and hasattr(layer, "weight")
    ]
    return config.r * sum(weight[0].numel() + len(weight) for weight in layers)


def lora_tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the LoRA's current tensors by their names in the network, on the CPU."""
    state = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def load_lora_tensors(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load tensors from `lora_tensors`."""
    set_peft_model_state_dict(network, state, adapter_name=ADAPTER)


def lora_bytes(network: torch.nn.Module, prefix: str, metadata: dict[str, str]) -> bytes:
    """Return a LoRA as a safetensors file; its header also holds peft's own config, which restores rank and alpha.

    The config holds only what differs from peft's defaults: an older peft, such as Colab's, refuses a file with unknown
    settings (0.20.0 did with the header of 0.21.2).

    Args:
        network: the one with the LoRA.
        prefix: diffusers' prefix of the names, such as "transformer.".
        metadata: more for the header.
    Raises:
        NotFinite: it holds NaN or infinity.
    """
    config, usual = network.peft_config[ADAPTER].to_dict(), LoraConfig().to_dict()
    stored = {name: value for name, value in config.items() if name in CONFIG_KEPT or value != usual[name]}
    known = {f"{prefix}{name}": sorted(value) if isinstance(value, set) else value for name, value in stored.items()}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(known, default=str, sort_keys=True)}
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in lora_tensors(network).items()}
    demand_finite(tensors)
    return file_bytes(tensors, header | metadata)


def file_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file whose bytes depend only on its content; the library orders metadata at random."""
    data = save(tensors, metadata=metadata)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[start:]])


def check_fits(path: Path, network: torch.nn.Module, base: Base) -> None:
    """Refuse a file with a tensor that has no layer, as diffusers would load the rest and only log it.

    Raises:
        BadLora: it was trained on another base, is not a LoRA, or is damaged.
    """
    layers = dict(network.named_modules())
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        strange = [name for name, shape in shapes.items() if not _fits(name, shape, base.spec.lora_prefix, layers)]
        problem = f"{len(strange)} of {len(shapes)} tensors fit no layer: {', '.join(strange[:2])}"
    except (OSError, SafetensorError) as error:
        shapes, strange, problem = {}, [], str(error).splitlines()[0][:200]
    if strange or not shapes:
        raise does_not_fit(path, base, problem)


def load_lora_file(pipeline: DiffusionPipeline, path: Path, scale: float, base: Base) -> None:
    """Load the LoRA of a file into a pipeline at `scale`.

    Raises:
        BadLora: diffusers or peft can't read it, it fits only in part, or it holds NaN or infinity.
    """
    try:
        names = spoilt(load_file(path))
        if names:
            raise ValueError(f"{len(names)} of its tensors hold NaN or infinity: {', '.join(names[:2])}")
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # peft only warns if a LoRA fits in part
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER)
        pipeline.set_adapters([ADAPTER], [scale])
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, RuntimeWarning) as error:
        said = (str(one).splitlines()[0][:200] for one in (error, error.__cause__) if one and str(one))
        raise does_not_fit(path, base, " ".join(said)) from error


def does_not_fit(path: Path, base: Base, problem: str) -> BadLora:
    """Return the error for a file that a base can't load."""
    return BadLora(
        f"{path} can't be loaded on base {base.name!r}.",
        f"It was trained on another base, or is damaged: {problem}",
        "Render with the base it was trained on, or train again.",
    )


def _fits(name: str, shape: list[int], prefix: str, layers: dict[str, torch.nn.Module]) -> bool:
    """Return whether a LoRA's tensor, A (rank, in) or B (out, rank), belongs to a linear layer of that width."""
    place, _, half = name.removesuffix(".weight").rpartition(".lora_")
    layer = layers.get(place.removeprefix(prefix))
    if not name.startswith(prefix) or half not in ("A", "B") or not hasattr(layer, "in_features"):
        return False
    return shape[1] == layer.in_features if half == "A" else shape[0] == layer.out_features
