"""The Z-Image family: ZImagePipeline. Qwen3 encodes the words, without padding; a token is 2 x 2 latents.

Its feed-forward layers exceed float16's 65504, and infinity turns into NaN, so a black picture. On a GPU without fast
bf16 they are clamped there, as in ComfyUI and SD.Next (vladmandic/sdnext #4753).
"""

from __future__ import annotations

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch.nn import functional

from headshotkit.families import Condition
from headshotkit.families.flow_matching import FlowFamily

BLOCK = r"(layers|noise_refiner|context_refiner)\.\d+"
ATTENTION = r"attention\.(to_[qkv]|to_out\.0)"


class ZImageFamily(FlowFamily):
    """One loaded Z-Image base, not distilled: guidance is classifier-free, with negative prompts."""

    pipeline_class, transformer_class = ZImagePipeline, ZImageTransformer2DModel
    text_parts = ("text_encoder", "tokenizer")
    layers = {
        "attention": rf"{BLOCK}\.{ATTENTION}",
        "all": rf"{BLOCK}\.({ATTENTION}|feed_forward\.w[123])",
    }

    def _made_safe(self, transformer: torch.nn.Module) -> torch.nn.Module:
        return clamp_half(transformer) if self.dtype == torch.float16 else transformer

    def _encode_prompt(self, prompt: str) -> Condition:
        """Return the words' states, padded with zeros to the tokenizer's maximum, and the number of words."""
        words = self.texts.encode_prompt(prompt, device=self.device, do_classifier_free_guidance=False)[0][0]
        filled = functional.pad(words.float().cpu(), (0, 0, 0, MOST_WORDS - len(words)))
        return Condition(text=filled[None], words=torch.tensor([len(words)]))

    def _words(self, conditioning: Condition) -> list[torch.Tensor]:
        """Return this denoiser's input: a tensor (words, D) a prompt."""
        rows = self._to_device(conditioning["text"])
        return [row[:count] for row, count in zip(rows, conditioning["words"].tolist(), strict=True)]

    def _velocity(self, noisy: torch.Tensor, levels: torch.Tensor, conditioning: Condition) -> torch.Tensor:
        """Predict noise - latents; Z-Image counts time from noise to picture, and predicts latents - noise."""
        frames = list(noisy.unsqueeze(2).unbind())
        answer = self.transformer(frames, (1 - levels).to(self.dtype), self._words(conditioning), return_dict=False)[0]
        return -torch.stack(answer).squeeze(2)

    def _conditioning(self, wanted: Condition, avoided: Condition | None, guidance: float) -> dict:
        """Return the pipeline's arguments; it adds guidance times the difference, so here 0 is off, not 1."""
        return {
            "prompt_embeds": self._words(wanted),
            "negative_prompt_embeds": self._words(avoided),
            "guidance_scale": max(0.0, guidance - 1),
        }


MOST_WORDS = 512
"""Most tokens of a prompt that ZImagePipeline reads; a longer one is cut."""


def clamp_half(transformer: torch.nn.Module) -> torch.nn.Module:
    """Keep a Z-Image denoiser finite in float16: clamp the feed-forwards' products and the branches' sums.

    Only this one network changes, not its class. In other dtypes the clamps would do nothing.
    """
    for block in transformer.modules():
        if isinstance(block, ZImageTransformerBlock):
            block.feed_forward._forward_silu_gating = _gate_in_range
            for branch in (block.attention, block.feed_forward):
                branch.register_forward_hook(lambda _module, _inputs, made: _in_range(made))
    return transformer


def _gate_in_range(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute SwiGLU's product, Shazeer 2020, arXiv:2002.05202, within float16."""
    return _in_range(functional.silu(gate) * value)


def _in_range(values: torch.Tensor) -> torch.Tensor:
    """Replace infinities by the largest finite values, and NaN, the product of infinity and 0, by 0."""
    largest = torch.finfo(torch.float16).max
    return torch.nan_to_num(values, nan=0.0, posinf=largest, neginf=-largest)
