"""Loading of SDXL from a single .safetensors file, as A1111 and ComfyUI use it, without the hub.

Such a file holds weights only. The configs of SDXL 1.0 are in `sdxl_layout/`, in diffusers' layout. Both tokenizers
have CLIP's vocabulary, as the embedded base's have.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

from headshotkit.config.bases import BASES
from headshotkit.config.pretrained import V_PREDICTION, ZERO_SNR, header_of
from headshotkit.families import weights_place
from headshotkit.families.loading import dtype_option

LAYOUT = Path(__file__).with_name("sdxl_layout")
"""Configs of SDXL 1.0's parts."""
PADDING = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
"""Tokenizer of SDXL -> the token that fills its prompts."""


def load_pipeline(file: Path | str, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Load the whole pipeline.

    Raises:
        OSError, ValueError, RuntimeError: the file's weights do not have the sizes of SDXL 1.0.
    """
    place = weights_place(BASES["mini"])
    tokenizers = {
        name: CLIPTokenizer.from_pretrained(place, subfolder="tokenizer", pad_token=token)
        for name, token in PADDING.items()
    }
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(LAYOUT), local_files_only=True, add_watermarker=False, **tokenizers, **dtype_option(dtype)
    )
    pipeline.scheduler = _scheduler(pipeline.scheduler, Path(file))
    return pipeline


def load_unet(file: Path | str, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load the U-Net alone."""
    return UNet2DConditionModel.from_single_file(
        str(file), config=str(LAYOUT), subfolder="unet", local_files_only=True, **dtype_option(dtype)
    )


def _scheduler(usual: SchedulerMixin, file: Path) -> SchedulerMixin:
    """Return SDXL's scheduler, for velocity if a tensor of the file says that it predicts it."""
    names = header_of(file)
    if V_PREDICTION not in names:
        return usual
    changes = {"prediction_type": "v_prediction"}
    if ZERO_SNR in names:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(usual).from_config(usual.config, **changes)
