"""Count the costs of SDXL, without a weight or a GPU: FLOPs, bytes of weights, peak memory.

The real networks run on tensors of device meta, which have a shape and a dtype but no memory. FLOPs are torch's own
count (2 for a multiplication with addition). Memory is the sum of all live storages: weights, LoRA, gradients, and
what autograd keeps for the backward pass. `Rules` makes the operations run as they do on a T4.
The results are kept in `costs.COUNTED`, which `python tests/benchmarks/counting.py` prints anew.

A step at 768 px was counted with FakeTensorMode and real autocast as well: the same FLOPs, the same GiB to four
digits. A test does so with a small U-Net.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from functools import partial

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from headshotkit.core.runtime import data_path
from headshotkit.families.costs import GIB, KINDS, SIZES_OF, SIZES_PX, Cost
from headshotkit.families.sdxl_methods import NewTokens

UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""SDXL 1.0's U-Net, for diffusers.UNet2DConditionModel; 2,567,463,684 parameters, as published (2.6 B)."""
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
"""SDXL 1.0's autoencoder, for diffusers.AutoencoderKL."""
TEXT = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "projection_dim": 768},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
     "projection_dim": 1280, "hidden_act": "gelu"},
)  # fmt: skip
"""SDXL's text encoders, CLIP ViT-L and OpenCLIP bigG, for transformers."""
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers with a LoRA, as in `TrainConfig.targets` "attention"."""
MINI_TARGETS = (*TARGETS, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut",
                "time_emb_proj")  # fmt: skip
"""Layers with a LoRA, as in "all"; the embedded base's preset."""
WITH_TOKENS = ("textual-inversion", "pivotal")
"""Methods that learn new tokens, so that the text encoders are part of a step."""
TOKENS, TEXT_WIDTH, POOLED_WIDTH, TIME_IDS = 77, 2048, 1280, 6
RANK = 32
BLOCK = 512
"""Bytes; CUDA's allocator hands out memory in multiples of this."""


def count(kind: str, px: int = 1024, batch: int = 1) -> Cost:
    """Count one cost on the real network; 1 to 10 seconds of a CPU.

    Args:
        kind: one of `costs.KINDS`.
        px: side of the square picture, a multiple of 32.
        batch: pictures, or prompts for "text".
    """
    with torch.device("meta"):
        if kind == "text":
            return _run(TextEncoders().half(), (torch.empty(batch, TOKENS, dtype=torch.long),))
        if kind in ("decode", "encode"):
            vae = AutoencoderKL(**VAE).half()
            vae.forward = vae.decode if kind == "decode" else vae.encode
            channels, side = (4, px // 8) if kind == "decode" else (3, px)
            return _run(vae, (torch.empty(batch, channels, side, side, dtype=torch.float16),))
        if kind == "forward":
            return _run(UNet2DConditionModel(**UNET).half().requires_grad_(False), _unet_inputs(px, batch))
        step, checkpointing = kind.removeprefix("mini_").removesuffix("_checkpointed"), kind.endswith("_checkpointed")
        return (_count_mini if kind.startswith("mini_") else _count_step)(step, px, batch, checkpointing)


def _count_step(step: str, px: int, batch: int, checkpointing: bool) -> Cost:
    """Count a training step of SDXL: float16, trained parameters in float32."""
    unet = UNet2DConditionModel(**UNET).half().requires_grad_(False)
    if step == "dreambooth":
        unet.float().requires_grad_(True)
    elif step != "textual-inversion":
        add_lora(unet)
    full = () if step == "step_half_norms" or (step == "pivotal" and not checkpointing) else NORMS
    if checkpointing:
        unet.enable_gradient_checkpointing(partial(_checkpoint, full, None))
    network = WithEncoders(unet.train(), TextEncoders().half()) if step in WITH_TOKENS else unet.train()
    return _run(network, _unet_inputs(px, batch), full, learn=True)


def _count_mini(step: str, px: int, batch: int, checkpointing: bool) -> Cost:
    """Count a step of the embedded base: float32 throughout, a LoRA of rank 32 in all layers that can have one.

    Its autoencoder's latents have 1/16 of the side.
    """
    place = data_path("mini", "base", "unet")
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(place)).requires_grad_(False)
    if step == "dreambooth":
        unet.requires_grad_(True)
    elif step != "textual-inversion":
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(MINI_TARGETS)), "person")
    if checkpointing:
        unet.enable_gradient_checkpointing(partial(_checkpoint, (), ()))
    side, time_ids = px // 16, torch.empty(batch, TIME_IDS)
    pooled = unet.config.projection_class_embeddings_input_dim - TIME_IDS * unet.config.addition_time_embed_dim
    text = torch.empty(batch, TOKENS, unet.config.cross_attention_dim)
    conditions = {"text_embeds": torch.empty(batch, pooled), "time_ids": time_ids}
    latents = torch.empty(batch, unet.config.in_channels, side, side)
    inputs = (latents, torch.empty(batch), text, None, None, None, None, conditions)
    network = WithEncoders(unet.train(), _mini_encoders()) if step in WITH_TOKENS else unet.train()
    return _run(network, inputs, learn=True, half=())


