"""How the checkpoint and the LoRA's strength are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from headshotkit.config.base import MOST_SCALE, Config, Range, Seed, demand, shown
from headshotkit.core.errors import BadConfig

MOST_PROMPTS = 24


@dataclass(frozen=True)
class PickConfig(Config):
    """How the checkpoint and the LoRA's strength are chosen; the pictures are drawn as RenderConfig says."""

    prompts: Annotated[int, Range(2, MOST_PROMPTS, "One picture alone may be lucky.")] = 6
    """Prompts of the bank that each candidate draws, always the same ones, which ask for different things; 2 to 24.
    With the snapshots of a training as S, (S + number of other strengths) times as many pictures are drawn."""
    scales: tuple[Annotated[float, Range(0, MOST_SCALE, open="low")], ...] = (0.6, 0.8, 1.0, 1.2)
    """Strengths of the LoRA to choose from, above 0; the checkpoints are compared at the one nearest to 1."""
    seed: Seed = 0
    """Seed of the noise, the same for every candidate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(
            bool(self.scales),
            "scales are none.",
            "A choice needs something to choose from.",
            "Set PickConfig.scales, for example (0.6, 0.8, 1.0, 1.2).",
        )

    @property
    def usual_scale(self) -> float:
        """The strength that checkpoints are compared at.

        >>> PickConfig(scales=(0.5, 0.9)).usual_scale
        0.9
        """
        return min(self.scales, key=lambda scale: abs(scale - 1))


def scales_of(text: str) -> tuple[float, ...]:
    """Return strengths as a person writes them.

    Raises:
        BadConfig: a part is no number.

    >>> scales_of("0.6, 0.8,1")
    (0.6, 0.8, 1.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        example = "Write them with commas between, for example 0.6,0.8,1.0,1.2."
        raise BadConfig(f"scales is {shown(text)}.", "It must be numbers.", example) from error
