"""Loading of weights in every family: their place, silence, argument names, NF4 and its reason, the error.

NF4 is the 4-bit form of QLoRA, Dettmers et al. 2023, arXiv:2305.14314, by bitsandbytes, with the scales quantized as
well.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from headshotkit.config.bases import Base
from headshotkit.core import hub, runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.errors import BaseUnavailable
from headshotkit.families import base_wanted, weights_place


@contextmanager
def quiet():
    """Keep the libraries' loading bars and advice out of a stage's output; errors still show."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


def dtype_option(dtype: torch.dtype) -> dict:
    """Return the dtype argument of from_pretrained under this diffusers' name for it (renamed in 0.42)."""
    modern = tuple(int(n) for n in diffusers.__version__.split(".")[:2]) >= (0, 42)
    return {"dtype" if modern else "torch_dtype": dtype}


@dataclass(frozen=True)
class Precision:
    """The precision in which a large base is held and computed.

    `dtype`: of the denoiser. `side_dtype`: of the text encoders and the autoencoder; never float16, in which T5, Qwen3
    and FLUX's autoencoder overflow. `nf4`: whether linear layers are held in 4 bits. `reason`: all of it in a line.
    """

    dtype: torch.dtype
    side_dtype: torch.dtype
    nf4: bool
    reason: str


def choose_precision(device: str) -> Precision:
    """Choose NF4 on CUDA, the dtype's full size on other devices, with the reason.

    Raises:
        MissingPackage: the device is CUDA, and bitsandbytes is not installed.
    """
    dtype, why = runtime.choose_dtype(device)
    side = torch.float32 if dtype == torch.float16 else dtype
    names = [str(one).removeprefix("torch.") for one in (dtype, side)]
    if device != "cuda":
        reason = f"{names[0]}, not NF4, because diffusers supports NF4 on CUDA only and this is {device}: {why}"
        return Precision(dtype, side, False, reason)
    runtime.require("bitsandbytes", "train")
    reason = f"NF4 weights by bitsandbytes, denoiser in {names[0]}, encoders in {names[1]}: {why}"
    return Precision(dtype, side, True, reason)


def nf4_option(library: str, dtype: torch.dtype) -> dict:
    """Return from_pretrained's argument for NF4; library is "diffusers" or "transformers", dtype the computing one.

    >>> nf4_option("transformers", torch.float16)["quantization_config"].bnb_4bit_quant_type
    'nf4'
    """
    kind = {"diffusers": diffusers, "transformers": transformers}[library].BitsAndBytesConfig
    config = kind(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config}


def base_folder(base: Base, half: bool = False, without: tuple[str, ...] = ()) -> str:
    """Return the folder of a base's weights, or its single file; download the missing ones.

    Args:
        half: the float16 files, if there are any.
        without: parts that are not needed.
    Raises:
        BaseUnavailable: it is not on this machine and can't be downloaded.
    """
    if base.source.startswith("data:") or base.is_file:
        return weights_place(base)
    return str(hub.fetch(replace(base_wanted(base), half=half, without=without)))


@contextmanager
def loading(title: str, place: Path | str, otherwise: str):
    """Load in silence from local files.

    Args:
        title: names what is loaded.
        otherwise: what else a person can do.
    Raises:
        BaseUnavailable: the files can't be read, or aren't what the libraries expect. Errors of memory pass.
    """
    try:
        with quiet():
            yield
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseUnavailable(
            f"{title} ({place}) can't be loaded: {first_line(error)}",
            "A file is missing or damaged, or was made for another version of the libraries.",
            f"Delete that folder if it was downloaded, reinstall if it came with headshotkit, or {otherwise}",
        ) from error
