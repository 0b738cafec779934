"""The training methods: what each one trains, what it leaves, and how that is loaded again.

`train` and `render` speak to a `Method`. LoRA works with every `Family`; a family's module names the others that it
can do in its `METHODS`: name -> subclass of `Method`. Where it names none, they are refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from headshotkit.config import UNUSED, TrainConfig
from headshotkit.core.errors import BadConfig
from headshotkit.core.records import Dataset, Lora
from headshotkit.families import Condition, Family

LORA_FILE = "person.safetensors"
EMBEDDINGS_FILE = "person_emb.safetensors"
"""Named after LORA_FILE, as the file of new tokens is in diffusers' script for pivotal tuning."""


class Method:
    """A LoRA in the denoiser, and what every other method has to offer. Made before anything is encoded.

    Args:
        family: the loaded base.
        config: how to train.
        token, class_word: of the dataset.
    """

    bytes_each = 4
    """On the disk in the end, for each trained number."""

    def __init__(self, family: Family, config: TrainConfig, token: str, class_word: str) -> None:
        self.family, self.config, self.token, self.class_word = family, config, token, class_word

    def free_encoders(self) -> None:
        """Gives the memory of those encoders back that training needs no more."""
        self.family.free_encoders()

    def conditions(self, captions: list[str], cached: Condition) -> Condition:
        """What `count` and `pick` are asked of in each step, where `cached` are the captions as encoded before."""
        return cached

    def add(self) -> list[dict[str, Any]]:
        """Puts the trainables in and freezes all else: the optimizer's groups, float32.

        A group has `params`, and `factor` where its learning rate is not the config's own but so many times that.
        """
        config = self.config
        return [{"params": self.family.add_lora(config.rank, config.alpha, config.targets, config.seed)}]

    def state(self) -> dict:
        """The trained tensors by name, on the CPU, for a checkpoint."""
        return self.family.lora_state()

    def load_state(self, state: dict) -> None:
        """Takes over tensors from `state`."""
        self.family.load_lora_state(state)

    def files(self, metadata: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        """What is left, file by file: (name in the stage's folder, content). The first one is `Lora.path`."""
        yield LORA_FILE, self.family.lora_file(metadata)

    def record(self) -> Lora:
        """What is left, but for its files."""
        config = self.config
        sizes = (0, 0) if "rank" in UNUSED[config.method] else (config.rank, config.alpha)
        return Lora(Path(), config.base, *sizes, self.token, self.class_word, config.steps, config.method)

    def loaded_bytes(self) -> int:
        """Of all weights that are loaded now."""
        places = [*vars(self.family).values(), *getattr(self.family.pipeline, "components", {}).values()]
        modules = [place for place in places if isinstance(place, torch.nn.Module)]
        weights = {id(p): p.numel() * p.element_size() for module in modules for p in module.parameters()}
        return sum(weights.values())

    @property
    def title(self) -> str:
        """What is trained, in a few words."""
        return f"LoRA of rank {self.config.rank}"

    @staticmethod
    def use(family: Family, folder: Path, lora: Lora, scale: float) -> None:
        """Loads what training left for rendering, at a strength; 0 is the bare base.

        Raises:
            BadLora: a file does not belong to the base, or is damaged.
            BadConfig: the method has no such strength.
        """
        family.use_lora(folder / lora.path, scale)


def load_method(family: Family, config: TrainConfig, dataset: Dataset) -> Method:
    """The method of a config on a loaded base.

    Raises:
        BadConfig: the base's family can't do it, it learns a token that no caption holds, or it leaves the denoiser
            alone, which class images are there to hold steady.
    """
    method = _kind(family, config.method)(family, config, dataset.token, dataset.class_word)
    holding = sum(names_token(photo.caption, dataset.token) for photo in dataset.photos)
    if "token_vectors" not in UNUSED[config.method] and not holding:
        raise BadConfig(
            f"method is {config.method!r}, and 0 of {len(dataset.photos)} captions hold the token {dataset.token!r}.",
            "What a new token stands for is learnt from the captions that hold it.",
            f"Write {dataset.instance!r} into the captions (dataset/*.txt), or train with --method lora.",
        )
    if config.method == "textual-inversion" and dataset.class_images:
        raise BadConfig(
            f"method is {config.method!r}, and there are {len(dataset.class_images)} class images.",
            "They hold the denoiser steady, and this method changes nothing of it: they would only double the time.",
            "Prepare without them (--class-images 0), or train with --method pivotal.",
        )
    return method


def use_trained(family: Family, folder: Path, lora: Lora, scale: float) -> None:
    """Loads what a training left for rendering, whatever its method, in place of what was loaded before it.

    Raises:
        BadLora, BadConfig: as `Method.use`.
    """
    chosen = _kind(family, lora.method)
    for kind in _kinds(family).values():
        if kind is not chosen:
            kind.use(family, folder, lora, 0)
    chosen.use(family, folder, lora, scale)


def names_token(text: str, token: str) -> bool:
    """Whether a text holds the token as a word of its own.

    >>> names_token("photo of ohwx man", "ohwx"), names_token("photo of ohwxes", "ohwx")
    (True, False)
    """
    return bool(word_of(token).search(text))


def word_of(token: str) -> re.Pattern:
    """Finds the token where it stands as a word of its own."""
    return re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")


def _kind(family: Family, method: str) -> type[Method]:
    """The class of a method for a family.

    Raises:
        BadConfig: the family can't do it.
    """
    kinds = _kinds(family)
    if method not in kinds:
        raise BadConfig(
            f"method is {method!r}, base is {family.base.name!r}.",
            f"Its family {family.base.family} knows: {', '.join(kinds)}.",
            "Choose one of these, for example --method lora, or another base: --base sdxl",
        )
    return kinds[method]


def _kinds(family: Family) -> dict[str, type[Method]]:
    """The methods that a family can do, by name."""
    module = importlib.import_module(f"headshotkit.families.{family.base.family}")
    return {"lora": Method} | getattr(module, "METHODS", {})
