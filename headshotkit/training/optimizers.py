"""Choose a training's optimizer, with the reason, and the learning rate of each step."""

from __future__ import annotations

import math

import torch

from headshotkit.config import TrainConfig
from headshotkit.core import runtime
from headshotkit.families.costs import GIB
from headshotkit.planning.forecast import ADAM_BYTES, expect_peak_gib

WEIGHT_DECAY = 1e-2
FUSED = ("cuda", "cpu")
"""Devices on which torch updates all parameters at once: 2.5 ms instead of 7.3 for 200 matrices on a CPU core."""


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to zero.

    >>> config = TrainConfig(steps=100, warmup=0.1, learning_rate=1.0e-3)
    >>> [round(learning_rate_at(step, config), 6) for step in (0, 9, 55, 99)]
    [0.0001, 0.001, 0.0005, 0.0]
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(
    groups: list, config: TrainConfig, device: str, prior: bool = False, begun_with: str = ""
) -> tuple[torch.optim.Optimizer, str]:
    """Return the optimizer and why it was chosen: (optimizer, reason). 8-bit Adam's state takes a quarter of AdamW's.

    Args:
        groups: parameters, or groups of them as torch's optimizers take them.
        prior: whether class images are trained too.
        begun_with: the optimizer that the training began with; auto keeps it on a GPU, whatever memory is free now.
    Raises:
        MissingPackage: adamw8bit or prodigy was set, and its package is not installed.
    """
    name, reason = config.optimizer, "set by you"
    if name == "auto":
        parameters = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
        name, reason = _choose(sum(p.numel() for p in parameters), config, device, prior, begun_with)
    options = {"lr": config.learning_rate, "weight_decay": WEIGHT_DECAY}
    if name == "adamw8bit":
        made = runtime.require("bitsandbytes", "train").optim.AdamW8bit(groups, **options)
    elif name == "prodigy":  # adapts its step size, arXiv:2306.06101; options as its authors recommend
        prodigy = runtime.require("prodigyopt", "prodigy").Prodigy
        made = prodigy(groups, use_bias_correction=True, safeguard_warmup=True, **options)
    elif device in FUSED:
        made = torch.optim.AdamW(groups, fused=True, **options)
    else:
        made = torch.optim.AdamW(groups, **options)
        reason += f"; not fused, because torch may not have that on {device}"
    return made, f"{name}: {reason}"


def _choose(count: int, config: TrainConfig, device: str, prior: bool, begun_with: str) -> tuple[str, str]:
    """Return the optimizer for a number of trained parameters on a device, and why.

    8-bit Adam is for short memory: bitsandbytes waits for the GPU at each tensor, AdamW updates all at once.
    """
    if device != "cuda":
        return "adamw", f"8-bit Adam saves nothing on {device}"
    installed = runtime.has_module("bitsandbytes")
    if begun_with == "adamw" or (begun_with == "adamw8bit" and installed):
        return begun_with, "the training began with it"
    peak = expect_peak_gib(config, count * ADAM_BYTES["adamw"], prior)
    usable, saves = runtime.usable_gpu_gib(), count * (ADAM_BYTES["adamw"] - ADAM_BYTES["adamw8bit"]) / GIB
    if peak is None or usable is None:
        return "adamw", "the base is small"
    if peak <= usable:
        return "adamw", f"at most {peak:.1f} GiB are expected with it, {usable:.1f} are available"
    short = f"{peak:.1f} GiB are expected with AdamW, {usable:.1f} are available"
    if installed:
        return "adamw8bit", f"{short}; it saves {saves:.2f}"
    return (
        "adamw",
        f"{short}, but bitsandbytes is not installed; pip install 'headshotkit[train]' saves {saves:.2f} GiB",
    )
