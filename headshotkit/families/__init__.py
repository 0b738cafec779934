"""Model families: the only place that holds diffusion parts and [-1, 1] tensors.

`train`, `render` and `evaluate` speak to a `Family` and never name one. A new family is one module here and one
line in `FAMILIES`. It can train LoRA by that alone; what else it can train it names in `METHODS` (see `methods`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from headshotkit.config import RenderConfig
from headshotkit.config.bases import Base, find_base
from headshotkit.core import hub, runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.errors import BadConfig, BaseUnavailable
from headshotkit.core.records import NOBODY, Names
from headshotkit.core.runtime import data_path
from headshotkit.families import weighing

FAMILIES = {"sdxl": "SdxlFamily", "flux": "FluxFamily", "flux2": "Flux2Family", "zimage": "ZImageFamily"}
TOKENIZERS = {
    "sdxl": {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
    "flux": {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"},
    "flux2": {"tokenizer": "Qwen2TokenizerFast"},
    "zimage": {"tokenizer": "Qwen2TokenizerFast"},
}
CHANGES = "memory_changes"
"""The manifests' name for a family's `changes`."""
EMPTY_TOKENIZER = 200
"""Tokens; transformers 5 makes a tokenizer of its special ones, 2 to 104, without an error, where files are missing."""


class Condition(dict):
    """What a denoiser is told of N prompts: name -> tensor with N rows, on the CPU, float32 (counts: int64)."""

    @property
    def count(self) -> int:
        """N, the number of prompts."""
        return len(next(iter(self.values())))

    def pick(self, places: list[int]) -> Condition:
        """The rows of some prompts, in that order."""
        return Condition({name: tensor[places] for name, tensor in self.items()})


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    size_px: (width, height) · steps: of the sampler · guidance: classifier-free guidance scale, 1 is none ·
    guidance_share: fraction of the steps that are guided, the first ones, in [0, 1] · sampler: one of
    `config.SAMPLERS` · word_guidance, word_every: as RenderConfig's · names: how prompts name the person, what the
    bare base is told instead, and how nearly all photos look; word guidance needs them.
    """

    size_px: tuple[int, int]
    steps: int
    guidance: float
    guidance_share: float = 1.0
    sampler: str = "base"
    word_guidance: float = 1.0
    word_every: int = 3
    names: Names = NOBODY

    @classmethod
    def of(cls, config: RenderConfig, size_px: tuple[int, int], names: Names = NOBODY) -> Sampling:
        """As a RenderConfig says, in the size (width, height) px; names as `Lora.names`."""
        drawn = (config.steps, config.guidance, config.guidance_share, config.sampler)
        return cls(size_px, *drawn, config.word_guidance, config.word_every, names)

    @property
    def guided_steps(self) -> int:
        """So many steps compute the prompt and the negative prompt; the others the prompt alone.

        >>> Sampling((256, 256), 25, 5.0, 0.6).guided_steps
        15
        """
        return math.ceil(round(self.steps * self.guidance_share, 6)) if self.guidance > 1 else 0

    @property
    def worded(self) -> bool:
        """Whether the bare base's sense of the words is added; only where it is known how prompts name the person."""
        return self.word_guidance > 1 and bool(self.names.person)


