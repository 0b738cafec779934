"""Settings for the choice of checkpoint and lora_scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from headshotkit.config.base import MOST_SCALE, Config, Range, Seed, demand, shown
from headshotkit.core.errors import BadConfig

MOST_PROMPTS = 24


@dataclass(frozen=True)
class PickConfig(Config):
    """Settings for the choice of checkpoint and lora_scale; the pictures are drawn with RenderConfig."""

    prompts: Annotated[int, Range(2, MOST_PROMPTS, "One picture alone may be lucky.")] = 6
    """Number of the bank's prompts that each candidate draws, the same for all, with varied requests; 2 to 24.
    With S snapshots of a training, (S + number of other scales) times as many pictures are drawn."""
    scales: tuple[Annotated[float, Range(0, MOST_SCALE, open="low")], ...] = (0.6, 0.8, 1.0, 1.2)
    """Values of lora_scale to choose from, above 0; the checkpoints are compared at the one nearest to 1."""
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
        """Return the lora_scale that checkpoints are compared at.

        >>> PickConfig(scales=(0.5, 0.9)).usual_scale
        0.9
        """
        return min(self.scales, key=lambda scale: abs(scale - 1))


def scales_of(text: str) -> tuple[float, ...]:
    """Parse lora_scale values as a person writes them.

    Raises:
        BadConfig: a part is not a number.

    >>> scales_of("0.6, 0.8,1")
    (0.6, 0.8, 1.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        example = "Write them with commas between, for example 0.6,0.8,1.0,1.2."
        raise BadConfig(f"scales is {shown(text)}.", "It must be numbers.", example) from error
