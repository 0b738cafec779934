"""What a folder or a file of weights says about itself: its configs and safetensors headers. No weight is loaded.

Headers are JSON at the beginning of a safetensors file, so this takes milliseconds and needs neither torch nor the hub.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
import os
from dataclasses import dataclass
from pathlib import Path

from headshotkit.config.families import FAMILIES
from headshotkit.core.errors import UnknownBase

INDEX = "model_index.json"
SUFFIX = ".safetensors"
SDXL_BLOCKS = ([320, 640, 1280], [1, 2, 10])
"""SDXL 1.0's block_out_channels and transformer_layers_per_block; the planner's costs were counted for these."""
SDXL_SIZE_PX = 1024
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
OTHERS = {
    "a LoRA": (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "lora_unet_"),
    "Stable Diffusion 1 or 2": ("cond_stage_model.",),
    "SDXL's refiner": ("conditioner.embedders.0.model.",),
    **{spec.known_as: spec.file_marks for spec in FAMILIES.values() if spec.file_marks},
    "a single part of a pipeline": ("down_blocks.", "transformer_blocks.", "text_model.", "decoder.", "encoder."),
}
"""What a file is that is not SDXL -> pieces of its tensors' names."""
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")
"""Tensors of models that were trained by EDM (arXiv:2206.00364), whose loss and scheduler are others."""
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Tensors by which a single file says that it predicts velocity, and starts from pure noise."""
MOST_HEADER_BYTES, MOST_CONFIG_BYTES = 64 * 2**20, 16 * 2**20
SAMPLES, SAMPLE_BYTES = 16, 2**16
"""Number and size of the pieces of a weights file that its fingerprint reads."""
NO_INPAINTING = "Give a base that is not for inpainting."
NEEDED = "A base is a folder in diffusers' layout, or one .safetensors file of SDXL with all of its parts."


@dataclass(frozen=True)
class Pretrained:
    """What is known of a base's weights.

    `family`: the code that runs it. `size_px`: side of the pictures it was trained on. `usual`: it has the sizes of
    its family, for which costs were counted. `numbers`: of its weights, 0 if not known. `fingerprint`: hex sha256 of
    configs, headers and pieces of the weights; empty on the hub, where a commit tells versions apart.
    """

    family: str
    size_px: int
    usual: bool
    numbers: int = 0
    fingerprint: str = ""


def read_pretrained(path: Path) -> Pretrained:
    """Read a local base: a folder in diffusers' layout, or a single .safetensors file.

    Raises:
        UnknownBase: it is neither, is not whole, or holds another kind of model.
    """
    try:
        if not path.exists():
            raise _refusal(f"there is no file or folder {path}.", "Check the path.")
        if path.is_dir():
            return _read_folder(path, _seen_in(path))
        seen = path.stat()
        return _read_file(path, ((path.name, seen.st_size, seen.st_mtime_ns),))
    except OSError as error:
        raise _refusal(f"{path} can't be read: {error.strerror or error}.", "Check the path and its rights.") from error


def read_family(folder: Path, shown: str) -> str:
    """Return the family of a folder in diffusers' layout, by its model_index.json.

    Raises:
        UnknownBase: it is of another kind.
    """
    kind = _config(folder / INDEX, shown).get("_class_name")
    known = {spec.pipeline: name for name, spec in FAMILIES.items()}
    if not isinstance(kind, str) or kind not in known:
        raise UnknownBase(
            f"{shown} is no base that is known: its {INDEX} names the class {str(kind)[:80]!r}.",
            f"The known classes are: {', '.join(known)}.",
            "Give a base of one of these, such as any fine-tuned SDXL, or a preset: --base sdxl",
        )
    return known[kind]


def read_layout(folder: Path, shown: str = "") -> Pretrained:
    """Read the configs of a folder in diffusers' layout, without its weights.

    Args:
        shown: its name in errors; empty: its path.
    Raises:
        UnknownBase: it holds another kind of model.
        OSError: a config can't be read.
    """
    shown = shown or str(folder)
    family, index = read_family(folder, shown), _config(folder / INDEX, shown)
    parts = FAMILIES[family].read_configs
    if not parts:
        return Pretrained(family, SDXL_SIZE_PX, True)
    unet, vae = (_config(folder / part / "config.json", shown) for part in parts)
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        problem = f"its U-Net reads {unet.get('in_channels')} channels, its latents have {vae.get('latent_channels')}"
        raise _refusal(f"{shown} does not draw from prompts alone: {problem}.", NO_INPAINTING)
    if str(_part(index, "scheduler")[1]).startswith("EDM"):
        raise _edm(shown)
    blocks = [unet.get(name) for name in ("block_out_channels", "transformer_layers_per_block")]
    size_px = _size_px(unet, vae)
    return Pretrained(family, size_px, tuple(blocks) == SDXL_BLOCKS and size_px == SDXL_SIZE_PX)


def header_of(path: Path) -> dict[str, dict]:
    """Return a safetensors file's header: tensor's name -> dtype, shape and place.

    Raises:
        ValueError: it is no such file, or is not whole.
        OSError: it can't be read.
    """
    with open(path, "rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError("it does not begin with a safetensors header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((operator.index(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
            _numbers(header)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError("its safetensors header is damaged") from error
    if size != 8 + length + end:
        raise ValueError(f"it holds {size:,} bytes, its header announces {8 + length + end:,}")
    return header


@functools.lru_cache(maxsize=64)
def _read_folder(folder: Path, _seen: tuple) -> Pretrained:
    """Read a folder; `_seen` are its files, so that a changed one is read anew."""
    if not (folder / INDEX).is_file():
        files = sorted(folder.glob(f"*{SUFFIX}"))
        given = f"--base {files[0]}" if len(files) == 1 else f"one of its {len(files)} {SUFFIX} files"
        raise _refusal(f"{folder} holds no {INDEX}.", f"Give {given if files else 'the folder that holds it'}.")
    found = read_layout(folder)
    index, numbers, digest = _config(folder / INDEX, str(folder)), 0, hashlib.sha256()
    for part in sorted(name for name in index if _part(index, name)[1]):
        weights = sorted((folder / part).glob(f"*{SUFFIX}"))
        if not weights and not part.startswith(("tokenizer", "scheduler", "feature_extractor")):
            raise _refusal(f"{folder} holds no {SUFFIX} file in {part}/.", "Copy or download the whole folder again.")
        whole = [file for file in weights if ".fp16" not in file.name]
        numbers += sum(_numbers(_sound_header(file)) for file in whole or weights)
        for file in weights:
            _add_weights(digest, f"{part}/{file.name}", file)
    for file in sorted([folder / INDEX, *folder.glob("*/*.json"), *folder.glob("*/*.txt"), *folder.glob("*/*.model")]):
        if file.stat().st_size <= MOST_CONFIG_BYTES:
            digest.update(f"{file.relative_to(folder).as_posix()} {_sha256(file.read_bytes())}\n".encode())
    return Pretrained(found.family, found.size_px, found.usual, numbers, digest.hexdigest())


@functools.lru_cache(maxsize=64)
def _read_file(path: Path, _seen: tuple) -> Pretrained:
    """Read a single file; `_seen` is its size and time, so that a changed one is read anew."""
    if path.suffix != SUFFIX or not path.is_file():
        reason = "A .ckpt or .bin file can run programs when it is loaded. " * (path.suffix in (".ckpt", ".bin", ".pt"))
        raise UnknownBase(f"{path} is no {SUFFIX} file.", f"{reason}{NEEDED}", f"Give a {SUFFIX} file.")
    header = _sound_header(path)
    lacking = {
        family: [part for part, begin in spec.file_parts.items() if not any(name.startswith(begin) for name in header)]
        for family, spec in FAMILIES.items() if spec.file_parts
    }  # fmt: skip
    family, missing = min(lacking.items(), key=lambda found: len(found[1]))
    if any(name in header for name in EDM):
        raise _edm(str(path))
    if len(missing) == len(FAMILIES[family].file_parts) or "the second text encoder" in missing:
        kinds = (kind for kind, pieces in OTHERS.items() if any(piece in name for name in header for piece in pieces))
        looks = next(kinds, "something else")
        raise _refusal(f"{path} is not SDXL: it looks like {looks}.", "Give an SDXL checkpoint.")
    if missing:
        raise _refusal(f"{path} lacks {', '.join(missing)} of SDXL.", "Give a checkpoint that holds all parts.")
    channels = sum(header[FIRST_LAYER]["shape"][1:2]) if FIRST_LAYER in header else 4
    if channels != 4:
        raise _refusal(f"{path} does not draw from prompts alone: its U-Net reads {channels} channels, SDXL's latents "
                       "have 4.", NO_INPAINTING)  # fmt: skip
    digest = hashlib.sha256()
    _add_weights(digest, "", path)
    return Pretrained(family, SDXL_SIZE_PX, True, _numbers(header), digest.hexdigest())


def _seen_in(folder: Path) -> tuple:
    """Return name, size and time of the files that decide what a folder is."""
    files = sorted(file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.is_file())
    facts = [(file, file.stat()) for file in files if file.suffix in (".json", ".txt", ".model", SUFFIX)]
    return tuple((file.relative_to(folder).as_posix(), fact.st_size, fact.st_mtime_ns) for file, fact in facts)


def _config(path: Path, shown: str) -> dict:
    """Return a JSON config.

    Raises:
        UnknownBase: it is no JSON object, or missing.
    """
    try:
        config = json.loads(path.read_bytes()[:MOST_CONFIG_BYTES])
        if isinstance(config, dict):
            return config
        problem = f"it is a {type(config).__name__}, not an object"
    except FileNotFoundError:
        problem = "it is missing"
    except (ValueError, RecursionError) as error:
        problem = str(error).splitlines()[0][:120]
    name = path.relative_to(path.parents[0 if path.name == INDEX else 1]).as_posix()
    raise _refusal(f"{name} of {shown} can't be used: {problem}.", "Copy or download the whole folder again.")


def _part(index: dict, name: str) -> tuple[object, object]:
    """Return library and class of a pipeline's part; (None, None) if it is none, or left out."""
    value = index.get(name)
    return tuple(value) if isinstance(value, list) and len(value) == 2 else (None, None)