class Family(Protocol):
    """What a stage needs of a base. Images are RGB PIL pictures; tensors never leave the family but as opaque values.

    The two halves are used one after the other: encode (then `free_encoders`), and train or render. `render` encodes
    prompts that are new to it, but a family may have to load its text encoders again for that, so a caller with several
    batches gives all prompts to `encode_prompts` first.
    """

    base: Base
    device: str
    dtype: Any
    dtype_reason: str
    forwards: int
    """Rows that the denoiser has computed for pictures so far: two a picture and guided step, one in the others."""
    decoding: str
    """How the last pictures came out of their latents: whole, or in parts, and then why."""
    changes: list[dict]
    """What was given up because memory gave out, each with why; a stage puts its manifest's own list here."""

    def encode_images(self, images: list[Image]) -> Any:
        """Latents of pictures, float32 on the CPU, shape (N, C, h, w)."""

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """What the denoiser is told for each prompt."""

    def free_encoders(self) -> None:
        """Gives the memory of the encoders back; encoding is over."""

    def add_lora(self, rank: int, alpha: int, targets: str, seed: int) -> list:
        """Puts a new LoRA into the denoiser and returns its parameters, float32, the only ones that train."""

    def use_checkpointing(self) -> None:
        """Trades time for memory: activations are computed again in the backward pass."""

    def loss(
        self, latents: Any, condition: Condition, sizes: list[tuple[int, ...]], config: Any, generator: Any,
        weights: Any = None,
    ) -> Any:  # fmt: skip
        """Denoising loss for each picture, shape (N,), differentiable in the LoRA's parameters.

        `sizes`: (original height, original width, crop top, crop left, target height, target width) px a picture.
        `weights`: how much each latent position counts, (N, 1, h, w), mean 1 a picture; None: all alike.
        """

    def lora_state(self) -> dict:
        """The LoRA's tensors by their names in the denoiser."""

    def load_lora_state(self, state: dict) -> None:
        """Takes over tensors from `lora_state`."""

    def layer_weight(self, layer: str) -> Any:
        """The base's own weight of a layer that a LoRA is put on, float32 on the CPU; asked before there is a LoRA."""

    def lora_file(self, metadata: dict[str, str]) -> bytes:
        """The LoRA as a safetensors file that diffusers loads, with metadata."""

    def use_lora(self, path: Path, scale: float) -> None:
        """Loads a LoRA file for rendering, at a strength; loading another takes the first one's place."""

    def use_few_steps(self, few: Any) -> None:
        """Puts a LoRA for drawing in a few steps, a `FewSteps` of its bases, into the base; asked of those alone."""

    def drop_few_steps(self) -> None:
        """The base as it was; what LoRA it draws with is to be said again."""

    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image]:
        """One picture a prompt; its noise comes from its own seed alone.

        `on_step` is called after every sampler step; what it raises ends the drawing.
        """


def load_family(base_name: str) -> Family:
    """Loads a base with the code of its family.

    Raises:
        UnknownBase: no base has that name.
        BaseUnavailable: its weights are not here and can't be downloaded.
        NotEnoughMemory: the host can't hold them.
    """
    base = find_base(base_name)
    device = runtime.choose_device()[0]
    weighing.demand_room_for_base(base, device, runtime.choose_dtype(device)[0].itemsize)
    runtime.return_large_blocks()
    module = runtime.import_whole(f"headshotkit.families.{base.family}")
    return getattr(module, FAMILIES[base.family])(base)


def load_tokenizers(base_name: str) -> list:
    """The tokenizers that read a base's prompts, in a second or two: no weights are loaded, and no torch.

    Raises:
        UnknownBase: no base has that name.
        BaseUnavailable: they are not here and can't be downloaded.
    """
    transformers = runtime.import_whole("transformers")
    base = find_base(base_name)
    kinds, cause = TOKENIZERS[base.family], None
    title = f"the tokenizers of base {base.name!r}"
    if base.source.startswith("data:"):
        place = weights_place(base)
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
    """Return what is wanted of the hub for a base: all that its pipeline names."""
    title, otherwise = f"the weights of base {base.name!r}", "use the embedded base: --base mini"
    return hub.Wanted(base.source, title, otherwise, size_gb=base.download_gb, gated=base.gated)


def weights_here(base_name: str) -> bool:
    """Return whether a base can be loaded without a download.

    Raises:
        UnknownBase: no base has that name.
    """
    base = find_base(base_name)
    wanted = replace(base_wanted(base), without=("vae",) if base.vae else ())
    return base.source.startswith("data:") or any(hub.is_here(replace(wanted, half=half)) for half in (True, False))


def weights_place(base: Base) -> str:
    """A base's weights as diffusers wants them named: a folder, or a hub id.

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
    """Refuses a side of a picture that the base can't make.

    Raises:
        BadConfig: the size is not a multiple of what the autoencoder and the denoiser divide it by.
    """
    if size_px % factor:
        raise BadConfig(
            f"size_px is {size_px}, base {base.name!r} needs a multiple of {factor}.",
            "The autoencoder and the denoiser halve the picture several times.",
            f"Set size_px to {max(factor, round(size_px / factor) * factor)}.",
        )
