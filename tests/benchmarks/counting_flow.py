"""Count the costs of the flow-matching bases, as `counting` does for SDXL: the real networks on device meta.

The denoiser is counted as `families.flow_matching` runs it: float16 without autocast, a float32 LoRA, linear layers
held in NF4, one at a time converted to float16. Text encoders and autoencoder are counted in float32, as on a GPU
without fast bf16; with it they take about half. bitsandbytes itself has not been run: its bytes are arithmetic.
The results are kept in `costs_flow.COUNTED_FLOW`, which `python tests/benchmarks/counting_flow.py` prints anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import counting
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    ZImageTransformer2DModel,
)
from peft import LoraConfig
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3ForCausalLM, Qwen3Model, T5Config
from transformers import T5EncoderModel as T5

from headshotkit.config.bases import BASES
from headshotkit.families.costs import GIB, Cost
from headshotkit.families.costs_flow import FLOW_KINDS, FLOW_SIZES_PX, WORDS
from headshotkit.families.flux import FluxFamily
from headshotkit.families.flux2 import Flux2Family
from headshotkit.families.zimage import ZImageFamily

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in NF4: 4 bits, an 8-bit scale for 64 weights, a 32-bit one for 256 scales (QLoRA, section 3)."""
DENOISERS: dict[str, Callable[[], torch.nn.Module]] = {
    "flux": lambda: FluxTransformer2DModel(guidance_embeds=True),
    "flux2": lambda: Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    ),
    "zimage": lambda: ZImageTransformer2DModel(axes_lens=[1536, 512, 512]),
}
"""The published configs: 11.901, 3.876 and 6.155 B parameters. Sources: diffusers' defaults and conversion scripts
(convert_flux2_to_diffusers.py, klein-4b); Tongyi-MAI/Z-Image-Turbo's config, which Z-Image shares."""
FAMILIES = {"flux": FluxFamily, "flux2": Flux2Family, "zimage": ZImageFamily}
KEPT_WHOLE = ("wo", "lm_head", "shared", "embed_tokens")
"""Layers that transformers leaves out of NF4: T5's `wo`, and heads and embeddings."""


def count(base: str, kind: str, px: int = 1024) -> Cost:
    """Count one cost at batch 1; 1 to 20 seconds of a CPU.

    Args:
        base: "flux", "flux2" or "zimage".
        kind: one of `costs_flow.FLOW_KINDS`.
        px: side of the square picture, a multiple of 16.
    """
    with torch.device("meta"):
        if kind == "text":
            return _sum([_measure(network, call, torch.float32) for network, call in _texts(base)])
        if kind in ("encode", "decode"):
            return _measure(*_autoencoder(base, kind, px), torch.float32, quantized=False)
        network = DENOISERS[base]().half().requires_grad_(False)
        if kind != "forward":
            rank = BASES[base].presets["TrainConfig"]["rank"]
            network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=FAMILIES[base].layers["attention"]))
            for parameter in network.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
            network.train()
        if kind == "step_checkpointed":
            network.enable_gradient_checkpointing(_checkpoint)
        return _measure(network, _denoising(base, px), torch.float16, learn=kind != "forward")


