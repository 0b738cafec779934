"""The FLUX.2 [klein] family: Flux2KleinPipeline. Qwen3 encodes the words; a token is one latent."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

from headshotkit.families import Condition
from headshotkit.families.flow_matching import FlowFamily

DOUBLE = r"transformer_blocks\.\d+"
SINGLE = r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
"""A single block's attention and feed-forward share one matrix in and one out, so both targets train both."""


class Flux2Family(FlowFamily):
    """One loaded FLUX.2 [klein] base, not distilled: guidance is classifier-free, with negative prompts."""

    pipeline_class, transformer_class, vae_class = Flux2KleinPipeline, Flux2Transformer2DModel, AutoencoderKLFlux2
    text_parts = ("text_encoder", "tokenizer")
    layers = {
        "attention": rf"{DOUBLE}\.attn\.(to_[qkv]|to_out\.0)|{SINGLE}",
        "all": rf"{DOUBLE}\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.linear_(in|out))|"
        + SINGLE,
    }
    patch = 1

    def _encode_prompt(self, prompt: str) -> Condition:
        return Condition(text=self.texts.encode_prompt(prompt, device=self.device)[0].float().cpu())

    def _normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Patch, and normalise by the autoencoder's statistics; shape (N, 4 C, h / 2, w / 2)."""
        norm = self.vae.bn
        mean, spread = norm.running_mean, (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        patched = Flux2KleinPipeline._patchify_latents(raw)
        return (patched - mean.view(1, -1, 1, 1).to(patched)) / spread.view(1, -1, 1, 1).to(patched)

    def _velocity(self, noisy: torch.Tensor, levels: torch.Tensor, conditioning: Condition) -> torch.Tensor:
        answer = self.transformer(
            hidden_states=Flux2KleinPipeline._pack_latents(noisy),
            timestep=levels.to(self.dtype),
            guidance=None,
            encoder_hidden_states=conditioning["text"],
            txt_ids=Flux2KleinPipeline._prepare_text_ids(conditioning["text"]).to(self.device),
            img_ids=Flux2KleinPipeline._prepare_latent_ids(noisy).to(self.device),
            return_dict=False,
        )[0]
        return answer.transpose(1, 2).reshape(noisy.shape)

    def _conditioning(self, wanted: Condition, avoided: Condition | None, guidance: float) -> dict:
        return {
            "prompt_embeds": self._to_device(wanted["text"]),
            "negative_prompt_embeds": self._to_device(avoided["text"]),
            "guidance_scale": guidance,
        }

    def _decodable(self, made: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
        return made  # this pipeline undoes patches and norm itself