def _mini_encoders() -> TextEncoders:
    folders = [data_path("mini", "base", name) for name in ("text_encoder", "text_encoder_2")]
    return TextEncoders([CLIPTextConfig.from_pretrained(folder) for folder in folders])


def count_parameters(network: str = "unet") -> int:
    """Return the number of parameters of the "unet", the "vae" or the "text" encoders."""
    made = {"unet": partial(UNet2DConditionModel, **UNET), "vae": partial(AutoencoderKL, **VAE), "text": TextEncoders}
    with torch.device("meta"):
        return sum(p.numel() for p in made[network]().parameters())


class TextEncoders(torch.nn.Module):
    """Both encoders as one network from token ids to the U-Net's text input; SDXL's own by default."""

    def __init__(self, configs: list[CLIPTextConfig] | None = None) -> None:
        super().__init__()
        first, second = configs or [CLIPTextConfig(**text) for text in TEXT]
        self.first, self.second = CLIPTextModel(first), CLIPTextModelWithProjection(second)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([e(ids, output_hidden_states=True).hidden_states[-2] for e in self.children()], -1)


class WithEncoders(torch.nn.Module):
    """The U-Net with both text encoders, which have four new tokens, one of them in the prompt."""

    def __init__(self, unet: UNet2DConditionModel, text: TextEncoders) -> None:
        super().__init__()
        self.unet, self.text = unet, text.requires_grad_(False)
        for encoder in self.text.children():
            table = encoder.get_input_embeddings()
            new = NewTokens(table, torch.empty(4, table.embedding_dim), table.num_embeddings)
            new.new.requires_grad_(True)
            encoder.set_input_embeddings(new)

    def forward(self, latents, time, text, *unused):
        ids = torch.empty(len(text), TOKENS, dtype=torch.long)
        first = self.text.first(ids, output_hidden_states=True).hidden_states[-2]
        second = self.text.second(ids, output_hidden_states=True)
        added = {"text_embeds": second.text_embeds, "time_ids": unused[-1]["time_ids"]}
        return self.unet(latents, time, torch.cat([first, second.hidden_states[-2]], -1), added_cond_kwargs=added)


