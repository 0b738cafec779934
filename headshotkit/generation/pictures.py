"""Draw single pictures: prompt, photo, edges, refiner, all settings in a record that draws the picture again.

A `PictureRequest` decides every pixel together with the run's LoRA: the same request gives the same picture, also in
another process, on the same machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from headshotkit.config import GenerateConfig, PrepareConfig
from headshotkit.config.base import BaseName, Batch, FilePath, Scale, Seed, Settings, Text, stored_as, usually
from headshotkit.config.bases import find_base
from headshotkit.config.generate import Guidance, GuidanceShare, Sampler, SamplerSteps
from headshotkit.core import locks, runtime
from headshotkit.core.errors import BadConfig, BadLora
from headshotkit.core.records import Lora, Record
from headshotkit.core.run import Run, write_atomic
from headshotkit.dataset import crops
from headshotkit.faces import recognition
from headshotkit.families import CHANGES, Family, Sampling, load_family
from headshotkit.families.controls import Controls, Guide, Guided, load_controls
from headshotkit.families.edges import edge_agreement
from headshotkit.families.jobs import Job, draw
from headshotkit.families.methods import use_trained
from headshotkit.photos.files import png_bytes, read_photo
from headshotkit.photos.metadata import ORIGIN
from headshotkit.scoring.identity import judge_headshot, known_person

FOLDER = "pictures"
PERSON = "{person}"
"""Placeholder for the person in a prompt: token and class word with a LoRA, "a" and the class word without."""

Side = Annotated[int, Field(ge=8, le=4096)]
Words = Annotated[Text, Field(max_length=4000)]

STYLES = {
    name: f"{name} of {PERSON}"
    for name in ("oil painting", "pencil drawing", "comic", "anime", "punk photo", "impressionist painting")
}
BRIEF_STYLES = {
    name: f"photo of {PERSON}, {name}"
    for name in ("plain white background", "grey studio background", "blurred office background",
                 "blurred outdoor background", "bright lighting", "dark background, side light")
}  # fmt: skip
"""The embedded base's prompts in place of styles; its training data had no paintings."""


def styles_of(base: str) -> dict[str, str]:
    """Return a base's styles: name -> prompt.

    Raises:
        UnknownBase: no base has that name.
    """
    return BRIEF_STYLES if find_base(base).brief_prompts else STYLES


