"""SDXL's methods besides a LoRA: the whole U-Net, new tokens in both text encoders, or tokens and LoRA together.

Source: DreamBooth, Ruiz et al. 2022, arXiv:2208.12242; textual inversion, Gal et al. 2022, arXiv:2208.01618; tokens
first, then weights around them: pivotal tuning, Roich et al. 2021, arXiv:2106.05744, and cloneofsimo/lora.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file

from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig
from headshotkit.core.finite import demand_finite, spoilt
from headshotkit.core.records import Lora
from headshotkit.families import Condition, weighing
from headshotkit.families.lora_files import does_not_fit, file_bytes
from headshotkit.families.methods import EMBEDDINGS_FILE, Method, names_token, word_of

UNET_FOLDER = "unet"
UNET_FILES = "diffusion_pytorch_model{suffix}.safetensors"
SHARD = "2GB"
"""Largest part of a U-Net's file: SDXL's is three parts, and a part's copy in memory stays small."""
ENCODERS = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
"""Key in the file of new tokens, as in A1111, ComfyUI and diffusers' script -> the pipeline's parts."""


class FullUnet(Method):
    """DreamBooth: every weight of the U-Net, in float32 under autocast; the file is float16."""

    title, bytes_each = "whole U-Net", 2

    def add(self) -> list[dict]:
        unet, family = self.family.pipeline.unet, self.family
        count = sum(weight.numel() for weight in unet.parameters())
        weighing.demand_room_for_trained(count, "a whole U-Net", family.device, "Train with --method lora.")
        unet.float().requires_grad_(True).train()
        return [{"params": list(unet.parameters())}]

    def state(self) -> dict:
        return {name: tensor.cpu().clone() for name, tensor in self.family.pipeline.unet.state_dict().items()}

    def load_state(self, state: dict) -> None:
        self.family.pipeline.unet.load_state_dict(state)

    def files(self, metadata: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        """Yield a folder that `UNet2DConditionModel.from_pretrained` reads: config, and weights in one part or more."""
        unet = self.family.pipeline.unet
        described = {
            name: value for name, value in json.loads(unet.to_json_string()).items() if name != "_name_or_path"
        }
        half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in unet.state_dict().items()}
        demand_finite(half)
        yield f"{UNET_FOLDER}/config.json", json.dumps(described, indent=2).encode()
        parts = split_torch_state_dict_into_shards(half, filename_pattern=UNET_FILES, max_shard_size=SHARD)
        for name, keys in parts.filename_to_tensors.items():
            yield f"{UNET_FOLDER}/{name}", file_bytes({key: half[key] for key in keys}, {"format": "pt"} | metadata)
        if parts.is_sharded:
            index = {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}
            yield f"{UNET_FOLDER}/{UNET_FILES.format(suffix='')}.index.json", json.dumps(index, indent=2).encode()

    @staticmethod
    def use(family, folder: Path, lora: Lora, scale: float) -> None:
        """Interpolate the base's U-Net towards the trained one by `scale`; 1 is the trained one to the bit."""
        if getattr(family.pipeline.unet, "moved", False):
            family.restore_unet()
        unet = family.pipeline.unet
        weights, unet.moved = dict(unet.named_parameters()), scale != 0
        try:
            for file in [folder / f for f in lora.files if f.suffix == ".safetensors"] if scale else []:
                tensors = load_file(file)
                _demand_sound(tensors)
                for name, tensor in tensors.items():
                    weights[name].data.lerp_(tensor.to(weights[name]), scale)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise does_not_fit(folder / lora.path, family.base, _said(error)) from error


class NewTokens(torch.nn.Module):
    """A table of embeddings with new rows behind the base's own, which are never trained.

    Args:
        old: the encoder's table, weight (V, D).
        new: embeddings of the new tokens, float32, shape (N, D).
        first: id of the first new token; the rest are consecutive. Ids below V are the base's own.
    """

    def __init__(self, old: torch.nn.Embedding, new: torch.Tensor, first: int) -> None:
        super().__init__()
        self.old, self.first = old, first
        self.new = torch.nn.Embedding.from_pretrained(new.to(old.weight.device, torch.float32))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of ids (..., ) in the table's dtype, shape (..., D)."""
        index = ids - self.first
        is_new = (index >= 0).unsqueeze(-1)
        fresh = self.new(index.clamp(0, self.new.num_embeddings - 1)).to(self.old.weight.dtype)
        return torch.where(is_new, fresh, self.old(ids.clamp(max=self.old.num_embeddings - 1)))


