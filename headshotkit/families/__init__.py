"""Model families: the only place that holds diffusion parts and [-1, 1] tensors.

The stages use a `Family` and never name one. A new family is one module here and its record in `config.families`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL.Image import Image

from headshotkit.config import GenerateConfig, TrainConfig
from headshotkit.config.bases import BASES, Base, find_base
from headshotkit.core import hub, runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.errors import BadConfig, BaseUnavailable
from headshotkit.core.records import NO_SUBJECT, Names
from headshotkit.core.runtime import data_path
from headshotkit.families import weighing
from headshotkit.families.places import code_at

CHANGES = "memory_changes"
"""The manifests' name for a family's `changes`."""
EMPTY_TOKENIZER = 200
"""Fewest tokens of a real tokenizer. Where files are missing, transformers 5 builds one of 2 to 104 special tokens."""


class Condition(dict):
    """The conditioning of N prompts: name -> tensor with N rows, on the CPU, float32 (counts: int64)."""

    @property
    def count(self) -> int:
        """Return N, the number of prompts."""
        return len(next(iter(self.values())))

    def pick(self, indices: list[int]) -> Condition:
        """Return the rows of some prompts, in that order."""
        return Condition({name: tensor[indices] for name, tensor in self.items()})


class Noised(NamedTuple):
    """Latents of N pictures with noise, to train on.

    latents: (N, C, h, w) · levels: of the noise, (N,), as the denoiser takes them · target: what it should predict,
    (N, C, h, w) · weights: of each picture's loss, (N,); None: all 1.
    """

    latents: Any
    levels: Any
    target: Any
    weights: Any = None


@dataclass(frozen=True)
class Sampling:
    """The settings that pictures are drawn with.

    size_px: (width, height) · steps: of the sampler · guidance: classifier-free guidance scale, 1 is none ·
    guidance_share: fraction of the steps that are guided, the first ones, in [0, 1] · sampler: one of
    `config.SAMPLERS` · base_guidance, base_guidance_every: as GenerateConfig's · names: the prompts' name for the
    person, the class prompt for the base model, and the usual expression; base-model guidance needs them.
    """

    size_px: tuple[int, int]
    steps: int
    guidance: float
    guidance_share: float = 1.0
    sampler: str = "base"
    base_guidance: float = 1.0
    base_guidance_every: int = 3
    names: Names = NO_SUBJECT

    @classmethod
    def of(cls, config: GenerateConfig, size_px: tuple[int, int] | None = None, names: Names = NO_SUBJECT) -> Sampling:
        """Return the settings of a GenerateConfig for the size (width, height) px; names as `Lora.names`.

        Without a size it is the config's square.
        """
        drawn = (config.sampler_steps, config.guidance, config.guidance_share, config.sampler)
        size_px = size_px or (config.size_px, config.size_px)
        return cls(size_px, *drawn, config.base_guidance, config.base_guidance_every, names)

    @property
    def guided_steps(self) -> int:
        """Return the number of guided steps, which compute both prompts; later steps compute the prompt alone.

        >>> Sampling((256, 256), 25, 5.0, 0.6).guided_steps
        15
        """
        return math.ceil(round(self.steps * self.guidance_share, 6)) if self.guidance > 1 else 0

    @property
    def worded(self) -> bool:
        """Return whether base-model guidance is added; it needs to know how prompts name the person."""
        return self.base_guidance > 1 and bool(self.names.person)


class Family(Protocol):
    """The interface of a base for the stages. Images are RGB PIL pictures; only the family looks into its tensors.

    The two halves are used one after the other: encode (then `free_encoders`), and train or render. `render` encodes
    prompts that are new, but a family may have to load its text encoders again for that. So a caller with several
    batches gives all prompts to `encode_prompts` first.
    """

    base: Base
    device: str
    dtype: Any
    dtype_reason: str
    forwards: int
    """Rows that the denoiser has computed for pictures so far: two a picture in a guided step, one in another step."""
    decoding: str
    """How the last latents were decoded: whole, or in parts with the reason."""
    changes: list[dict]
    """Savings made after memory ran out, each with its reason; a stage puts its manifest's own list here."""

    def encode_images(self, images: list[Image]) -> Any:
        """Return the latents of pictures, float32 on the CPU, shape (N, C, h, w)."""

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """Return the conditioning of each prompt."""

    def prompt_pieces(self, prompt: str) -> list[str]:
        """Return the pieces of a prompt that the text encoder reads, with those of its start and end."""

    def free_encoders(self) -> None:
        """Free the encoders' memory; encoding is over."""

    def add_lora(self, rank: int, alpha: int, targets: str, seed: int) -> list:
        """Put a new LoRA into the denoiser; return its parameters, float32, the only ones that train."""

    def use_checkpointing(self) -> None:
        """Trade time for memory: compute activations again in the backward pass."""

    def add_noise(self, latents: Any, config: TrainConfig, generator: Any) -> Noised:
        """Return latents with noise of random levels, and what the denoiser should predict of them."""

    def predict(self, noised: Noised, condition: Condition, sizes: list[tuple[int, ...]]) -> Any:
        """Return the denoiser's prediction for each picture, shape (N, C, h, w), differentiable in what is trained.

        `sizes`: (original height, original width, crop top, crop left, target height, target width) px a picture.
        """

    def lora_state(self) -> dict:
        """Return the LoRA's tensors by their names in the denoiser."""

    def load_lora_state(self, state: dict) -> None:
        """Load tensors from `lora_state`."""

    def layer_weight(self, layer: str) -> Any:
        """Return the base's own weight of a layer for a LoRA, float32 on the CPU; call it before `add_lora`."""

    def lora_file(self, metadata: dict[str, str]) -> bytes:
        """Return the LoRA as a safetensors file that diffusers loads, with metadata."""

    def use_lora(self, path: Path, scale: float) -> None:
        """Load a LoRA file for rendering, at a scale, in place of an earlier one."""

    def use_few_steps(self, few: Any) -> None:
        """Put a distilled LoRA, one of the base's `FewSteps`, into the base."""

    def drop_few_steps(self) -> None:
        """Restore the base without the distilled LoRA; call `use_lora` again after that."""

    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image]:
        """Draw one picture a prompt, all of one size; its noise depends only on its own seed. `jobs.draw` calls it.

        `on_step` is called after every sampler step; an exception from it ends the drawing.
        """


