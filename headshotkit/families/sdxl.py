"""The SDXL family: every StableDiffusionXLPipeline, from the embedded base to the 2.6 B parameter one.

The scheduler's config decides what the U-Net predicts (epsilon or v), never this code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from headshotkit.config import TrainConfig
from headshotkit.config.bases import Base
from headshotkit.config.few_steps import FewSteps
from headshotkit.core import hub, runtime
from headshotkit.core.errors import OutOfMemory
from headshotkit.families import (
    Condition,
    Noised,
    Sampling,
    check_size,
    drawing,
    frugal,
    sdxl_single_file,
)
from headshotkit.families.expressions import with_expression
from headshotkit.families.half import keep_norms_half
from headshotkit.families.loading import base_folder, dtype_option, loading, quiet
from headshotkit.families.lora_files import load_lora_file, load_lora_tensors, lora_bytes, lora_tensors, put_lora
from headshotkit.families.on_disk import copies_on_disk

ENCODER_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "all": [
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
        "conv1", "conv2", "conv_shortcut", "time_emb_proj",
    ],
}  # fmt: skip
WORKING_GIB = 0.5
"""Memory of one forward pass of the U-Net besides weights, with slack; 0.15 was counted for 1024 px."""


class SdxlFamily:
    """One loaded SDXL base. `Family` describes its methods."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.device, _ = runtime.choose_device()
        self.dtype, self.dtype_reason = runtime.choose_dtype(self.device)
        self.half = not base.source.startswith("data:") and self.dtype != torch.float32  # use float16 files if any
        self.pipeline = self._load()
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.device)
        if self.device == "cpu" and isinstance(self.pipeline.vae, AutoencoderKL):
            self.pipeline.vae.to(memory_format=torch.channels_last)  # else convolutions copy their inputs and outputs
        self.encoded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.forwards, self.decoding, self.changes = 0, "whole", []
        self.without_lora: dict[str, torch.Tensor] = {}
        self.bare: torch.nn.Module | None = None  # the base's own U-Net, if another one draws
        self.prompt_transform = str  # transforms a prompt for the encoders; new tokens set it

    def _load(self) -> StableDiffusionXLPipeline:
        """Load the stock pipeline from a folder, a single file, or the hub or its cache."""
        title, otherwise = f"the weights of base {self.base.name!r}", "use the embedded base: --base mini"
        self.place = base_folder(self.base, self.half, without=("vae",) if self.base.vae else ())
        options = self._options(self.place)
        if self.base.vae:
            wanted = hub.Wanted(self.base.vae, f"the autoencoder of base {self.base.name!r}", otherwise, parts=hub.ROOT)
            vae = hub.fetch(wanted)
            with loading(wanted.title, vae, otherwise):
                options["vae"] = AutoencoderKL.from_pretrained(vae, use_safetensors=True, **dtype_option(self.dtype))
        with loading(title, self.place, otherwise):
            if self.base.is_file:
                return sdxl_single_file.load_pipeline(self.place, self.dtype)
            return StableDiffusionXLPipeline.from_pretrained(self.place, add_watermarker=False, **options)

    def _options(self, place: str, part: str = "") -> dict:
        """Return the options for loading a folder's weights: its float16 files for half precision.

        Args:
            part: subfolder that is loaded separately.
        """
        half = hub.half_option(place, part, self.half)
        return dtype_option(self.dtype) | {"use_safetensors": True} | half

    def restore_unet(self) -> None:
        """Restore the base's own U-Net after training or a trained one has changed it; never hold two at once."""
        self.pipeline.unet.to("meta")
        runtime.free_memory()
        self.pipeline.unet = self._own_unet()

    def _own_unet(self) -> torch.nn.Module:
        if self.base.is_file:
            with quiet():
                return sdxl_single_file.load_unet(self.place, self.dtype).to(self.device)
        kind, options = type(self.pipeline.unet), self._options(self.place, "unet")
        with quiet():
            return kind.from_pretrained(self.place, subfolder="unet", **options).to(self.device)

    # --- encoding ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        vae, latents = self.pipeline.vae, []
        for image in images:
            check_size(self.base, image.width, self._size_factor())
            pixels = self.pipeline.image_processor.preprocess(image).to(self.device, vae.dtype)
            raw = frugal.coded(self, vae, 1, lambda pixels=pixels: _mode(vae.encode(pixels.to(vae.dtype))))
            latents.append(raw.float().cpu() * vae.config.scaling_factor)
        return torch.cat(latents)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Condition:
        for prompt in prompts:
            if prompt not in self.encoded:
                self.encoded[prompt] = self.encode_prompt(prompt)
        text, pooled = zip(*(self.encoded[prompt] for prompt in prompts), strict=True)
        return Condition(text=torch.cat(text), pooled=torch.cat(pooled))

    def encode_prompt(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode text (1, 77, D) and pooled (1, P), differentiable. The empty prompt is zeros if the base sets that."""
        text = self.prompt_transform(prompt)
        parts = self.pipeline.encode_prompt(text, device=self.device, do_classifier_free_guidance=False)
        zero = not prompt and self.pipeline.config.force_zeros_for_empty_prompt
        return tuple(part.float().cpu() * (0.0 if zero else 1.0) for part in (parts[0], parts[2]))

    def prompt_pieces(self, prompt: str) -> list[str]:
        tokenizer = self.pipeline.tokenizer
        told = self.pipeline.maybe_convert_prompt(self.prompt_transform(prompt), tokenizer)
        return tokenizer.convert_ids_to_tokens(tokenizer(told).input_ids)

    def free_encoders(self) -> None:
        for part in ENCODER_PARTS:
            setattr(self.pipeline, part, None)
        runtime.free_memory()

    def _size_factor(self) -> int:
        """Return the divisor of a picture's side: the autoencoder's factor times the U-Net's."""
        return self.pipeline.vae_scale_factor * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    # --- training ------------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: int, targets: str, seed: int) -> list[torch.nn.Parameter]:
        unet = self.pipeline.unet
        unet.requires_grad_(False)
        parameters = put_lora(unet, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS[targets]), seed)
        if self.dtype != torch.float32:
            keep_norms_half(unet, self.device)
        unet.train()
        return parameters

    def use_checkpointing(self) -> None:
        """Trade time for memory: compute activations again in the backward pass."""
        self.pipeline.unet.enable_gradient_checkpointing()

    def add_noise(self, latents: torch.Tensor, config: TrainConfig, generator: torch.Generator) -> Noised:
        schedule = self.pipeline.scheduler
        signal = schedule.alphas_cumprod.float()
        n = len(latents)
        spread = (torch.arange(n) + torch.rand(n, generator=generator)) / n  # a batch covers the noise levels evenly
        steps = (spread * len(signal)).long()
        noise = torch.randn(latents.shape, generator=generator)
        if config.noise_offset:
            noise += config.noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        kept = signal[steps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        kind = schedule.config.prediction_type
        target = noise if kind == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * latents
        return Noised(noisy, steps, target, _snr_weight(signal[steps], kind, config.min_snr_gamma))

    def predict(self, noised: Noised, condition: Condition, sizes: list[tuple[int, ...]]) -> torch.Tensor:
        """Call the U-Net once, under autocast if the frozen weights are in half precision."""
        half = self.dtype != torch.float32
        autocast = torch.autocast(self.device, dtype=self.dtype) if half else nullcontext()
        added = {
            "text_embeds": condition["pooled"].to(self.device, self.dtype),
            "time_ids": torch.tensor(sizes, dtype=self.dtype, device=self.device),
        }
        with autocast:
            return self.pipeline.unet(
                noised.latents.to(self.device, self.dtype),
                noised.levels.to(self.device),
                condition["text"].to(self.device, self.dtype),
                added_cond_kwargs=added,
            ).sample

    def lora_state(self) -> dict[str, torch.Tensor]:
        return lora_tensors(self.pipeline.unet)

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        load_lora_tensors(self.pipeline.unet, state)

    def layer_weight(self, layer: str) -> torch.Tensor:
        return self.pipeline.unet.get_submodule(layer).weight.detach().float().cpu()

    def lora_file(self, metadata: dict[str, str]) -> bytes:
        return lora_bytes(self.pipeline.unet, self.base.spec.lora_prefix, metadata)

    # --- rendering -----------------------------------------------------------------------------------------------

    def use_few_steps(self, few: FewSteps) -> None:
        """Put a distilled LoRA into the base, for good; the person's is added after that."""
        self.use_lora(Path(), 0)
        title, otherwise = f"the few-step LoRA {few.file}", "leave out --distilled-lora."
        place = hub.fetch(hub.Wanted(few.source, title, otherwise, files=(few.file,), size_gb=0.6))
        with loading(title, place, otherwise):
            self.pipeline.load_lora_weights(str(place), weight_name=few.file, adapter_name="few_steps")
        self.pipeline.fuse_lora(components=["unet"])
        self.pipeline.unload_lora_weights()

    def drop_few_steps(self) -> None:
        self.use_lora(Path(), 0)
        self.restore_unet()

    def use_lora(self, path: Path, scale: float) -> None:
        self.pipeline.unload_lora_weights()
        for name, weight in self.without_lora.items():
            self.pipeline.unet.get_submodule(name).weight.data.copy_(weight)
        self.without_lora = {}
        if scale == 0:
            return
        load_lora_file(self.pipeline, path, scale, self.base)
        self._fuse()

    def _fuse(self) -> None:
        """Add the loaded LoRA to the weights, so that a step takes no longer than without one.

        The original weights are kept on the disk: subtracting a LoRA would leave rounding errors, and the memory of a
        free Colab has no 1.9 GB for them.
        """
        unet = self.pipeline.unet
        layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, BaseTunerLayer)}
        weights = {name: layer.get_base_layer().weight.detach() for name, layer in layers.items()}
        self.without_lora = copies_on_disk(weights)
        self.pipeline.fuse_lora(components=["unet"])
        self.pipeline.unload_lora_weights()
        del layers, weights
        runtime.free_memory()

    @torch.no_grad()
    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image.Image]:
        for side in sampling.size_px:
            check_size(self.base, side, self._size_factor())
        wanted, avoided = self.encode_prompts(prompts), self.encode_prompts(negatives)

        def draw(indices: list[int]) -> torch.Tensor:
            conditioning, own_seeds = (wanted.pick(indices), avoided.pick(indices)), [seeds[n] for n in indices]
            words = self._base_guidance([prompts[n] for n in indices], sampling) if sampling.worded else None
            return drawing.draw_latents(
                self.pipeline, self.base.name, conditioning, own_seeds, sampling, on_step, words
            )

        with self.counting_rows():
            latents = frugal.in_parts(self, len(prompts), sampling.size_px, draw)
        return drawing.decode(self, latents, sampling.size_px)

    def _base_guidance(self, prompts: list[str], sampling: Sampling) -> drawing.WordGuidance:
        """Return the base-model guidance, with a class word for the person's name in the prompts."""
        self._make_bare_ready()
        person, class_prompt, usual = sampling.names
        words = [prompt.replace(person, class_prompt) for prompt in prompts]
        others = {n: new for n, text in enumerate(words) if (new := with_expression(text, usual)) != text}
        conditioning = self.encode_prompts([*words, *[f"photo of {class_prompt}"] * len(words), *others.values()])
        return drawing.WordGuidance(self.pipeline.unet, self._bare_unet, conditioning, list(others), sampling)

    def _make_bare_ready(self) -> None:
        """Move the weights without the LoRA to the U-Net's device, if there is room. If all weights were trained, load
        the base's own U-Net.

        Raises:
            OutOfMemory: there is no room for a second U-Net.
        """
        unet, free = self.pipeline.unet, runtime.free_gpu_gib()
        if getattr(unet, "moved", False) and self.bare is None:
            needed = sum(weight.nbytes for weight in unet.parameters()) / 2**30 + WORKING_GIB
            if free is not None and free < needed:
                raise OutOfMemory(
                    f"base-model guidance needs {needed:.1f} GiB more GPU memory, {free:.1f} are free.",
                    "All weights of the U-Net were trained, so the bare base is a second U-Net in memory.",
                    "Set GenerateConfig.base_guidance to 1, or use a larger GPU.",
                )
            self.bare = self._own_unet()
        needed = sum(weight.nbytes for weight in self.without_lora.values()) / 2**30 + WORKING_GIB
        if free is not None and free >= needed:  # else each use of the bare base moves them there and back
            self.without_lora = {name: weight.to(self.device) for name, weight in self.without_lora.items()}

    @contextmanager
    def _bare_unet(self) -> Iterator[torch.nn.Module]:
        """Lend the base's own U-Net: the same one, with the weights without the LoRA swapped in.

        The weights with the LoRA are meanwhile kept in their place, so the GPU never holds more than before.
        """
        unet, with_it = self.pipeline.unet, {}
        if getattr(unet, "moved", False):
            yield self.bare
            return
        try:
            for name, without in self.without_lora.items():
                weight = unet.get_submodule(name).weight
                with_it[name] = weight.data.to(without.device)
                weight.data = without.to(self.device)
            yield unet
        finally:
            for name, data in with_it.items():
                unet.get_submodule(name).weight.data = data.to(self.device)

    @contextmanager
    def counting_rows(self) -> Iterator[None]:
        """Count rows in `forwards`, the bare base's as well."""
        unets = [unet for unet in (self.pipeline.unet, self.bare) if unet is not None]
        counting = [unet.register_forward_pre_hook(self._count_rows) for unet in unets]
        try:
            yield
        finally:
            for hook in counting:
                hook.remove()

    def _count_rows(self, unet: torch.nn.Module, inputs: tuple) -> None:
        self.forwards += len(inputs[0])


def _mode(encoded) -> torch.Tensor:
    """Return the latents that an autoencoder of either kind encodes, without noise."""
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


def _snr_weight(signal: torch.Tensor, kind: str, gamma: float) -> torch.Tensor:
    """Return the weight of each step's loss, (N,): min-SNR, Hang et al. 2023, arXiv:2303.09556; 1 if gamma is 0."""
    if not gamma:
        return torch.ones_like(signal)
    snr = signal / (1 - signal)
    return snr.clamp(max=gamma) / (snr if kind == "epsilon" else snr + 1)
