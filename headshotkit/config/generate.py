"""Settings of generation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from headshotkit.config.base import BaseName, Batch, Config, FilePath, Minutes, Scale, Seed, Size, Text, stored_as
from headshotkit.config.bases import BASES
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.config.prepare import SDXL_SIZES_PX
from headshotkit.core.errors import BadConfig

Sampler = Literal["base", "dpmpp-2m-karras", "euler-trailing", "ddim-trailing", "lcm"]
SAMPLERS = get_args(Sampler)
"""base: the base's own sampler, Euler for SDXL; or DPM++ 2M on Karras' noise levels (arXiv:2211.01095,
arXiv:2206.00364); the last three are those of distilled LoRAs."""

Count = Annotated[int, Field(ge=1, le=1000)]
SamplerSteps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=50)]
GuidanceShare = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]


def _known(name: str) -> str:
    """Refuse the name of a distilled LoRA that FEW_STEPS does not hold."""
    if name and name not in FEW_STEPS:
        raise ValueError("unknown")
    return name


DistilledLora = Annotated[Text, AfterValidator(_known), Field(json_schema_extra={"enum": ["", *FEW_STEPS]})]


def _split(names: object) -> object:
    """Return a list of names as it is, but split those that a person joined by commas."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return names
    return tuple(part for name in names for part in name.replace(",", " ").split())