def add_tokens(family, token: str, new: dict[str, torch.Tensor]) -> list[torch.nn.Parameter]:
    """Add new tokens to both encoders, in place of the person's token in a prompt; return their embeddings.

    The prompts keep the token itself: it may be a word of the vocabulary, and is replaced for the encoders by new
    tokens that the base has never seen.

    Args:
        new: "clip_l" and "clip_g" -> embeddings, shape (N, D) each.
    """
    remove_tokens(family)
    pipeline, count = family.pipeline, len(new["clip_l"])
    name = f"<person-{count}>"  # the count in the name tells it from earlier tokens of another count
    names = [name] + [f"{name}_{n}" for n in range(1, count)]  # diffusers' names for a token of several vectors
    for key, (encoder, tokenizer) in ENCODERS.items():
        getattr(pipeline, tokenizer).add_tokens(names)
        first = getattr(pipeline, tokenizer).convert_tokens_to_ids(name)
        network = getattr(pipeline, encoder)
        network.set_input_embeddings(NewTokens(network.get_input_embeddings(), new[key], first))
        set_eos_token_id(network, getattr(pipeline, tokenizer).eos_token_id)
    family.prompt_transform = lambda prompt: word_of(token).sub(name, prompt)
    family.encoded.clear()
    return [new_weights(family, key) for key in ENCODERS]


def new_weights(family, key: str) -> torch.nn.Parameter:
    """Return the new tokens' embeddings of one encoder, "clip_l" or "clip_g", shape (N, D)."""
    return getattr(family.pipeline, ENCODERS[key][0]).get_input_embeddings().new.weight


def remove_tokens(family) -> None:
    """Remove new tokens from the encoders, if there are any."""
    for encoder, _ in ENCODERS.values():
        network = getattr(family.pipeline, encoder)
        if isinstance(network.get_input_embeddings(), NewTokens):
            network.set_input_embeddings(network.get_input_embeddings().old)
    family.prompt_transform = str
    family.encoded.clear()


def set_eos_token_id(encoder: torch.nn.Module, end: int) -> None:
    """Take the pooled text from the end of the prompt, where SDXL's own config (eos_token_id 2) is outdated.

    With it transformers takes the largest id for the end, which is a new token's. Without new tokens nothing changes.
    """
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end


class LiveConditions(Condition):
    """Conditions of captions: those with new tokens are encoded in each step, differentiable; the rest is cached.

    Cached ones have a gradient of zero, so that a step needs no caption that names the person.
    """

    def __init__(self, family, captions: list[str], cached: Condition, token: str) -> None:
        super().__init__(cached)
        self.family, self.captions, self.token = family, captions, token

    def pick(self, indices: list[int]) -> Condition:
        rows = [self._row(index) for index in indices]
        return Condition({name: torch.cat([row[name] for row in rows]) for name in rows[0]})

    def _row(self, index: int) -> Condition:
        if not names_token(self.captions[index], self.token):
            nothing = 0.0 * sum(new_weights(self.family, key).sum().cpu() for key in ENCODERS)
            return Condition({name: row + nothing for name, row in super().pick([index]).items()})
        text, pooled = self.family.encode_prompt(self.captions[index])
        return Condition(text=text, pooled=pooled)


