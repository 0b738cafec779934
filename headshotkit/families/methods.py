"""The training methods: the weights that each trains, the files that it writes, and how they are loaded again.

`train` and `render` use a `Method`. LoRA works with every `Family`; a family's record names its other methods. A family
without them refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from headshotkit.config import UNUSED, TrainConfig
from headshotkit.core.errors import BadConfig
from headshotkit.core.records import Dataset, Lora
from headshotkit.families import Condition, Family
from headshotkit.families.places import code_at

LORA_FILE = "person.safetensors"
EMBEDDINGS_FILE = "person_emb.safetensors"
"""Named after LORA_FILE, like the file of new tokens in diffusers' script for pivotal tuning."""


class Method:
    """A LoRA in the denoiser, and the interface of every other method. Created before anything is encoded.

    Args:
        family: the loaded base.
        config: the training settings.
        token, class_word: of the dataset.
    """

    bytes_each = 4
    """Final bytes on the disk for each trained number."""

    def __init__(self, family: Family, config: TrainConfig, token: str, class_word: str) -> None:
        self.family, self.config, self.token, self.class_word = family, config, token, class_word

    def free_encoders(self) -> None:
        """Free the memory of the encoders that training no longer needs."""
        self.family.free_encoders()

    def conditions(self, captions: list[str], cached: Condition) -> Condition:
        """Return the conditions for `count` and `pick` in each step; `cached` are the captions as encoded before."""
        return cached

    def add(self) -> list[dict[str, Any]]:
        """Put the trainable parameters in and freeze the rest; return the optimizer's groups, float32.

        A group has `params`, and `factor` if its learning rate is a multiple of the config's.
        """
        config = self.config
        return [{"params": self.family.add_lora(config.rank, config.alpha, config.targets, config.seed)}]

    def state(self) -> dict:
        """Return the trained tensors by name, on the CPU, for a checkpoint."""
        return self.family.lora_state()

    def load_state(self, state: dict) -> None:
        """Load tensors from `state`."""
        self.family.load_lora_state(state)

    def files(self, metadata: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        """Yield the resulting files: (name in the stage's folder, content). The first one is `Lora.path`."""
        yield LORA_FILE, self.family.lora_file(metadata)

    def record(self) -> Lora:
        """Return the record of the result, without its files."""
        config = self.config
        sizes = (0, 0) if "rank" in UNUSED[config.method] else (config.rank, config.alpha)
        return Lora(Path(), config.base, *sizes, self.token, self.class_word, config.steps, config.method)

    def loaded_bytes(self) -> int:
        """Return the bytes of all weights that are loaded now."""
        parts = [*vars(self.family).values(), *getattr(self.family.pipeline, "components", {}).values()]
        modules = [part for part in parts if isinstance(part, torch.nn.Module)]
        weights = {id(p): p.numel() * p.element_size() for module in modules for p in module.parameters()}
        return sum(weights.values())

    @property
    def title(self) -> str:
        """Return what is trained, in a few words."""
        return f"LoRA of rank {self.config.rank}"

    @staticmethod
    def use(family: Family, folder: Path, lora: Lora, scale: float) -> None:
        """Load a training's result for rendering, at a scale; 0 is the bare base.

        Raises:
            BadLora: a file does not belong to the base, or is damaged.
            BadConfig: the method does not support that scale.
        """
        family.use_lora(folder / lora.path, scale)

    @staticmethod
    def use_tokens(family: Family, folder: Path, lora: Lora) -> None:
        """Load only the new tokens of a training's result; a method without new tokens loads nothing.

        Raises:
            BadLora: as `use`.
        """


def load_method(family: Family, config: TrainConfig, dataset: Dataset) -> Method:
    """Return the method of a config on a loaded base.

    Raises:
        BadConfig: the base's family does not support it, it learns a token that no caption holds, or it does not
            train the denoiser, which class images are meant to regularise.
    """
    method = _kind(family, config.method)(family, config, dataset.token, dataset.class_word)
    holding = sum(names_token(photo.caption, dataset.token) for photo in dataset.photos)
    if "token_vectors" not in UNUSED[config.method] and not holding:
        raise BadConfig(
            f"method is {config.method!r}, and 0 of {len(dataset.photos)} captions hold the token {dataset.token!r}.",
            "A new token is learnt from the captions that contain it.",
            f"Write {dataset.instance!r} into the captions (dataset/*.txt), or train with --method lora.",
        )
    if config.method == "textual-inversion" and dataset.class_images:
        raise BadConfig(
            f"method is {config.method!r}, and there are {len(dataset.class_images)} class images.",
            "They stabilise the denoiser, which this method does not train: they would only double the time.",
            "Prepare without them (--class-images 0), or train with --method pivotal.",
        )
    return method


def use_trained(family: Family, folder: Path, lora: Lora, scale: float) -> None:
    """Load a training's result for rendering, whatever its method, in place of an earlier one.

    Raises:
        BadLora, BadConfig: as `Method.use`.
    """
    chosen = _kind(family, lora.method)
    for kind in _kinds(family).values():
        if kind is not chosen:
            kind.use(family, folder, lora, 0)
    chosen.use(family, folder, lora, scale)


def use_trained_tokens(family: Family, folder: Path, lora: Lora) -> None:
    """Load the new tokens of a training's result, if its method has any; the denoiser stays the base's.

    Raises:
        BadLora: a file does not belong to the base, or is damaged.
    """
    _kind(family, lora.method).use_tokens(family, folder, lora)


def names_token(text: str, token: str) -> bool:
    """Return whether a text holds the token as a word of its own.

    >>> names_token("photo of ohwx man", "ohwx"), names_token("photo of ohwxes", "ohwx")
    (True, False)
    """
    return bool(word_of(token).search(text))


def word_of(token: str) -> re.Pattern:
    """Return a pattern that finds the token as a word of its own."""
    return re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")


def _kind(family: Family, method: str) -> type[Method]:
    """Return the class of a method for a family.

    Raises:
        BadConfig: the family does not support it.
    """
    kinds = _kinds(family)
    if method not in kinds:
        raise BadConfig(
            f"method is {method!r}, base is {family.base.name!r}.",
            f"Its family {family.base.family} supports: {', '.join(kinds)}.",
            "Choose one of these, for example --method lora, or another base: --base sdxl",
        )
    return kinds[method]


def _kinds(family: Family) -> dict[str, type[Method]]:
    """Return the methods that a family supports, by name."""
    return {"lora": Method} | {name: code_at(place) for name, place in family.base.spec.methods.items()}
