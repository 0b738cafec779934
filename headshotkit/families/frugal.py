"""Draw and code in less memory after it ran out, and return only finite numbers.

Each saving is noted in the family's `changes`. A stage shares its manifest's list with the family, so an interrupted
stage resumes with the same savings.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderTiny

from headshotkit.core import runtime
from headshotkit.core.errors import NotFinite, OutOfMemory
from headshotkit.families import weighing

AT_ONCE, CODING = "pictures_at_once", "autoencoder"
"""The kinds of change: the most pictures drawn at once; the autoencoder's mode."""
SLICES, TILES, FLOAT32 = "slices", "tiles", "float32"
"""The autoencoder's modes: a picture at a time; in overlapping parts, which alters pictures a little; in float32, after
float16 overflowed."""


def in_parts(family, count: int, size_px: tuple[int, int], draw: Callable[[list[int]], Any]) -> list:
    """Return the drawings of pictures 0 to count - 1, in order, all drawn at once, or in halves after memory ran out.

    The host's memory runs out without an error, so there the pictures drawn at once are as many as are expected to fit.

    Args:
        size_px: (width, height) of each.
    Raises:
        OutOfMemory, NotEnoughMemory: one picture needs too much.
    """
    if family.device == "cpu":
        room, why = weighing.pictures_in_room(family.base, size_px, family.dtype.itemsize)
        if room is not None and room < min(count, _most(family, count)):
            _note(family, {AT_ONCE: room}, f"{room} pictures at once from now on", why)
    made, start = [], 0
    while start < count:
        most = _most(family, count)
        indices = list(range(start, min(count, start + most)))
        with warnings.catch_warnings():  # diffusers 0.42's schedulers convert tensors to arrays in numpy 1's way
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            part, said = runtime.within_memory(lambda indices=indices: draw(indices))
        if not said:
            made.append(part)
            start += len(indices)
        elif len(indices) == 1:
            raise OutOfMemory(
                "a single picture needs more memory than is available.",
                said,
                "Choose a smaller size, close other programs that use the memory, or use a larger GPU; then give the "
                "same command again: finished work is kept.",
            )
        else:
            _note(family, {AT_ONCE: len(indices) // 2}, f"{len(indices) // 2} pictures at once from now on", said)
    return made


def _most(family, count: int) -> int:
    """Return the most pictures drawn at once after earlier changes."""
    return min((change[AT_ONCE] for change in family.changes if AT_ONCE in change), default=count)


def coded(family, vae: torch.nn.Module, pictures: int, work: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return `work`'s result for some pictures with an autoencoder: in slices, then tiles, after memory ran out.

    If half precision overflows, which would be a black picture, it is computed again in float32. `work` is called
    anew for each mode.

    Raises:
        OutOfMemory: even tiles need more memory than is available.
        NotFinite: even float32 gives numbers that are not finite.
    """
    if any(change.get(CODING) == TILES for change in family.changes) and can_tile(vae):
        vae.enable_tiling()
    usual = vae.dtype
    upcast = usual == torch.float16 and getattr(vae.config, "force_upcast", False)
    try:
        while True:
            if upcast:
                vae.float()
            made, said = runtime.within_memory(work)
            if said and (vae.use_tiling or not (can_tile(vae) or (pictures > 1 and not vae.use_slicing))):
                raise OutOfMemory(
                    "the autoencoder needs more memory than is available, even with the smallest tiles.",
                    said,
                    "Close other programs that use the memory, or use a larger GPU; then give the same command "
                    "again: finished work is kept.",
                )
            if said:
                way = SLICES if pictures > 1 and not vae.use_slicing else TILES
                (vae.enable_tiling if way == TILES else vae.enable_slicing)()
                _note(family, {CODING: way}, f"the autoencoder works in {way} from now on", said)
            elif made.isfinite().all():
                return made
            elif vae.dtype == torch.float32:
                raise not_finite(made, "left the autoencoder")
            else:
                upcast = True
                _note(family, {CODING: FLOAT32}, "a picture was decoded again in float32", f"{usual} overflowed")
    finally:
        vae.disable_slicing()
        vae.disable_tiling()
        if vae.dtype != usual:
            vae.to(usual)


def can_tile(vae: torch.nn.Module) -> bool:
    """Return whether an autoencoder can work in tiles; AutoencoderTiny's tiles fit only at a factor of 8, so never."""
    return not isinstance(vae, AutoencoderTiny)


def decoding_of(family, usual: str) -> str:
    """Return how pictures are decoded: by the free memory, unless memory ran out before."""
    ways = [change for change in family.changes if change.get(CODING) in (SLICES, TILES)]
    return f"{ways[-1][CODING]}: {ways[-1]['why']}" if ways else usual


def demand_finite(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (N, ...) from a denoiser, if all numbers are finite.

    Raises:
        NotFinite: some are not; they would become black pictures.
    """
    if not latents.isfinite().all():
        raise not_finite(latents, "left the denoiser")
    return latents


def not_finite(made: torch.Tensor, where: str) -> NotFinite:
    """Return the error for pictures or latents (N, ...) that hold NaN or infinity."""
    bad = sum(not bool(one.isfinite().all()) for one in made)
    return NotFinite(
        f"{bad} of {len(made)} pictures {where} with NaN or infinity in {made.dtype}.",
        "lora_scale or the learning rate was too high, or the base's weights are damaged.",
        "Lower lora_scale, or train again with a lower learning_rate; if the bare base (lora_scale 0) does the same, "
        "download its weights again.",
    )


def _note(family, change: dict, words: str, why: str) -> None:
    """Note a change once, and print it in a line."""
    if not any(change.items() <= known.items() for known in family.changes):
        family.changes.append(change | {"why": why})
        runtime.say(f"{words}: {why}")