def load_family(base_name: str) -> Family:
    """Load a base with the code of its family.

    Raises:
        UnknownBase: no base has that name.
        BaseUnavailable: its weights are not on this machine and can't be downloaded.
        NotEnoughMemory: the host can't hold them.
    """
    base = find_base(base_name)
    device = runtime.choose_device()[0]
    weighing.demand_room_for_base(base, device, runtime.choose_dtype(device)[0].itemsize)
    runtime.return_large_blocks()
    return code_at(base.spec.code)(base)


def load_tokenizers(base_name: str) -> list:
    """Load the tokenizers that read a base's prompts, in a second or two: no weights, and no torch.

    Raises:
        UnknownBase: no base has that name.
        BaseUnavailable: they are not on this machine and can't be downloaded.
    """
    transformers = runtime.import_whole("transformers")
    base = find_base(base_name)
    kinds, cause = base.spec.tokenizers, None
    title = f"the tokenizers of base {base.name!r}"
    if base.source.startswith("data:") or base.is_file:
        place = weights_place(BASES["mini"] if base.is_file else base)  # a single file holds none; all are CLIP's
    else:
        place = hub.fetch(replace(base_wanted(base), title=title, parts=tuple(kinds), size_gb=0.0))
    try:
        loaded = [getattr(transformers, kind).from_pretrained(place, subfolder=part) for part, kind in kinds.items()]
        problem = "" if all(len(t) > EMPTY_TOKENIZER for t in loaded) else "their files are missing"
    except (OSError, ValueError) as error:
        cause, problem = error, first_line(error)
    if problem:
        raise BaseUnavailable(
            f"{title} ({place}) can't be loaded: {problem}.",
            "A file is missing or damaged.",
            "Delete that folder and try again, or use the embedded base: --base mini",
        ) from cause
    return loaded


def base_wanted(base: Base) -> hub.Wanted:
    """Return the files of a base to fetch from the hub: all that its pipeline names."""
    title, otherwise = f"the weights of base {base.name!r}", "use the embedded base: --base mini"
    return hub.Wanted(base.source, title, otherwise, size_gb=base.download_gb, gated=base.gated)


def weights_here(base_name: str) -> bool:
    """Return whether a base can be loaded without a download.

    Raises:
        UnknownBase: no base has that name.
    """
    base = find_base(base_name)
    wanted = replace(base_wanted(base), without=("vae",) if base.vae else ())
    return (
        base.source.startswith("data:")
        or base.place is not None
        or any(hub.is_here(replace(wanted, half=half)) for half in (True, False))
    )


def weights_place(base: Base) -> str:
    """Return the place of a base's weights as diffusers reads it: a folder, or a hub id.

    Raises:
        BaseUnavailable: the base is the embedded one, and its folder is missing.
    """
    if not base.source.startswith("data:"):
        return base.source
    folder = data_path(*base.source.removeprefix("data:").split("/"))
    if not (folder / "model_index.json").is_file():
        raise BaseUnavailable(
            f"the embedded base is not at {folder}.",
            "The package was installed without its data.",
            "Clone the repository and install from there, or choose another base: --base sdxl",
        )
    return str(folder)


def check_size(base: Base, size_px: int, factor: int) -> None:
    """Refuse a side of a picture that the base can't draw.

    Raises:
        BadConfig: the size is not a multiple of what the autoencoder and the denoiser divide it by.
    """
    if size_px % factor:
        raise BadConfig(
            f"size_px is {size_px}, base {base.name!r} needs a multiple of {factor}.",
            "The autoencoder and the denoiser halve the picture several times.",
            f"Set size_px to {max(factor, round(size_px / factor) * factor)}.",
        )
