"""Show what a LoRA is, on real layers: the base's weight W, and the trained product B A that is added to it.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from safetensors.numpy import load_file

from headshotkit.config.bases import find_base
from headshotkit.core import runtime
from headshotkit.core.errors import BadLora
from headshotkit.core.results import LoraResult
from headshotkit.core.run import Run
from headshotkit.families import Family, load_family
from headshotkit.families.methods import use_trained_tokens

PLACE = re.compile(r"^.*(?:resnets|attentions|transformer_blocks)\.\d+\.")
"""The part of a layer's name that gives its position; the rest is its kind."""


@dataclass(frozen=True)
class LoraLayer:
    """One trained layer; the layer then computes with `weight + change`.

    `weight`: the base's W, float32, shape (out, in); a convolution's kernel is counted to `in`. `a`: shape (rank, in).
    `b`: shape (out, rank). `scale`: alpha / rank.
    """

    name: str
    weight: np.ndarray
    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def kind(self) -> str:
        """Return the layer's kind: its name without the position, such as attn2.to_v."""
        return PLACE.sub("", self.name)

    @property
    def change(self) -> np.ndarray:
        """Return what is added to W: scale * B A, shape (out, in), of rank `rank` at most."""
        return self.scale * self.b @ self.a

    @property
    def share(self) -> float:
        """Return the norm of the change relative to W's (Frobenius), at least 0; 0.1 is a tenth of W."""
        return float(np.linalg.norm(self.change) / np.linalg.norm(self.weight))


class LoraLayers:
    """The layers of a run's LoRA, each with the base's weight; read one at a time, because a base is large.

    Raises:
        StageMissing: the LoRA has not been trained.
        BadLora: the method of the training has no LoRA.
        BaseUnavailable: the base's weights are not available.
    """

    def __init__(self, run: Run) -> None:
        self.lora, self.folder = LoraResult.load(run).lora, run.path("lora")
        if not self.lora.rank:
            raise BadLora(
                f"{self.folder} holds no LoRA.",
                f"The run was trained by {self.lora.method}, which has none.",
                "Train with --method lora or pivotal to see the layers of one.",
            )
        self.tensors = load_file(self.folder / self.lora.path)
        self.prefix = find_base(self.lora.base).spec.lora_prefix
        self.names = sorted({name.removeprefix(self.prefix).rpartition(".lora_")[0] for name in self.tensors})

    @cached_property
    def family(self) -> Family:
        """Load the base when a layer is first read, with the new tokens of the training if it has any."""
        family = load_family(self.lora.base)
        use_trained_tokens(family, self.folder, self.lora)
        return family

    def free(self) -> None:
        """Free the base's memory; the next layer loads it again."""
        self.__dict__.pop("family", None)
        runtime.free_memory()

    def __iter__(self):
        return (self[name] for name in self.names)

    def __getitem__(self, name: str) -> LoraLayer:
        weight = self.family.layer_weight(name).numpy()
        a, b = (self.tensors[f"{self.prefix}{name}.lora_{part}.weight"] for part in "AB")
        flat = [np.float32(matrix.reshape(len(matrix), -1)) for matrix in (weight, a, b)]
        return LoraLayer(name, *flat, self.lora.alpha / self.lora.rank)

    def find(self, kind: str) -> LoraLayer:
        """Return the layer of a kind, such as attn2.to_v (what pictures take from the words), that changed most.

        Raises:
            BadLora: the LoRA has no such layer.
        """
        found = [layer for layer in self if layer.kind == kind]
        if not found:
            kinds = sorted({PLACE.sub("", name) for name in self.names})
            raise BadLora(
                f"none of the {len(self.names)} layers is a {kind}.",
                f"Their kinds are: {', '.join(kinds)}.",
                "Choose one of them.",
            )
        return max(found, key=lambda layer: layer.share)

    def shares(self) -> dict[str, list[float]]:
        """Return the share of change (see `LoraLayer.share`) of each layer, by kind; most changed kind first."""
        found: dict[str, list[float]] = {}
        for layer in self:
            found.setdefault(layer.kind, []).append(layer.share)
        return dict(sorted(found.items(), key=lambda item: -float(np.median(item[1]))))

    def words_moved(self, layer: LoraLayer, text: str) -> list[tuple[str, float]]:
        """Return how much the LoRA changes a layer's output for each word: norm of (B A) x relative to W x.

        Args:
            layer: one that reads the text, so attn2.to_k or attn2.to_v.
            text: a prompt; its words are the tokenizer's, with the start and end tokens, and with pivotal the new
                tokens in place of the person's token.
        """
        words = self.family.prompt_pieces(text)
        states = self.family.encode_prompts([text])["text"][0].numpy()[: len(words)]
        moved, before = (np.linalg.norm(states @ matrix.T, axis=1) for matrix in (layer.change, layer.weight))
        return [(word.removesuffix("</w>"), float(m / b)) for word, m, b in zip(words, moved, before, strict=True)]