class TextualInversion(Method):
    """New tokens' embeddings in both text encoders, and nothing else; they begin as the class word's."""

    @property
    def title(self) -> str:
        return f"{self.config.token_vectors} new tokens"

    def free_encoders(self) -> None:
        self.family.pipeline.vae = None
        runtime.free_memory()

    def conditions(self, captions: list[str], cached: Condition) -> Condition:
        return LiveConditions(self.family, captions, cached, self.token)

    def add(self) -> list[dict]:
        pipeline = self.family.pipeline
        for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False)
        pipeline.unet.train()  # checkpointing requires it; there is no dropout
        parameters = add_tokens(self.family, self.token, self._beginning())
        return [{"params": [parameter.requires_grad_(True) for parameter in parameters]}]

    def _beginning(self) -> dict[str, torch.Tensor]:
        """Return the class word's embeddings, repeated until all new tokens have one."""
        begun = {}
        for key, (encoder, tokenizer) in ENCODERS.items():
            table = getattr(self.family.pipeline, encoder).get_input_embeddings().weight
            pieces = getattr(self.family.pipeline, tokenizer)(self.class_word, add_special_tokens=False).input_ids
            ids = [pieces[n % len(pieces)] for n in range(self.config.token_vectors)]
            begun[key] = table[ids].detach().float().clone()
        return begun

    def state(self) -> dict:
        return {f"emb.{key}": new_weights(self.family, key).detach().cpu().clone() for key in ENCODERS}

    def load_state(self, state: dict) -> None:
        for key in ENCODERS:
            new_weights(self.family, key).data.copy_(state[f"emb.{key}"])

    def files(self, metadata: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        """Yield keys clip_l and clip_g, shape (N, D), as in A1111, ComfyUI and diffusers' pivotal script."""
        tensors = {key: new_weights(self.family, key).detach().cpu().contiguous() for key in ENCODERS}
        demand_finite(tensors)
        yield EMBEDDINGS_FILE, file_bytes(tensors, {"format": "pt"} | metadata)

    @staticmethod
    def use(family, folder: Path, lora: Lora, scale: float) -> None:
        if scale not in (0, 1):
            raise BadConfig(
                f"lora_scale is {scale}, the method {lora.method}.",
                "New tokens are either in a prompt or not; there is no scale in between.",
                "Set GenerateConfig.lora_scale to 1, or 0 for the bare base.",
            )
        _use_embeddings(family, folder / EMBEDDINGS_FILE, lora, scale)

    @staticmethod
    def use_tokens(family, folder: Path, lora: Lora) -> None:
        _use_embeddings(family, folder / EMBEDDINGS_FILE, lora, 1)


class Pivotal(TextualInversion):
    """New tokens and a LoRA together."""

    @property
    def title(self) -> str:
        return f"{super().title} and LoRA of rank {self.config.rank}"

    def add(self) -> list[dict]:
        tokens = [group | {"factor": self.config.token_factor} for group in super().add()]
        return [*Method.add(self), *tokens]

    def state(self) -> dict:
        return Method.state(self) | super().state()

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        Method.load_state(self, {name: tensor for name, tensor in state.items() if not name.startswith("emb.")})

    def files(self, metadata: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        yield from [*Method.files(self, metadata), *super().files(metadata)]  # both are finite, or none is written

    @staticmethod
    def use(family, folder: Path, lora: Lora, scale: float) -> None:
        """Load the LoRA at a scale; the tokens are in the prompts unless it is 0."""
        family.use_lora(folder / lora.path, scale)
        _use_embeddings(family, folder / EMBEDDINGS_FILE, lora, scale)


def _use_embeddings(family, file: Path, lora: Lora, scale: float) -> None:
    """Add the new tokens of a file, or remove them if the scale is 0."""
    remove_tokens(family)
    if scale == 0:
        return
    try:
        tensors = load_file(file)
        _demand_sound(tensors)
        for key, (encoder, _) in ENCODERS.items():
            wanted = getattr(family.pipeline, encoder).get_input_embeddings().embedding_dim
            if tensors[key].shape[-1] != wanted:
                raise ValueError(f"{key} has embeddings of length {tensors[key].shape[-1]}, the base of {wanted}")
        add_tokens(family, lora.token, tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise does_not_fit(file, family.base, _said(error)) from error


def _demand_sound(tensors: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for tensors that hold NaN or infinity."""
    if names := spoilt(tensors):
        raise ValueError(f"{len(names)} of its tensors hold NaN or infinity: {', '.join(names[:2])}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__} {str(error)[:200]}"
