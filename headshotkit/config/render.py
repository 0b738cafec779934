"""Settings of generation and restoration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from headshotkit.config.base import Batch, Config, FilePath, Minutes, OneOf, Range, Scale, Seed, Size, Text, demand
from headshotkit.config.bases import BASES
from headshotkit.config.dataset import SDXL_SIZES_PX
from headshotkit.config.few_steps import FEW_STEPS

SAMPLERS = ("base", "dpmpp-2m-karras", "euler-trailing", "ddim-trailing", "lcm")
"""base: the base's own sampler, Euler for SDXL; or DPM++ 2M on Karras' noise levels (arXiv:2211.01095,
arXiv:2206.00364); the last three are those of distilled LoRAs."""

Count = Annotated[int, Range(1, 1000)]
SamplerSteps = Annotated[int, Range(1, 1000)]
Guidance = Annotated[float, Range(0, 50, "Below 0 it leads away from the prompt.")]
GuidanceShare = Annotated[float, Range(0, 1, "It is the fraction of the steps that are guided.")]
Cosine = Annotated[float, Range(-1, 1, "It is a cosine.")]


@dataclass(frozen=True)
class RenderConfig(Config):
    """Settings of generation."""

    base: str = "sdxl"
    """The base to render with; the LoRA must have been trained on it."""
    count: Count = 50
    """Number of prompts, and so of headshots to deliver; a bank that is too short is repeated."""
    size_px: Size = 1024
    """Side of the square headshot, px; a multiple of 8. Other aspects have about as many pixels."""
    steps: SamplerSteps = 25
    """Sampler steps."""
    guidance: Guidance = 5.0
    """Classifier-free guidance scale; 1 is off."""
    guidance_share: GuidanceShare = 1.0
    """Fraction of the steps that are guided, the first ones, in [0, 1]; an unguided step takes half the time."""
    word_guidance: Annotated[float, Range(1, 50, "It is a strength from 1, which is off.")] = 1.0
    """Scale of base-model guidance: the bare base's response to the prompt is added to the LoRA's; 1 is off. A LoRA
    ignores parts of a prompt, mostly expressions and backgrounds. Needs a second denoiser: 4.8 GiB for SDXL."""
    word_every: Annotated[int, Range(1, 1000, "It is a number of sampler steps.")] = 3
    """Sampler steps between two updates of word_guidance; an updating step takes three times as long."""
    sampler: Annotated[str, OneOf(SAMPLERS)] = "base"
    """The sampler, one of SAMPLERS; a base that it does not fit refuses it."""
    few_steps: Annotated[str, OneOf(FEW_STEPS, none=True)] = ""
    """A distilled LoRA that draws in a few steps, one of FEW_STEPS; empty: none. It replaces steps, sampler and
    guidance if identity holds on first attempts drawn both ways; if it doesn't, the manifest records that."""
    lora_scale: Scale = 1.0
    """Scale of the LoRA; 0 is the bare base."""
    use_pick: bool = True
    """Use the picked checkpoint and scale instead of the last checkpoint and lora_scale, if the run has a pick; else no
    effect."""
    batch: Batch = 1
    """Headshots rendered at once."""
    max_attempts: Annotated[int, Range(1, 100)] = 3
    """Most attempts per prompt, each with a new seed; used when minutes is 0."""
    minutes: Minutes = 0.0
    """Time limit in minutes; 0 is none. Attempts go where they pass, more than max_attempts per prompt if that helps,
    until count headshots are accepted, with one of each prompt, or the time is up."""
    other_scales: tuple[Scale, ...] = ()
    """Further values of lora_scale to try; used only with minutes."""
    pass_quantile: Annotated[float, Range(0, 1)] = 0.1
    """Quantile of the person's own leave-one-out similarities that gives the identity threshold."""
    pass_floor: Cosine = 0.28
    """Smallest identity threshold; ArcFace's 0.1 % false accepts on LFW are at 0.28."""
    pass_ceiling: Cosine = 0.55
    """Largest identity threshold; near-equal photos must not demand more than people vary."""
    min_face: Annotated[float, Range(0, 1)] = 0.2
    """Least height of the face relative to the picture's shorter side; the embedded base's headshots have 0.74 to 0.98,
    a head and shoulders about 0.45; below 0.2 it is not a headshot."""
    min_sharpness: Annotated[float, Range(0, 1000)] = 5.0
    """Least sharpness of the face, as GateConfig's; the embedded base's 128 px faces need less, see its preset."""
    min_eye_openness: Annotated[float, Range(0, 10)] = 0.12
    """Least height of the eye opening relative to its width, as GateConfig's; 21 good headshots: at least 0.27."""
    max_disagreement: Annotated[float, Range(0, 10)] = 0.18
    """Largest distance between two landmark models' eyes, nose and mouth, in eye distances; beyond it the face is
    unclear. 21 good headshots: at most 0.11; blurred by 2.5 of 128 px: up to 0.33."""
    max_copy: Annotated[float, Range(0, 1)] = 0.95
    """Largest similarity of the face's fine structure to that of one photo. Pairs of 54 photos of three sample people:
    at most 0.942; their 72 headshots: 0.72 to 0.80 in the median, at most 0.918; 162 altered copies of photos: 160 at
    least 0.963, two noisy ones 0.89 and 0.93."""
    max_twin: Annotated[float, Range(0, 1, "Below 0 it would refuse pictures that differ.")] = 0.95
    """Largest correlation of a headshot with an accepted one, both small and grey; above it the new one is a
    near-duplicate, and its prompt is tried again; 1 is off. Pairs of different prompts of one person: at most 0.948."""
    prompts: FilePath = ""
    """Path of a person's own prompt bank (TOML); empty: the bank that comes with headshotkit."""
    packs: tuple[Annotated[str, Text(80)], ...] = ()
    """Packs of the bank to take prompts from, such as ("linkedin",); empty: the whole bank."""
    seed: Seed = 0
    """Seed that all headshots' seeds are derived from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(
            self.pass_floor <= self.pass_ceiling,
            f"pass_floor {self.pass_floor} is above pass_ceiling {self.pass_ceiling}.",
            "The pass mark lies between them.",
            "Lower RenderConfig.pass_floor or raise RenderConfig.pass_ceiling.",
        )
        demand(
            bool(self.minutes) or not self.other_scales,
            f"other_scales are {self.other_scales}, minutes is 0.",
            "Strengths are compared while there is time to try; without minutes every try has lora_scale.",
            "Set RenderConfig.minutes as well, or no other_scales.",
        )
        demand(
            not self.few_steps or self.base in FEW_STEPS[self.few_steps].bases,
            f"few_steps is {self.few_steps!r}, base is {self.base!r}.",
            "A few-step LoRA only fits the base it was distilled from, and its relatives.",
            "Set RenderConfig.few_steps to nothing, or another base: --base sdxl",
        )

    def wordless(self) -> RenderConfig:
        """Return the settings without base-model guidance: for class images, or pictures from a photo or from edges.

        >>> [getattr(RenderConfig.for_base("mini").wordless(), name) for name in ("guidance", "word_guidance")]
        [3.0, 1.0]
        """
        known = BASES[self.base].wordless if self.base in BASES else None
        guidance, share = known or (self.guidance, self.guidance_share)
        return replace(self, guidance=guidance, guidance_share=share, word_guidance=1.0)

    def size_for(self, aspect: str) -> tuple[int, int]:
        """Return the size (width, height) px of a headshot of that aspect, one of SDXL_SIZES_PX.

        It is SDXL's size for the aspect, scaled with size_px to multiples of 64, like all of SDXL's sizes; size_px x
        size_px on a base that was trained on squares only.

        >>> RenderConfig().size_for("4:5"), RenderConfig(base="mini", size_px=256).size_for("4:5")
        ((896, 1152), (256, 256))
        """
        if aspect == "1:1" or (self.base in BASES and BASES[self.base].square_only):
            return self.size_px, self.size_px
        return tuple(max(64, round(side * self.size_px / 1024 / 64) * 64) for side in SDXL_SIZES_PX[aspect])


@dataclass(frozen=True)
class RestoreConfig(Config):
    """Settings of restoration."""

    fidelity: Annotated[float, Range(0, 1, "It mixes CodeFormer's codebook (0) with the input (1).")] = 0.7
    """CodeFormer's weight in [0, 1]: 0 = better looking, 1 = truer to the input."""
    weights: FilePath = ""
    """Path of codeformer.pth; empty: the cache folder's `codeformer/codeformer.pth`."""
    max_identity_loss: Annotated[float, Range(0, 2)] = 0.02
    """Largest loss of identity by restoration; beyond it the unrestored headshot is kept."""
