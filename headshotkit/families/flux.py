"""The FLUX.1 family: FluxPipeline, such as FLUX.1 [dev]. T5 encodes words, CLIP the whole; a token is 2 x 2 latents."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from headshotkit.families import Condition
from headshotkit.families.flow_matching import FlowFamily

TRAIN_GUIDANCE = 1.0
"""Guidance value of a guidance-distilled base in training: follow the picture and exaggerate nothing. Source: the
examples of diffusers' train_dreambooth_lora_flux.py."""
ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"


class FluxFamily(FlowFamily):
    """One loaded FLUX.1 base. Its distilled guidance is an input number, so negative prompts have no effect."""

    pipeline_class, transformer_class = FluxPipeline, FluxTransformer2DModel
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    large_text_parts = ("text_encoder_2",)
    layers = {
        "attention": rf"(single_)?transformer_blocks\.\d+\.({ATTENTION})",
        "all": rf"(single_)?transformer_blocks\.\d+\.({ATTENTION}|{FEED_FORWARD})",
    }
    uses_negatives = False

    def _encode_prompt(self, prompt: str) -> Condition:
        text, pooled, _ = self.texts.encode_prompt(prompt, device=self.device)
        return Condition(text=text.float().cpu(), pooled=pooled.float().cpu())

    def _velocity(self, noisy: torch.Tensor, levels: torch.Tensor, conditioning: Condition) -> torch.Tensor:
        n, channels, height, width = noisy.shape
        guided = self.transformer.config.guidance_embeds
        answer = self.transformer(
            hidden_states=FluxPipeline._pack_latents(noisy, n, channels, height, width),
            timestep=levels.to(self.dtype),
            guidance=torch.full((n,), TRAIN_GUIDANCE, device=self.device) if guided else None,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=conditioning["text"],
            txt_ids=torch.zeros(conditioning["text"].shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(n, height // 2, width // 2, self.device, self.dtype),
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(answer, height, width, 1)

    def _conditioning(self, wanted: Condition, avoided: Condition | None, guidance: float) -> dict:
        return {
            "prompt_embeds": self._to_device(wanted["text"]),
            "pooled_prompt_embeds": self._to_device(wanted["pooled"]),
            "guidance_scale": guidance,
        }

    def _decodable(self, made: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
        width, height = size_px
        return super()._decodable(FluxPipeline._unpack_latents(made, height, width, self.size_factor // 2), size_px)
