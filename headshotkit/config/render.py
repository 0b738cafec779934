"""How headshots are generated and restored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from headshotkit.config.base import Batch, Config, FilePath, Minutes, OneOf, Range, Scale, Seed, Size, Text, demand
from headshotkit.config.bases import BASES
from headshotkit.config.dataset import SDXL_SIZES_PX
from headshotkit.config.few_steps import FEW_STEPS

SAMPLERS = ("base", "dpmpp-2m-karras", "euler-trailing", "ddim-trailing", "lcm")
"""base: the sampler that the base comes with, Euler for SDXL; or DPM++ 2M on Karras' noise levels (arXiv:2211.01095,
arXiv:2206.00364); the last three are those of few-step LoRAs."""

Count = Annotated[int, Range(1, 1000)]
SamplerSteps = Annotated[int, Range(1, 1000)]
Guidance = Annotated[float, Range(0, 50, "Below 0 it leads away from the prompt.")]
GuidanceShare = Annotated[float, Range(0, 1, "It is the fraction of the steps that are guided.")]
Cosine = Annotated[float, Range(-1, 1, "It is a cosine.")]


@dataclass(frozen=True)
class RenderConfig(Config):
    """How headshots are generated."""

    base: str = "sdxl"
    """The base to render with; the LoRA must have been trained on it."""
    count: Count = 50
    """Number of prompts, so of headshots to deliver; a bank that is too short is gone through again."""
    size_px: Size = 1024
    """Side of the square headshot, px; a multiple of 8. Other aspects have about as many pixels."""
    steps: SamplerSteps = 25
    """Sampler steps."""
    guidance: Guidance = 5.0
    """Classifier-free guidance scale; 1 is off."""
    guidance_share: GuidanceShare = 1.0
    """Fraction of the steps that are guided, the first ones, in [0, 1]; each of the others takes half the time."""
    word_guidance: Annotated[float, Range(1, 50, "It is a strength from 1, which is off.")] = 1.0
    """How strongly the bare base's own sense of the prompt's words is added to the LoRA's pictures; 1 is off. A LoRA
    forgets words, expressions and backgrounds above all. Keeps a second denoiser in memory: 4.8 GiB for SDXL."""
    word_every: Annotated[int, Range(1, 1000, "It is a number of sampler steps.")] = 3
    """word_guidance is computed in every so manyth step, which takes three times as long, and used until the next."""
    sampler: Annotated[str, OneOf(SAMPLERS)] = "base"
    """Which sampler draws, one of SAMPLERS; a base that it does not suit refuses it."""
    few_steps: Annotated[str, OneOf(FEW_STEPS, none=True)] = ""
    """A LoRA to draw in a few steps with, one of FEW_STEPS; empty: none. It is used where identity holds on first
    attempts drawn both ways, in place of steps, sampler and guidance; where it doesn't, the manifest says so."""
    lora_scale: Scale = 1.0
    """Strength of the LoRA; 0 is the bare base."""
    use_pick: bool = True
    """Whether checkpoint and strength are those that were picked, in place of the last one and lora_scale, where the
    run has such a choice; without one it changes nothing."""
    batch: Batch = 1
    """Headshots rendered at once."""
    max_attempts: Annotated[int, Range(1, 100)] = 3
    """Most tries a prompt gets, each with a new seed; without minutes."""
    minutes: Minutes = 0.0
    """Most minutes that generating takes. Tries then are spent where they pass, more than max_attempts on a prompt
    where that helps, until count are accepted, one of each prompt among them, or the time is up; 0 is no limit."""
    other_scales: tuple[Scale, ...] = ()
    """Other strengths of the LoRA to try beside lora_scale; with minutes alone."""
    pass_quantile: Annotated[float, Range(0, 1)] = 0.1
    """Quantile of the person's own leave-one-out identities that the pass mark is taken from."""
    pass_floor: Cosine = 0.28
    """Least pass mark; ArcFace's 0.1 % false accepts on LFW lie at 0.28."""
    pass_ceiling: Cosine = 0.55
    """Largest pass mark, for near-equal own photos must not demand more than people vary."""
    min_face: Annotated[float, Range(0, 1)] = 0.2
    """Least height of the face relative to the picture's shorter side; 41 headshots of the embedded base: 0.74 to 0.98,
    a head and shoulders is about 0.45, below 0.2 it is no headshot (2026-11-20)."""
    min_sharpness: Annotated[float, Range(0, 1000)] = 5.0
    """Least sharpness of the face, as GateConfig's; the embedded base's 128 px need less, see its preset."""
    min_eye_openness: Annotated[float, Range(0, 10)] = 0.12
    """Least height of the eye opening relative to its width, as GateConfig's; 21 good headshots: at least 0.27."""
    max_disagreement: Annotated[float, Range(0, 10)] = 0.18
    """Largest distance between two landmark models' eyes, nose and mouth, eye distances; beyond it they see no clear
    face. 21 good headshots: at most 0.11; blurred by 2.5 of 128 px: up to 0.33 (2026-11-20)."""
    max_copy: Annotated[float, Range(0, 1)] = 0.95
    """Largest likeness of the face's fine structure to that of one photo. Any two of 54 photos of three sample people:
    at most 0.942; 72 headshots of theirs: 0.72 to 0.80 in the median, at most 0.918; 162 photos shrunk, cut, mirrored,
    recoloured, turned, spoilt or pasted: 160 at least 0.963, two noisy ones 0.89 and 0.93 (2026-11-20)."""
    max_twin: Annotated[float, Range(0, 1, "Below 0 it would refuse pictures that differ.")] = 0.95
    """Largest correlation of a headshot with one that passed before, both small and grey; above it the new one is
    refused and its prompt tried again; 1 is off. 828 pairs of different prompts of one person: at most 0.948
    (2026-11-20)."""
    prompts: FilePath = ""
    """Path of an own prompt bank (TOML); empty: the bank that comes with headshotkit."""
    packs: tuple[Annotated[str, Text(80)], ...] = ()
    """Packs of the bank to take prompts from, such as ("linkedin",); empty: the whole bank. No prompt need be given."""
    seed: Seed = 0
    """Seed that all headshots' seeds come from."""

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
        """The same for pictures that word guidance does not act on: of nobody, or drawn from a photo or from edges.

        >>> [getattr(RenderConfig.for_base("mini").wordless(), name) for name in ("guidance", "word_guidance")]
        [3.0, 1.0]
        """
        known = BASES[self.base].wordless if self.base in BASES else None
        guidance, share = known or (self.guidance, self.guidance_share)
        return replace(self, guidance=guidance, guidance_share=share, word_guidance=1.0)

    def size_for(self, aspect: str) -> tuple[int, int]:
        """The size (width, height) px of a headshot that is meant to have that aspect, one of SDXL_SIZES_PX.

        SDXL's own size for it, scaled with size_px to multiples of 64, as all of SDXL's are; size_px x size_px on a
        base that was trained on squares alone.

        >>> RenderConfig().size_for("4:5"), RenderConfig(base="mini", size_px=256).size_for("4:5")
        ((896, 1152), (256, 256))
        """
        if aspect == "1:1" or (self.base in BASES and BASES[self.base].square_only):
            return self.size_px, self.size_px
        return tuple(max(64, round(side * self.size_px / 1024 / 64) * 64) for side in SDXL_SIZES_PX[aspect])


@dataclass(frozen=True)
class RestoreConfig(Config):
    """How faces are restored."""

    fidelity: Annotated[float, Range(0, 1, "It mixes CodeFormer's codebook (0) with the input (1).")] = 0.7
    """CodeFormer's weight in [0, 1]: 0 = better looking, 1 = truer to the input."""
    weights: FilePath = ""
    """Path of codeformer.pth; empty: the cache folder's `codeformer/codeformer.pth`."""
    max_identity_loss: Annotated[float, Range(0, 2)] = 0.02
    """Most identity a restored face may lose; where it loses more, the unrestored headshot is kept."""
