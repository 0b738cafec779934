"""Guides besides the prompt: a photo, a photo's edges, a refiner for the last steps.

A family that supports them names a class of `Controls` in its record; any other family refuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

from headshotkit.core.errors import BadConfig
from headshotkit.families import Family, Sampling
from headshotkit.families.places import code_at


@dataclass(frozen=True)
class Guide:
    """The guides of a picture besides its prompt.

    photo: image-to-image begins with it, RGB, of the picture's size · strength: share of the denoising that is done,
    in (0, 1]: 1 forgets the photo · edges: for the ControlNet, as `Controls.edges_of` returns them · edge_scale:
    their weight, 0 is none · refined: share of the noise levels, the lowest, that the refiner draws, in [0, 1).
    """

    photo: Image | None = None
    strength: float = 1.0
    edges: Image | None = None
    edge_scale: float = 1.0
    refined: float = 0.0


class Controls(Protocol):
    """A loaded family's guided drawing; it shares the family's parts and its LoRA."""

    def edges_of(self, photo: Image, size_px: tuple[int, int]) -> Image:
        """Return a photo's edges, white on black, as the ControlNet reads them for a picture of (width, height) px."""

    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        guide: Guide,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Draw one picture a prompt, as `Family.render` does, with the guides as well.

        Raises:
            BaseUnavailable: the ControlNet or the refiner can't be loaded.
            BadConfig: photo and edges at once, or a size that the base can't draw.
        """


@dataclass(frozen=True)
class Guided:
    """A family that draws with guides: `jobs.draw` takes it in place of the family."""

    controls: Controls
    guide: Guide

    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Draw one picture a prompt, as `Controls.render` does with the guide."""
        return self.controls.render(prompts, negatives, seeds, sampling, self.guide, on_step)


def load_controls(family: Family) -> Controls:
    """Return a family's guided drawing; its weights are loaded at first use.

    Raises:
        BadConfig: the family has none.
    """
    if not family.base.spec.controls:
        raise BadConfig(
            f"base {family.base.name!r} uses prompts only.",
            f"Photos, edges and refiners are not implemented for its family, {family.base.family}.",
            "Leave out photo, control and refiner, or choose another base: --base sdxl",
        )
    return code_at(family.base.spec.controls)(family)
