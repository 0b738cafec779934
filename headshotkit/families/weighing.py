"""Checks of a request's memory against the host's before it is allocated.

A system kills a program that takes more than there is, mostly without a message. A GPU's memory is not checked here:
too large a request raises an exception there, and the stages continue with less.
"""

from __future__ import annotations

import math

from headshotkit.config import TrainConfig
from headshotkit.config.bases import Base
from headshotkit.core import runtime
from headshotkit.core.errors import NotEnoughMemory
from headshotkit.families.costs import GIB, MINI_DRAWING_GIB, MINI_STEP_GIB, cost, costs_of, step_kind

TRAINED_BYTES = 20
"""Bytes of each trained number on the host: itself, its gradient, AdamW's two averages, its copy for a checkpoint."""
COUNTED_PX, COUNTED_BYTES = 1024, 2
"""Picture size and bytes a number that `costs` counted with."""


def demand_room(what: str, gib: float, next_step: str) -> None:
    """Check that the host has memory for an allocation.

    Args:
        what: name of it, for the error.
        gib: its expected size.
    Raises:
        NotEnoughMemory: less is free; the error has both numbers.
    """
    free = runtime.free_host_gib()
    if free is not None and gib > free:
        raise NotEnoughMemory(
            f"{what} needs about {gib:.1f} GiB of memory, and {free:.1f} GiB are free.",
            "The operating system kills a program that uses more memory than there is.",
            next_step,
        )


def demand_room_for_base(base: Base, device: str, itemsize: int) -> None:
    """Check that the host can hold a base's weights, before they are downloaded or loaded.

    Args:
        itemsize: bytes of a number in the loaded weights.
    Raises:
        NotEnoughMemory: it can't.
    """
    if device == "cpu" and not base.source.startswith("data:") and (base.like or base.place is None):
        gib = base.spec.held_share * base.download_gb * 1e9 / GIB * itemsize / COUNTED_BYTES
        half = "Set HEADSHOTKIT_DTYPE=bfloat16, which takes half of it, or use" if itemsize > 2 else "Use"
        otherwise = "the embedded base (--base mini), or a machine with a GPU, such as Colab's."
        demand_room(f"base {base.name!r}", gib, f"{half} {otherwise}")


def demand_room_for_trained(count: int, what: str, device: str, next_step: str) -> None:
    """Check that the host can hold the trained parameters, with gradients and optimizer state.

    Args:
        count: numbers that are trained.
        what: name of them, for the error.
    Raises:
        NotEnoughMemory: it can't.
    """
    if device == "cpu":
        demand_room(f"{what} of {count:,} trained numbers", count * TRAINED_BYTES / GIB, next_step)


def demand_room_for_step(config: TrainConfig, family: str, px: int, itemsize: int, losses: int) -> None:
    """Check that the host can hold a training step's tensors; without a cost table nothing is known of them.

    Args:
        config: the step's settings.
        px: side of its pictures.
        losses: held at once.
    Raises:
        NotEnoughMemory: it can't.
    """
    if config.base == "mini":
        one = MINI_STEP_GIB
    elif costs_of(family) is None:
        return
    else:
        counted = cost(step_kind(config.method, config.checkpointing, family), COUNTED_PX, 1, family)
        one = max(counted.peak_gib - counted.weights_gib, 0.0) * itemsize / COUNTED_BYTES
    gib = one * config.batch * losses * (px / COUNTED_PX) ** 2
    cheaper = f"Train with a batch below {config.batch}" if config.batch > 1 else "Train at a smaller size"
    demand_room(f"a training step of {config.batch} pictures of {px} px", gib, f"{cheaper}, or free memory.")


def picture_gib(base: Base, size_px: tuple[int, int], itemsize: int) -> float:
    """Return the GiB that drawing and decoding a picture takes besides the weights; 0 if it is not known.

    Args:
        itemsize: bytes of a number in the computation.
    """
    share = size_px[0] * size_px[1] / COUNTED_PX**2
    if base.name == "mini":
        return MINI_DRAWING_GIB * share
    if costs_of(base.family) is None:
        return 0.0
    forward, decode = (cost(kind, COUNTED_PX, 1, base.family) for kind in ("forward", "decode"))
    taken = max(2 * (forward.peak_gib - forward.weights_gib), decode.peak_gib - decode.weights_gib)
    return taken * share * itemsize / COUNTED_BYTES


def pictures_in_room(base: Base, size_px: tuple[int, int], itemsize: int) -> tuple[int | None, str]:
    """Return how many pictures the host can draw at once, and why; None if there is no limit, or none is known.

    Raises:
        NotEnoughMemory: not even one.
    """
    free, one = runtime.free_host_gib(), picture_gib(base, size_px, itemsize)
    if free is None or not one:
        return None, ""
    width, height = size_px
    demand_room(f"a picture of {width} x {height} px", one, "Choose a smaller size, or free memory.")
    return math.floor(free / one), f"a picture takes about {one:.1f} GiB, {free:.1f} are free"
