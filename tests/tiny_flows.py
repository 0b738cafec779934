"""Small pipelines of the flow-matching bases' own classes, with random weights, as folders that diffusers loads.

Random weights prove plumbing only: that shapes, signs, files and seeds agree, not that a picture is good.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from headshotkit.core import runtime

WIDTH = 16
"""Of the text encoders' states and of an attention head."""
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONVOLUTIONS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def save_tiny(family: str, folder: Path) -> Path:
    """Saves a tiny base of a family and returns its folder."""
    torch.manual_seed(0)
    {"flux": _flux, "flux2": _flux2, "zimage": _zimage}[family]().save_pretrained(folder)
    return folder


def _flux() -> FluxPipeline:
    clip = CLIPTextConfig(hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                          vocab_size=49408, max_position_embeddings=77, projection_dim=WIDTH)  # fmt: skip
    t5 = T5Config(vocab_size=400, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                  feed_forward_proj="gated-gelu")  # fmt: skip
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(start + letter, -3.0) for start in ("", "▁", "th", "an") for letter in LETTERS]
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=WIDTH, num_attention_heads=2,
            joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        ),
        vae=AutoencoderKL(latent_channels=4, scaling_factor=0.36, shift_factor=0.12, **CONVOLUTIONS),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        text_encoder=CLIPTextModel(clip),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer=CLIPTokenizer.from_pretrained(runtime.data_path("mini", "base"), subfolder="tokenizer"),
        tokenizer_2=T5TokenizerFast(vocab=pieces),
    )  # fmt: skip


def _flux2() -> Flux2KleinPipeline:
    vae = AutoencoderKLFlux2(latent_channels=4, **CONVOLUTIONS)
    vae.bn.running_mean.uniform_(-0.2, 0.2)  # as if it had been trained, so that the norm matters
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=WIDTH, num_attention_heads=2,
            joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        text_encoder=Qwen3ForCausalLM(_qwen(layers=28)),
        tokenizer=_byte_tokenizer(),
    )  # fmt: skip


def _zimage() -> ZImagePipeline:
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4, dim=2 * WIDTH, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4], axes_lens=[600, 32, 32],
        ),
        vae=AutoencoderKL(latent_channels=4, scaling_factor=0.36, shift_factor=0.12, **CONVOLUTIONS),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=Qwen3Model(_qwen(layers=3)),
        tokenizer=_byte_tokenizer(),
    )  # fmt: skip


def _qwen(layers: int) -> Qwen3Config:
    return Qwen3Config(hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
                       num_key_value_heads=1, head_dim=8, vocab_size=300, max_position_embeddings=600)  # fmt: skip


def _byte_tokenizer() -> Qwen2TokenizerFast:
    """A Qwen tokenizer whose every token is a byte."""
    vocabulary = {piece: number for number, piece in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=[])
    tokenizer.chat_template = CHAT
    return tokenizer
