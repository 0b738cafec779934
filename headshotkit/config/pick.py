"""Settings for the choice of checkpoint and lora_scale."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from headshotkit.config.base import Config, Seed, stored_as
from headshotkit.core.errors import BadConfig


def _numbers(typed: object) -> object:
    """Return numbers that a person typed with commas between as a list; other values as they are."""
    return tuple(float(part) for part in typed.split(",")) if isinstance(typed, str) else typed


class PickConfig(Config):
    """Settings for the choice of checkpoint and lora_scale; the pictures are generated with GenerateConfig."""

    pick_prompts: Annotated[int, Field(ge=2, le=24)] = stored_as("prompts", 6)
    """Number of prompts used to compare the candidates. They are the same for all candidates, and as different
    from each other as possible. In all, prompts x (snapshots + scales - 1) pictures are generated, for example
    6 x (4 + 4 - 1) = 42."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], BeforeValidator(_numbers)] = (0.6, 0.8, 1.0, 1.2)
    """Values of lora_scale to choose from, above 0; the checkpoints are compared at the one nearest to 1."""
    seed: Seed = 0
    """Seed of the noise, the same for every candidate."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        """Refuse settings that contradict each other."""
        if not self.scales:
            raise BadConfig(
                "scales is empty.",
                "A choice needs something to choose from.",
                "Set PickConfig.scales, for example (0.6, 0.8, 1.0, 1.2).",
            )
        return self

    @property
    def usual_scale(self) -> float:
        """Return the lora_scale that checkpoints are compared at.

        >>> PickConfig(scales=(0.5, 0.9)).usual_scale
        0.9
        """
        return min(self.scales, key=lambda scale: abs(scale - 1))