def _unet_inputs(px: int, batch: int) -> tuple:
    """Return latents, time, text, five unused, and SDXL's micro-conditioning, in the U-Net's order."""
    half = partial(torch.empty, dtype=torch.float16)
    added = {"text_embeds": half(batch, POOLED_WIDTH), "time_ids": half(batch, TIME_IDS)}
    latents = half(batch, 4, px // 8, px // 8)
    return latents, torch.empty(batch), half(batch, TOKENS, TEXT_WIDTH), None, None, None, None, added


def add_lora(unet: UNet2DConditionModel) -> int:
    """Add a LoRA by peft, float32 on the float16 base, as in `SdxlFamily.add_lora`; return its number of parameters."""
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), "person")
    trained = [p for p in unet.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return sum(p.numel() for p in trained)


def _run(
    network: torch.nn.Module, inputs: tuple, full: tuple = (), learn: bool = False, half: tuple | None = None
) -> Cost:
    """Run a network, and backwards too if it is to learn."""
    with Counter() as counter, torch.set_grad_enabled(learn):
        counter.note([*network.parameters(), *network.buffers()])
        weights = counter.now
        counter.note(tree_leaves(inputs))
        with Rules(full, half):
            made = network(*inputs)
        if learn:
            made.sample.float().pow(2).mean().backward()
    return Cost(counter.flops / 1e12, counter.peak / GIB, weights / GIB)


def _checkpoint(full: tuple, half: tuple | None, module: torch.nn.Module, *inputs):
    """Checkpoint gradients, with the same rules in the second pass as in the first."""
    rules = (nullcontext(), Rules(full, half))
    return checkpoint(module.__call__, *inputs, use_reentrant=False, context_fn=lambda: rules)


class Counter(TorchDispatchMode):
    """Counter of FLOPs, and of every tensor that an operation makes until its storage is freed: `now`, `peak`, bytes.

    The formulas are those of torch's FlopCounterMode. That mode hooks into the modules and so keeps tensors alive that
    would have been freed: 9.3 GiB instead of 5.6 for a checkpointed step at 1024 px.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.now, self.peak, self.sizes = 0, 0, 0, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in flop_registry:
            self.flops += flop_registry[operation.overloadpacket](*args, **(kwargs or {}), out_val=made)
        self.note(tree_leaves(made))
        return made

    def note(self, values: list) -> None:
        """Count the storages of those values that are tensors, each once."""
        for storage in [value.untyped_storage() for value in values if isinstance(value, torch.Tensor)]:
            if id(storage) not in self.sizes:
                self.sizes[id(storage)] = -(-storage.nbytes() // BLOCK) * BLOCK
                self.now += self.sizes[id(storage)]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, id(storage))

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


HALF = (functional.linear, functional.conv2d)
NORMS = (functional.layer_norm, functional.group_norm)


class Rules(TorchFunctionMode):
    """The rules by which a T4 computes SDXL's operations.

    Autocast has no rules for device meta, so CUDA's rules for SDXL's operations are applied here: linear layers and
    convolutions in float16, a trained weight converted once a pass; norms in float32. Attention is the memory-efficient
    kernel, PyTorch's one for sm_75: it keeps no matrix of all pairs, and computes it again in the backward pass.

    Args:
        full: the functions computed in float32.
        half: the functions computed in float16; None is HALF.
    """

    def __init__(self, full: tuple = (), half: tuple | None = None) -> None:
        super().__init__()
        self.full, self.half, self.converted = full, HALF if half is None else half, {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if function in self.half:
            args, kwargs = [self._half(x) for x in args], {name: self._half(x) for name, x in kwargs.items()}
        elif function in self.full:
            args, kwargs = [_float(x) for x in args], {name: _float(x) for name, x in kwargs.items()}
        return function(*args, **kwargs)

    def _half(self, x):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.half()
        if id(x) not in self.converted:
            self.converted[id(x)] = x.half()
        return self.converted[id(x)]


def _float(x):
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal, scale=scale)[0]


if __name__ == "__main__":
    for kind in KINDS:
        for px in SIZES_OF.get(kind, SIZES_PX):
            counted = count(kind, px)
            print(f'    ("{kind}", {px}): ({counted.tflop:.4g}, {counted.peak_gib:.4g}, {counted.weights_gib:.4g}),')