class GenerateConfig(Config):
    """Settings of generation."""

    base: BaseName = "sdxl"
    """The base to render with; the LoRA must have been trained on it."""
    count: Count = 50
    """Number of headshots, one for each prompt; prompts are reused if the bank has fewer."""
    size_px: Size = 1024
    """Side of the square headshot, px; with another aspect ratio a picture has about the same number of pixels."""
    sampler_steps: SamplerSteps = stored_as("steps", 25)
    """Sampler steps."""
    guidance: Guidance = 5.0
    """Classifier-free guidance scale; 1 turns guidance off."""
    guidance_share: GuidanceShare = 1.0
    """Fraction of the steps, counted from the first, that use guidance; a step without it takes half the time."""
    base_guidance: Annotated[float, Field(ge=1, le=50)] = stored_as("word_guidance", 1.0)
    """Scale of base-model guidance; 1 turns it off. A LoRA ignores parts of a prompt, mostly expressions and
    backgrounds, so this adds how the base alone responds to the prompt. This needs a second
    denoiser: 4.8 GiB for SDXL."""
    base_guidance_every: Annotated[int, Field(ge=1, le=1000)] = stored_as("word_every", 3)
    """Base-model guidance is computed anew every this many sampler steps; such a step takes three times as long."""
    sampler: Sampler = "base"
    """The sampler; not every base supports every one."""
    distilled_lora: DistilledLora = stored_as("few_steps", "")
    """A distilled LoRA that generates in 8 steps; empty: none. First, a few headshots are generated both with and
    without it. If identity does not drop, it is used, and it replaces sampler_steps, sampler and guidance. If identity
    drops, it is not used, and the manifest records that."""
    lora_scale: Scale = 1.0
    """Scale of the LoRA; 0: the base without the LoRA."""
    use_pick: bool = True
    """Use the picked checkpoint and scale instead of the last checkpoint and lora_scale, if the run has a pick; else no
    effect."""
    batch: Batch = 1
    """Headshots rendered at once."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Maximum number of attempts for each prompt, each with a new seed; used only when minutes is 0."""
    minutes: Minutes = 0.0
    """Time limit in minutes; 0: none. Attempts go to the prompts most likely to pass, more than max_attempts per
    prompt if that helps, until count headshots are accepted, with one of each prompt, or the time is up."""
    other_scales: tuple[Scale, ...] = ()
    """Further values of lora_scale to try; used only when minutes is set."""
    pass_quantile: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Quantile of the person's own leave-one-out similarities that gives the identity threshold."""
    pass_floor: Cosine = 0.28
    """Minimum identity threshold; on LFW, ArcFace's false-accept rate is 0.1 % at 0.28."""
    pass_ceiling: Cosine = 0.55
    """Maximum identity threshold, so that near-identical photos don't make it too strict."""
    min_face: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Minimum height of the face relative to the picture's; below 0.2 it is not a headshot. In a head-and-shoulders
    picture it is about 0.45."""
    min_sharpness: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Minimum sharpness of the face, measured as for the photo check. The embedded base's faces of 128 px need less;
    see its preset."""
    min_eye_openness: Annotated[float, Field(ge=0, le=10)] = 0.12
    """Minimum height of the eye opening relative to its width, as for the photo check; good headshots have at least
    0.27."""
    max_disagreement: Annotated[float, Field(ge=0, le=10)] = 0.18
    """Maximum distance between the eyes, nose and mouth that two landmark models find, as a fraction of the distance
    between the eyes. Beyond it the face is unclear; good headshots have at most 0.11."""
    max_artefact: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Maximum rating of an artefact in the face, such as uneven eyes, a smeared mouth, melted ears or glasses, or hair
    across the face; 1 turns this off. At 0.5 few real photos are above it."""
    max_copy: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Maximum similarity of a headshot's fine facial structure to that of any single photo; above it the headshot is
    refused as a copy of the photo."""
    max_near_duplicate: Annotated[float, Field(ge=0, le=1)] = stored_as("max_twin", 0.95)
    """Maximum correlation of a headshot with an accepted one (both reduced to small greyscale pictures); 1 turns this
    off. Above it the new headshot is a near-duplicate, and its prompt is tried again. Headshots of one person from
    different prompts reach at most 0.948."""
    prompts: FilePath = ""
    """Path of your own prompt bank (TOML); empty: the bank that comes with headshotkit."""
    packs: Annotated[tuple[Annotated[Text, Field(max_length=80)], ...], BeforeValidator(_split)] = ()
    """Packs of the bank to take prompts from, such as linkedin or studio; empty: the whole bank."""
    seed: Seed = 0
    """Seed that all headshots' seeds are derived from."""

    BEFORE: ClassVar[dict] = {"max_artefact": 1.0}

    @model_validator(mode="after")
    def _relations(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.pass_floor > self.pass_ceiling:
            raise BadConfig(
                f"pass_floor {self.pass_floor} is above pass_ceiling {self.pass_ceiling}.",
                "The identity threshold lies between them.",
                "Lower GenerateConfig.pass_floor or raise GenerateConfig.pass_ceiling.",
            )
        if self.other_scales and not self.minutes:
            raise BadConfig(
                f"other_scales are {self.other_scales}, minutes is 0.",
                "Strengths are compared while there is time to try; without minutes every try has lora_scale.",
                "Set GenerateConfig.minutes as well, or no other_scales.",
            )
        if self.distilled_lora and self.base not in FEW_STEPS[self.distilled_lora].bases:
            raise BadConfig(
                f"distilled_lora is {self.distilled_lora!r}, base is {self.base!r}.",
                "A distilled LoRA only fits the base that it was distilled from, and relatives of it.",
                "Leave GenerateConfig.distilled_lora empty, or choose another base: --base sdxl",
            )
        return self

    @classmethod
    def implied(cls, chosen: dict) -> dict:
        """Return that a chosen lora_scale is used in place of a picked one."""
        return {"use_pick": False} if "lora_scale" in chosen else {}

    def without_base_guidance(self) -> GenerateConfig:
        """Return the settings without base-model guidance: for class images, or pictures from a photo or from edges.

        >>> drawing = GenerateConfig.for_base("mini").without_base_guidance()
        >>> drawing.guidance, drawing.base_guidance
        (3.0, 1.0)
        """
        known = BASES[self.base].without_base_guidance if self.base in BASES else None
        guidance, share = known or (self.guidance, self.guidance_share)
        return self.replace(guidance=guidance, guidance_share=share, base_guidance=1.0)

    def size_for(self, aspect: str) -> tuple[int, int]:
        """Return the size (width, height) px of a headshot of that aspect, one of SDXL_SIZES_PX.

        It is SDXL's size for the aspect, scaled with size_px to multiples of 64, like all of SDXL's sizes; size_px x
        size_px on a base that was trained on squares only.

        >>> GenerateConfig().size_for("4:5"), GenerateConfig(base="mini", size_px=256).size_for("4:5")
        ((896, 1152), (256, 256))
        """
        if aspect == "1:1" or (self.base in BASES and BASES[self.base].square_only):
            return self.size_px, self.size_px
        return tuple(max(64, round(side * self.size_px / 1024 / 64) * 64) for side in SDXL_SIZES_PX[aspect])
