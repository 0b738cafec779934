"""How the checkpoint and the LoRA's strength are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.config.base import Config, demand, demand_seed

MOST_PROMPTS = 24


@dataclass(frozen=True)
class PickConfig(Config):
    """How the checkpoint and the LoRA's strength are chosen; the pictures are drawn as RenderConfig says."""

    prompts: int = 6
    """Prompts of the bank that each candidate draws, always the same ones, which ask for different things; 2 to 24.
    With the snapshots of a training as S, (S + number of other strengths) times as many pictures are drawn."""
    scales: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2)
    """Strengths of the LoRA to choose from, above 0; the checkpoints are compared at the one nearest to 1."""
    seed: int = 0
    """Seed of the noise, the same for every candidate."""

    def __post_init__(self) -> None:
        demand_seed(self)
        demand(
            2 <= self.prompts <= MOST_PROMPTS,
            f"prompts is {self.prompts}.",
            "One picture alone may be lucky, and a choice needs no whole bank.",
            f"Set PickConfig.prompts from 2 to {MOST_PROMPTS}, for example 6.",
        )
        demand(
            bool(self.scales) and all(0 < scale <= 2 for scale in self.scales),
            f"scales are {self.scales}.",
            "At 0 it is the bare base, and beyond 2 no LoRA holds a picture together.",
            "Set PickConfig.scales to numbers above 0, up to 2, for example 0.6, 0.8, 1.0, 1.2.",
        )

    @property
    def usual_scale(self) -> float:
        """The strength that checkpoints are compared at.

        >>> PickConfig(scales=(0.5, 0.9)).usual_scale
        0.9
        """
        return min(self.scales, key=lambda scale: abs(scale - 1))


def scales_of(text: str) -> tuple[float, ...]:
    """Strengths as a person writes them; argparse says what is wrong with another text.

    >>> scales_of("0.6, 0.8,1")
    (0.6, 0.8, 1.0)
    """
    return tuple(float(part) for part in text.split(","))
