"""Estimated cost of a training before its first step: numbers trained, minutes, GiB, MiB on the disk.

Bytes are exact: they follow from the number of trained parameters. Minutes come from measured steps of the embedded
base, or from the planner's rates and counted FLOPs of SDXL; if neither is known, the result says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headshotkit.config import GenerateConfig, TrainConfig
from headshotkit.config.bases import find_base
from headshotkit.core import runtime
from headshotkit.core.records import Record
from headshotkit.families.costs import (
    GIB,
    GPUS,
    MINI_METHOD_STEP_S,
    MINI_STEP_PICTURES,
    Rates,
    cost,
    rates_of,
    step_kind,
)
from headshotkit.planning.ladder import CONTEXT_GIB, SLACK, Task, drawing_minutes, picture_seconds

MIB = 2**20
FLOAT_BYTES = 4
ADAM_BYTES = {"adamw": 8, "adamw8bit": 2}
"""Bytes of an optimizer's state, for each trained parameter."""
COUNTED_PX = 1024


@dataclass(frozen=True)
class MethodCost(Record):
    """The cost of a training.

    `parameters`: trained numbers. `minutes`: None if no rate is known. `held_gib`: weights, gradients and
    optimizer state, exact. `peak_gib`: the planner's peak with activations, None if its cost was not counted.
    `left_mib`: on the disk in the end. `working_mib`: more while the training runs, for checkpoints.
    """

    method: str
    parameters: int
    minutes: float | None
    minutes_from: str
    held_gib: float
    peak_gib: float | None
    left_mib: float
    working_mib: float
    advice: str = ""

    def line(self) -> str:
        """Return the training's time in a sentence; the other figures are in the manifest."""
        if self.minutes is None:
            return f"Training by {self.method}: the time is printed after the first steps. {self.advice}".rstrip()
        takes = f"takes about {self.minutes:.1f} minutes, and ends at about {runtime.clock_in(self.minutes)}"
        return f"Training by {self.method} {takes}. {self.advice}".rstrip()


def expect_cost(method, groups: list[dict], optimizer: str, device: tuple[str, str], class_images: int) -> MethodCost:
    """Estimate the cost of a training that is about to begin.

    Args:
        method: the `families.methods.Method`, with everything loaded that stays.
        groups: its parameter groups.
        optimizer: its name, of ADAM_BYTES.
        device: the computing device and the reason for it, from `runtime.choose_device`.
        class_images: their number.
    """
    config: TrainConfig = method.config
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    state = ADAM_BYTES.get(optimizer, ADAM_BYTES["adamw"])
    held = method.loaded_bytes() + count * (FLOAT_BYTES + state)
    checkpoint = count * (FLOAT_BYTES * (2 if config.ema else 1) + state)
    minutes, source = expect_minutes(config, device, bool(class_images))
    peak = expect_peak_gib(config, count * state, bool(class_images))
    return MethodCost(
        config.method, count, minutes, source, round(held / GIB, 3), peak,
        round(count * method.bytes_each / MIB, 3), round(checkpoint * (config.keep_checkpoints + 1) / MIB, 1),
        _advice(config, class_images, _rates_on(device), peak),
    )  # fmt: skip


def _advice(config: TrainConfig, class_images: int, rates: Rates | None, peak_gib: float | None) -> str:
    """Return the objections to these settings; empty if there are none."""
    found = []
    if config.method == "dreambooth" and not class_images:
        found.append(
            "Without class images the base forgets other faces: headshotkit prepare --class-images 50 --out RUN"
        )
    if rates and peak_gib and peak_gib > rates.memory_gib > 0:
        found.append(f"More than the {rates.memory_gib:.1f} GiB of {rates.name}: choose --method lora or a larger GPU")
    return ". ".join(found)


def expect_minutes(config: TrainConfig, device: tuple[str, str], class_images: bool) -> tuple[float | None, str]:
    """Return the minutes of all steps, and the rate's source; (None, why) if no rate is known."""
    times = 2 if class_images else 1
    if config.base == "mini":
        if device[0] != "cpu":
            return None, "the embedded base was timed on a CPU only"
        seconds = MINI_METHOD_STEP_S[config.method]
        source = f"{seconds:.2f} s for a step of {MINI_STEP_PICTURES} pictures on a free core"
        return round(config.steps * seconds * config.batch / MINI_STEP_PICTURES * times / 60, 1), source
    rates = _rates_on(device)
    if rates is None or not find_base(config.base).counted:
        return None, "its speed is not known"
    seconds = rates.seconds("train", _cost(config).tflop)[0]
    return round(config.steps * seconds * times / 60, 1), f"planned for {rates.name} at {COUNTED_PX} px"


def _rates_on(device: tuple[str, str]) -> Rates | None:
    """Return the rates of the computing device; None if it is no CUDA GPU or its rates are not known."""
    kind, named = device
    return rates_of(named) if kind == "cuda" else None


def expect_peak_gib(config: TrainConfig, optimizer_bytes: int, prior: bool = False) -> float | None:
    """Return the GPU's peak at 1024 px with the planner's slack; None on the embedded base, which
    trains on a CPU, and for a base whose costs were not counted.

    Args:
        prior: whether class images are trained as well, so that two losses are held at once.
    """
    if config.base == "mini" or not find_base(config.base).counted:
        return None
    peak = _cost(config, 2 if prior else 1).peak_gib
    return round((peak + optimizer_bytes / GIB) * SLACK + CONTEXT_GIB, 1)


def _cost(config: TrainConfig, losses: int = 1):
    """Return the counted cost of a step at 1024 px that holds that number of losses at once."""
    family = find_base(config.base).family
    kind = step_kind(config.method, config.checkpointing, family)
    return cost(kind, COUNTED_PX, config.batch * losses, family)


def expect_drawing(pictures: int, config: GenerateConfig, device: tuple[str, str]) -> tuple[float | None, str]:
    """Return the minutes of loading the base and drawing, None if no rate is known, and the rate's source.

    Args:
        pictures: their number.
        config: the settings they are drawn with.
        device: the computing device and the reason for it, from `runtime.choose_device`.

    >>> minutes, source = expect_drawing(42, GenerateConfig.for_base("sdxl"), ("cuda", "Tesla T4"))
    >>> round(minutes), source
    (12, 'planned for t4')
    """
    mini = config.base == "mini"
    if mini and device[0] != "cpu":
        return None, "the embedded base was timed on a CPU only"
    rates = GPUS["cpu"] if mini else _rates_on(device)
    if rates is None or not find_base(config.base).counted:
        return None, "its speed is not known"
    task = Task(rates, config.base, pictures, math.inf, 0.0)
    share = config.guidance_share if config.guidance > 1 else 0.0
    seconds = picture_seconds(task, config.sampler_steps, share, words=mini and config.base_guidance > 1)
    return drawing_minutes(task, pictures, seconds)[0], f"planned for {rates.name}"


def say_drawing(title: str, pictures: int, config: GenerateConfig) -> None:
    """Print before a slow step how many pictures it draws, and about how long that takes."""
    minutes, source = expect_drawing(pictures, config, runtime.choose_device())
    words = (
        f"about {max(minutes, 0.1):.1f} minutes ({source})" if minutes is not None else f"minutes not known: {source}"
    )
    runtime.say(f"{title}: {pictures} to generate, {words}")