class PictureRequest(Settings):
    """Everything that decides a picture, except the run's LoRA; `for_base` has a base's defaults."""

    prompt: Words
    """Prompt; {person} becomes the person."""
    negative: Words = ""
    """Negative prompt; used only with guidance."""
    base: BaseName = "sdxl"
    """The base model; the run's LoRA must have been trained on it."""
    sampler_steps: Annotated[SamplerSteps, usually(1, 60, 1)] = stored_as("steps", 25)
    """Sampler steps; image-to-image runs `strength` of them."""
    guidance: Annotated[Guidance, usually(1, 15, 0.5)] = 5.0
    """How strictly the prompt is followed: the scale of classifier-free guidance; 1 is off."""
    guidance_share: Annotated[GuidanceShare, usually(0, 1, 0.05)] = 1.0
    """Share of the steps that use guidance, from the first on."""
    sampler: Sampler = "base"
    """The sampler; base is the base's own."""
    seed: Seed = 0
    """Seed of the first picture's noise; the next pictures use the next numbers."""
    size_px: tuple[Side, Side] = (1024, 1024)
    """Width and height, px; best is the size the base was trained on."""
    batch: Batch = 1
    """Number of pictures drawn at once, each with its own seed."""
    lora_scale: Annotated[Scale, usually(0, 2, 0.05)] = 1.0
    """Scale of the run's LoRA; 0 is the bare base, without a LoRA."""
    photo: FilePath = ""
    """Path of the photo for image-to-image; empty: start from noise."""
    strength: Annotated[float, Field(gt=0, le=1), usually(0.05, 1, 0.05)] = 0.6
    """How far image-to-image departs from the photo."""
    control: FilePath = ""
    """Path of a photo whose edges a ControlNet follows; empty: none."""
    control_scale: Annotated[float, Field(ge=0, le=2), usually(0, 2, 0.05)] = 1.0
    """How strongly the edges are followed (ControlNet scale)."""
    refiner: Annotated[float, Field(ge=0, lt=1), usually(0, 0.95, 0.05)] = 0.0
    """Share of the noise levels, the lowest, that the refiner draws; 0 is off, 0.2 is SDXL's default."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.photo and self.control:
            raise BadConfig(
                f"photo is {self.photo!r}, control is {self.control!r}.",
                "Image-to-image starts from a photo, a ControlNet from noise.",
                "Set one of them.",
            )
        kept = int(self.sampler_steps * self.strength) if self.photo else self.sampler_steps
        if kept < 1 or (self.photo and self.strength <= self.refiner):
            raise BadConfig(
                f"strength {self.strength} of {self.sampler_steps} steps is {kept}; the refiner has {self.refiner} of "
                "the noise.",
                "Image-to-image runs that share of the steps, and the base needs at least one before the refiner.",
                "Raise strength or sampler_steps, or lower refiner.",
            )
        return self

    @classmethod
    def for_base(cls, base: str, prompt: str, **overrides) -> PictureRequest:
        """Return the base's preset for headshots, with the given settings in place of its own.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting is out of its range.
        """
        config = GenerateConfig.for_base(base).without_base_guidance()
        preset = {
            name: getattr(config, name)
            for name in ("sampler_steps", "guidance", "guidance_share", "sampler", "lora_scale")
        }
        return cls(prompt=prompt, base=base, **preset | {"size_px": (config.size_px, config.size_px)} | overrides)

    @property
    def guided(self) -> bool:
        """Return whether it takes more than a prompt."""
        return bool(self.photo or self.control or self.refiner)

    def call(self, run: Run) -> str:
        """Return the Python code that draws it again."""
        record = repr(self).replace(f"{type(self).__name__}(", "").removesuffix(")")
        return (
            "from headshotkit import PictureRequest, Run, render_pictures\n\n"
            f"render_pictures(Run({str(run.folder)!r}), PictureRequest({record}))"
        )


@dataclass(frozen=True)
class Picture(Record):
    """One picture of a request. `identity` is None without exactly one face, or if the run has no photos.

    file: relative to the run's `pictures/` · seed: of its noise · likeness: identity relative to the own photos' median
    · agreement: how well it follows the edges of `control`, in [0, 1], None without.
    """

    file: str
    request: PictureRequest
    seed: int
    identity: float | None = None
    likeness: float | None = None
    agreement: float | None = None

    @property
    def words(self) -> str:
        """Describe its likeness, and how well it follows the edges."""
        identity = "no single face" if self.identity is None else f"identity {self.identity:.2f}"
        return identity + ("" if self.agreement is None else f", edges {self.agreement:.2f}")


def render_pictures(run: Run, request: PictureRequest, studio: Studio | None = None) -> list[Picture]:
    """Draw the pictures of a request, and measure each one's likeness; write `pictures/`, a PNG each.

    Each PNG's metadata states that it was generated, and how; of a photo it holds the name and no folder.

    Args:
        studio: what was loaded for an earlier request of the run, so that nothing is loaded twice; None loads it.
    Raises:
        StageMissing: lora_scale is above 0, and the LoRA has not been trained.
        BadLora: it was trained on another base.
        BadConfig: the base can't draw that size, or can't draw from photos, edges or with a refiner.
        BaseUnavailable: weights are not available.
        Unreadable: the photo can't be read.
    """
    return (studio or Studio(run)).render(request)


class Studio:
    """A run's base, LoRA and person, loaded once for many requests."""

    def __init__(self, run: Run) -> None:
        self.run, self.family, self.controls, self.person = run, None, None, None
        self.loaded: tuple = ()

    @locks.writes("render_pictures")
    @runtime.frees_memory
    def render(self, request: PictureRequest, on_step: Callable[[], None] | None = None) -> list[Picture]:
        """Draw the pictures of a request, as `render_pictures`."""
        config = GenerateConfig.for_base(
            request.base, sampler_steps=request.sampler_steps, guidance=request.guidance,
            guidance_share=request.guidance_share, sampler=request.sampler, base_guidance=1.0,
        )  # fmt: skip
        family, edges = self._family(request), None
        prompt, size_px = self._worded(request), tuple(request.size_px)
        jobs = [Job(prompt, request.negative, request.seed + number, size_px) for number in range(request.batch)]
        if request.guided:
            photo = fitted_photo(request.photo, request) if request.photo else None
            edges = self.edges(request) if request.control else None
            guide = Guide(photo, request.strength, edges, request.control_scale, request.refiner)
            family = Guided(self._controls(family), guide)
        drawn = list(draw(family, jobs, Sampling.of(config, size_px), request.batch, on_step))
        if self.person is None and self.run.has("photos"):
            self.person = known_person(self.run, config)
        return [self._kept(image, request, job.seed, config, edges) for job, image in drawn]

    def free(self) -> None:
        """Free the memory of base, LoRA and ControlNet; the next request loads them again."""
        self.family, self.controls, self.loaded = None, None, ()
        runtime.free_memory()

    def edges(self, request: PictureRequest) -> Image.Image:
        """Return the edge picture that the ControlNet gets for a request's `control`."""
        controls = self._controls(self._family(request))
        return controls.edges_of(fitted_photo(request.control, request), tuple(request.size_px))

    def _family(self, request: PictureRequest) -> Family:
        """Return the base with the LoRA at the request's scale."""
        if self.family is None or self.family.base.name != request.base:
            self.free()
            self.family = load_family(request.base)
        made = self.run.manifest("lora") if request.lora_scale else self.run.peek("lora")
        wanted = (made.get("fingerprint", ""), request.lora_scale)
        if not request.lora_scale and not self.loaded:
            return self.family
        if wanted != self.loaded:
            lora = Lora.from_dict(made["lora"])
            if lora.base != request.base:
                raise BadLora(
                    f"the LoRA was trained on base {lora.base!r}, but the request uses base {request.base!r}.",
                    "A LoRA only fits the base it was trained on.",
                    f"Set base to {lora.base!r}, or lora_scale to 0.",
                )
            self.run.files("lora", lora.files, thorough=True)
            use_trained(self.family, self.run.path("lora"), lora, request.lora_scale)
            self.loaded = wanted
        return self.family

    def _controls(self, family: Family) -> Controls:
        self.controls = self.controls or load_controls(family)
        return self.controls

    def _worded(self, request: PictureRequest) -> str:
        """Return the prompt with the person named."""
        known = self.run.peek("lora").get("lora") or self.run.peek("dataset").get("dataset") or {}
        word = known.get("class_word", "person")
        return request.prompt.replace(PERSON, f"{known['token']} {word}" if request.lora_scale else f"a {word}")

    def _kept(self, image: Image.Image, request: PictureRequest, seed: int, config: GenerateConfig, edges) -> Picture:
        """Judge and write one picture."""
        facts = request.to_dict() | {name: Path(getattr(request, name)).name for name in ("photo", "control")}
        key = hashlib.sha256(json.dumps([request.to_dict(), self.loaded]).encode()).hexdigest()[:12]
        judged = judge_headshot(np.asarray(image), self.person, config) if self.person else None
        agreement = edge_agreement(image, edges) if edges else None
        measured = {
            "identity": judged and judged.identity,
            "likeness": judged and judged.likeness,
            "agreement": agreement,
        }
        picture = Picture(f"{key}_{seed}.png", request, seed, **measured)
        changes = {CHANGES: self.family.changes} if self.family.changes else {}
        how = json.dumps(facts | {"seed": seed} | measured | changes)
        write_atomic(self.run.path(FOLDER) / picture.file, png_bytes(image, Software=ORIGIN, headshotkit=how))
        return picture


def fitted_photo(path: str, request: PictureRequest) -> Image.Image:
    """Return a photo at the request's size, cropped around its face as training pictures are, unless it has that size.

    Raises:
        Unreadable: it can't be read.
    """
    pixels, size = read_photo(runtime.typed_path(path)), tuple(request.size_px)
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return Image.fromarray(pixels)
    found = recognition.detect_faces(pixels)
    box = found[0].box if found else np.array([width, height, width, height]) / 2
    fraction = PrepareConfig.for_base(request.base).face_fractions[0] if found else 0.0
    return crops.cut(pixels, crops.face_window(width, height, box, fraction, size), size)