def _denoising(base: str, px: int) -> Callable:
    """Return a call of a denoiser, with inputs of the real shapes."""

    def half(*shape):
        return torch.empty(*shape, dtype=torch.float16)

    tokens, words, time = (px // 16) ** 2, WORDS[base], half(1)
    if base == "flux":
        kwargs = {"pooled_projections": half(1, 768), "guidance": half(1), "txt_ids": half(words, 3),
                "img_ids": half(tokens, 3), "encoder_hidden_states": half(1, words, 4096)}  # fmt: skip
        return lambda network: network(half(1, tokens, 64), timestep=time, return_dict=False, **kwargs)[0]
    if base == "flux2":
        kwargs = {"txt_ids": half(words, 4), "img_ids": half(tokens, 4), "encoder_hidden_states": half(1, words, 7680)}
        return lambda network: network(half(1, tokens, 128), timestep=time, return_dict=False, **kwargs)[0]
    return lambda network: network([half(16, 1, px // 8, px // 8)], time, [half(words, 2560)], return_dict=False)[0][0]


def _texts(base: str) -> list[tuple[torch.nn.Module, Callable]]:
    """Return the text encoders, each with its call."""
    ids = torch.empty(1, 512, dtype=torch.long)
    if base == "flux":
        t5 = T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                      feed_forward_proj="gated-gelu")  # fmt: skip
        clip = CLIPTextModel(CLIPTextConfig(**counting.TEXT[0]))
        return [(T5(t5), lambda network: network(ids)[0]), (clip, lambda network: network(ids[:, :77])[0])]
    qwen = Qwen3Config(vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, head_dim=128,
                       num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True)  # fmt: skip
    kind = Qwen3ForCausalLM if base == "flux2" else Qwen3Model
    kwargs = {"attention_mask": {"full_attention": None}, "output_hidden_states": True, "use_cache": False}
    return [(kind(qwen), lambda network: network(ids, **kwargs).hidden_states[-2])]


def _autoencoder(base: str, kind: str, px: int) -> tuple[torch.nn.Module, Callable]:
    """Return FLUX.1's autoencoder, which Z-Image shares, or FLUX.2's, and its call."""
    vae = AutoencoderKLFlux2() if base == "flux2" else AutoencoderKL(**counting.VAE, latent_channels=16)
    if kind == "encode":
        return vae, lambda network: network.encode(torch.empty(1, 3, px, px)).latent_dist.mode()
    latents = torch.empty(1, 32 if base == "flux2" else 16, px // 8, px // 8)
    return vae, lambda network: network.decode(latents).sample


def _measure(
    network: torch.nn.Module, call: Callable, dtype: torch.dtype, quantized: bool = True, learn: bool = False
) -> Cost:
    """Run a network, and backwards too if it is to learn; then replace its linear layers' bytes by NF4's."""
    packed = [
        module.weight.numel()
        for name, module in network.named_modules()
        if quantized and isinstance(module, torch.nn.Linear) and "lora_" not in name
        and name.rpartition(".")[2] not in KEPT_WHOLE and not isinstance(network, CLIPTextModel)
    ]  # fmt: skip
    with counting.Counter() as counter, torch.set_grad_enabled(learn), Attention():
        counter.note([*network.parameters(), *network.buffers()])
        whole = counter.now
        made = call(network)
        if learn:
            made.float().pow(2).mean().backward()
    saved = sum(packed) * (dtype.itemsize - NF4_BYTES)
    one_layer = max(packed, default=0) * dtype.itemsize
    return Cost(counter.flops / 1e12, (counter.peak - saved + one_layer) / GIB, (whole - saved) / GIB)


def _sum(costs: list[Cost]) -> Cost:
    """Sum the costs of networks that are in memory together and run one after the other."""
    weights = sum(one.weights_gib for one in costs)
    working = max(one.peak_gib - one.weights_gib for one in costs)
    return Cost(sum(one.tflop for one in costs), weights + working, weights)


class Attention(TorchFunctionMode):
    """Attention by the memory-efficient kernel, PyTorch's one for sm_75; see `counting.Rules`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is functional.scaled_dot_product_attention:
            return counting._attend(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _checkpoint(module: torch.nn.Module, *inputs):
    """Checkpoint gradients, with the same attention in the second pass as in the first."""
    return checkpoint(module.__call__, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), Attention()))


if __name__ == "__main__":
    for base in DENOISERS:
        for kind in FLOW_KINDS:
            for px in FLOW_SIZES_PX if kind != "text" else FLOW_SIZES_PX[-1:]:
                one = count(base, kind, px)
                figures = f"({one.tflop:.3f}, {one.peak_gib:.3f}, {one.weights_gib:.3f})"
                print(f'    ("{base}", "{kind}", {px}): {figures},', flush=True)
