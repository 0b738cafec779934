"""Settings of the commands that are no stage of a run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headshotkit.config.base import BaseName, Config, Seed, Text
from headshotkit.config.generate import Count
from headshotkit.config.prepare import ClassImages
from headshotkit.config.train import Method
from headshotkit.core.errors import BadConfig

Side = Annotated[int, Field(ge=64, le=8192)]


class CropConfig(Config):
    """Settings for cropping a folder."""

    size_px: Side = 1024
    """Side of a square crop, px; in another shape (aspect) a crop has about the same number of pixels."""
    aspect: Literal["1:1", "4:5", "3:4", "2:3", "auto"] = "1:1"
    """Shape, width to height; auto: for each photo the one that cuts least."""
    exact_px: tuple[Side, ...] = ()
    """Exact width and height of the crops, px, in place of size_px and aspect; empty: size_px and aspect decide."""
    framing: Literal["head-and-shoulders", "face", "whole"] = "head-and-shoulders"
    """What the crop shows; whole: as much of the photo as the shape allows."""
    format: Literal["jpg", "png"] = "jpg"
    """File format."""
    quality: Annotated[int, Field(ge=1, le=100)] = 92
    """JPEG quality; higher is better. PNG loses nothing."""
    enlarge: bool = True
    """Enlarge a crop that has too few pixels, and report by how much; off: refuse such a photo, and report why."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        """Refuse an exact size that is no width and height."""
        if len(self.exact_px) not in (0, 2):
            raise BadConfig(
                f"exact_px is {self.exact_px}.",
                "It is a width and a height.",
                "Set CropConfig.exact_px, for example (600, 800), or none.",
            )
        return self


class PlanConfig(Config):
    """Settings of a plan."""

    gpu: Text = "t4"
    """The GPU to plan for, or cpu."""
    count: Count = 50
    """Number of headshots."""
    minutes: Annotated[float, Field(gt=0, le=100_000)] = 60.0
    """Time limit in minutes; the plan meets it even in its worst case."""
    base: BaseName = ""
    """The base to plan for; empty: mini on cpu, else sdxl."""
    method: Method = "lora"
    """How the base is trained."""
    class_images: ClassImages = 0
    """Number of class images to generate and to train with."""
    pick: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of pictures that pick generates: 42 with 4 snapshots, 4 scales and 6 prompts; 0: nothing is picked."""


class TokenConfig(Config):
    """Settings of the search for a rare token."""

    candidates: Annotated[int, Field(ge=1, le=10_000)] = 12
    """Number of the rarest tokens to try."""
    seed: Seed = 0
    """Seed of the pictures."""


class LeakConfig(Config):
    """Settings of the test for an identity leak."""

    pictures: Annotated[int, Field(ge=2, le=24)] = 8
    """Number of pictures of each kind: of the class word and of other ones, each with and without the LoRA, and of the
    bare token; five times as many are generated."""
    seed: Seed = 0
    """Seed of the noise, the same with and without the LoRA."""


class EvaluateConfig(Config):
    """Settings of the evaluation."""

    pairs: Annotated[int, Field(ge=0, le=1000)] = 12
    """Maximum number of headshots to compare: each one's first attempt is generated a second time, without the LoRA."""
    minutes: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    """Time limit in minutes; if it is short, fewer pairs are generated; 0: none."""
    download: bool = False
    """Download the nets of metrics that are not here (CLIP, DINOv2 and Inception's classes), about 3.6 GB, once."""