def _size_px(unet: dict, vae: dict) -> int:
    """Return the side of the pictures that a base was trained on; SDXL's if the configs don't tell."""
    side, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    if not isinstance(side, int) or not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
        return SDXL_SIZE_PX
    size = side * 2 ** (len(blocks) - 1)
    return size if 64 <= size <= 4096 and size % 32 == 0 else SDXL_SIZE_PX


def _sound_header(path: Path) -> dict[str, dict]:
    try:
        return header_of(path)
    except ValueError as error:
        raise _refusal(f"{path} is not whole, or no {SUFFIX} file: {error}.", "Copy or download it again.") from error


def _numbers(header: dict[str, dict]) -> int:
    return sum(math.prod(map(operator.index, tensor["shape"])) for tensor in header.values())


def _add_weights(digest, name: str, path: Path) -> None:
    """Add a weights file to a fingerprint: name, size, header and evenly spaced pieces, so that training shows."""
    size = path.stat().st_size
    digest.update(f"{name} {size}\n".encode())
    with open(path, "rb") as file:
        digest.update(file.read(int.from_bytes(file.read(8), "little")))
        for piece in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * piece // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refusal(happened: str, next_step: str) -> UnknownBase:
    return UnknownBase(happened, NEEDED, next_step)


def _edm(shown: str) -> UnknownBase:
    why = "Such a model (Playground 2.5, CosXL) needs another loss and another sampler."
    return UnknownBase(f"{shown} was trained by EDM.", why, "Give another SDXL, or a preset: --base sdxl")
