"""The common parts of the flow-matching families: caching, the loss, the LoRA, rendering; `flow_parts` loads.

The denoiser is a transformer that predicts the velocity from picture to noise: noise - latents (rectified flow, Liu et
al. 2022, arXiv:2209.03003). The trained noise levels follow Esser et al. 2024, arXiv:2403.03206: logit-normal, then
shifted towards noise as the scheduler's config says, more for larger pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from peft import LoraConfig
from peft.utils.integrations import dequantize_module_weight
from PIL import Image

from headshotkit.config import TrainConfig
from headshotkit.config.bases import Base
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig
from headshotkit.families import Condition, Noised, Sampling, check_size, frugal, load_tokenizers
from headshotkit.families.flow_parts import FlowParts
from headshotkit.families.lora_files import (
    check_fits,
    load_lora_file,
    load_lora_tensors,
    lora_bytes,
    lora_tensors,
    put_lora,
)

EDGE = 1e-4
"""Least distance of noise levels from 0 and 1, where the logit-normal density vanishes."""


class FlowFamily(FlowParts):
    """One loaded flow-matching base. `Family` describes its methods.

    A subclass defines the layers with a LoRA as a regular expression over their full names, the latents a side of one
    token, whether negative prompts count, and five methods: `_encode_prompt`, `_normalise`, `_velocity`,
    `_conditioning` and `_decodable`.
    """

    layers: dict[str, str]
    patch = 2
    uses_negatives = True

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.encoded: dict[str, Condition] = {}
        self.forwards, self.decoding, self.changes = 0, "slices: a picture at a time", []
        self.lora_in_use: tuple[Path, float] | None = None

    # --- encoding ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        self._need_vae()
        latents = []
        for image in images:
            for side_px in image.size:
                check_size(self.base, side_px, self.size_factor)
            pixels = self.processor.preprocess(image).to(self.device)
            raw = frugal.coded(self, self.vae, 1, lambda pixels=pixels: self._encoded(pixels))
            latents.append(self._normalise(raw).float().cpu())
        return torch.cat(latents)

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Condition:
        for prompt in prompts:
            if prompt not in self.encoded:
                self._make_room_for_texts()
                self._need_texts()
                self.encoded[prompt] = self._encode_prompt(prompt)
        names = self.encoded[prompts[0]]
        return Condition({name: torch.cat([self.encoded[prompt][name] for prompt in prompts]) for name in names})

    def prompt_pieces(self, prompt: str) -> list[str]:
        tokenizer = load_tokenizers(self.base.name)[0]
        return tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)

    def _make_room_for_texts(self) -> None:
        """Drop a denoiser that can be loaded again with its LoRA; never one that is being trained."""
        is_trained = self._has_lora() and self.lora_in_use is None
        if self.transformer is not None and not is_trained:
            self.transformer = self.pipeline = None
            runtime.free_memory()

    def _has_lora(self) -> bool:
        """Return whether the denoiser has a LoRA: one from a file, or one in training."""
        return bool(getattr(self.transformer, "peft_config", None))

    def free_encoders(self) -> None:
        self._free_texts()
        self.vae = self.pipeline = None
        runtime.free_memory()

    # --- training ------------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: int, targets: str, seed: int) -> list[torch.nn.Parameter]:
        self._need_transformer()
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=self.layers[targets])
        parameters = put_lora(self.transformer, config, seed)
        self.transformer.train()
        return parameters

    def use_checkpointing(self) -> None:
        self._need_transformer()
        self.transformer.enable_gradient_checkpointing()

    def add_noise(self, latents: torch.Tensor, config: TrainConfig, generator: torch.Generator) -> Noised:
        """Compute `Family.add_noise`; the target is the velocity from picture to noise.

        Raises:
            BadConfig: min-SNR is on, which weights noise predictions.
        """
        if config.min_snr_gamma:
            raise BadConfig(
                f"min_snr_gamma is {config.min_snr_gamma:g}, base {self.base.name!r} is trained by flow matching.",
                "Min-SNR is for noise prediction; flow matching samples the noise levels instead.",
                "Set TrainConfig.min_snr_gamma to 0.",
            )
        levels = self.noise_levels(latents, generator)
        noise = torch.randn(latents.shape, generator=generator)
        if config.noise_offset:
            noise += config.noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        sigma = levels.view(-1, 1, 1, 1)
        return Noised((1 - sigma) * latents + sigma * noise, levels, noise - latents)

    def predict(self, noised: Noised, condition: Condition, sizes: list[tuple[int, ...]]) -> torch.Tensor:
        """Compute `Family.predict`; these denoisers don't read `sizes`. There is no autocast: stock classes clamp by
        their input's dtype, and peft computes the float32 LoRA in float32 and returns the base's dtype.
        """
        conditioning = Condition({name: self._to_device(tensor) for name, tensor in condition.items()})
        return self._velocity(self._to_device(noised.latents), noised.levels.to(self.device), conditioning)

    def noise_levels(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw noise levels to train at, in (0, 1), 1 is pure noise; shape (N,). A batch covers them evenly."""
        n, _, height, width = latents.shape
        spread = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        plain = torch.special.ndtri(spread.clamp(EDGE, 1 - EDGE)).sigmoid()
        config = self.scheduler.config
        shift = config.shift
        if config.use_dynamic_shifting:
            bounds = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
            shift = math.exp(calculate_shift(height * width // self.patch**2, *bounds))
        return shift * plain / (1 + (shift - 1) * plain)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def lora_state(self) -> dict[str, torch.Tensor]:
        return lora_tensors(self.transformer)

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        load_lora_tensors(self.transformer, state)

    def layer_weight(self, layer: str) -> torch.Tensor:
        self._need_transformer()
        return dequantize_module_weight(self.transformer.get_submodule(layer)).detach().float().cpu()

    def lora_file(self, metadata: dict[str, str]) -> bytes:
        return lora_bytes(self.transformer, self.base.spec.lora_prefix, metadata)

    # --- rendering -----------------------------------------------------------------------------------------------

    def use_lora(self, path: Path, scale: float) -> None:
        self.lora_in_use = None
        self._need_pipeline()
        self.pipeline.unload_lora_weights()
        if scale == 0:
            return
        check_fits(path, self.transformer, self.base)
        load_lora_file(self.pipeline, path, scale, self.base)
        self.lora_in_use = path, scale

    def _need_pipeline(self) -> None:
        """Build the stock pipeline, with the LoRA of the last `use_lora`."""
        super()._need_pipeline()
        if self.lora_in_use and not self._has_lora():
            load_lora_file(self.pipeline, *self.lora_in_use, self.base)

    @torch.no_grad()
    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image.Image]:
        for side_px in sampling.size_px:
            check_size(self.base, side_px, self.size_factor)
        self._check_sampling(sampling)
        wanted = self.encode_prompts(prompts)
        avoided = self.encode_prompts(negatives) if self.uses_negatives else None
        self._need_pipeline()
        self.transformer.eval()
        guidance = sampling.guidance if sampling.guided_steps or not self.uses_negatives else 1.0

        def draw(indices: list[int]) -> torch.Tensor:
            conditioning = wanted.pick(indices), avoided.pick(indices) if avoided else None
            return self.pipeline(
                **self._conditioning(*conditioning, guidance),
                generator=[torch.Generator().manual_seed(seeds[n]) for n in indices],
                width=sampling.size_px[0],
                height=sampling.size_px[1],
                num_inference_steps=sampling.steps,
                callback_on_step_end=self._after_step(len(indices), sampling, on_step),
                output_type="latent",  # the autoencoder's dtype may differ, which the pipelines don't expect
            ).images

        made = torch.cat(frugal.in_parts(self, len(prompts), sampling.size_px, draw))
        raw, vae = self._decodable(frugal.demand_finite(made), sampling.size_px), self.vae
        pixels = [frugal.coded(self, vae, 1, lambda one=one: vae.decode(one[None].to(vae.dtype)).sample) for one in raw]
        self.decoding = frugal.decoding_of(self, "slices: a picture at a time")
        return self.processor.postprocess(torch.cat(pixels), output_type="pil")

    def _after_step(self, pictures: int, sampling: Sampling, on_step: Callable[[], None] | None) -> Callable:
        """Return the pipeline's callback: it counts rows, calls `on_step`, and ends guidance after its share."""

        def after_step(pipeline, step: int, _, tensors: dict) -> dict:
            guided = self.uses_negatives and step < sampling.guided_steps
            self.forwards += pictures * (2 if guided else 1)
            if on_step:
                on_step()
            if self.uses_negatives and step == sampling.guided_steps - 1:
                pipeline._guidance_scale = 0.0  # these pipelines read from it whether to guide
            return tensors

        return after_step

    def _check_sampling(self, sampling: Sampling) -> None:
        """Raise BadConfig for base-model guidance, and for samplers that flow matching does not have."""
        if sampling.base_guidance > 1:
            raise BadConfig(
                f"base_guidance is {sampling.base_guidance}, base {self.base.name!r} draws by flow matching.",
                "Base-model guidance is implemented for U-Nets only.",
                "Set GenerateConfig.base_guidance to 1.",
            )
        if sampling.sampler != "base":
            raise BadConfig(
                f"sampler is {sampling.sampler!r}, base {self.base.name!r} draws by flow matching.",
                "It was trained to predict velocity, which its scheduler's Euler steps follow.",
                "Set GenerateConfig.sampler to base.",
            )

    # --- what a family defines -----------------------------------------------------------------------------------

    def _encode_prompt(self, prompt: str) -> Condition:
        """Return the conditioning of one prompt, from `self.texts`; tensors of one row."""
        raise NotImplementedError

    def _normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Scale the autoencoder's latents for the denoiser."""
        raw = raw - self.vae.config.shift_factor
        return raw * self.vae.config.scaling_factor

    def _velocity(self, noisy: torch.Tensor, levels: torch.Tensor, conditioning: Condition) -> torch.Tensor:
        """Predict noise - latents, in the shape of `noisy`; `levels` (N,) in (0, 1)."""
        raise NotImplementedError

    def _conditioning(self, wanted: Condition, avoided: Condition | None, guidance: float) -> dict:
        """Return the pipeline's arguments for prompts, negative prompts and guidance (1 is off)."""
        raise NotImplementedError

    def _decodable(self, made: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
        """Convert the pipeline's latents for the autoencoder."""
        return made / self.vae.config.scaling_factor + self.vae.config.shift_factor
