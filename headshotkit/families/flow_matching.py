"""What the flow-matching families share: loading in parts, caching, the loss, the LoRA, rendering.

The denoiser is a transformer that is asked for the velocity from picture to noise: noise - latents (rectified flow,
Liu et al. 2022, arXiv:2209.03003). Which noise levels are trained follows Esser et al. 2024, arXiv:2403.03206: logit-
normal, then shifted towards noise as the scheduler's config says, more for larger pictures.

Text encoders are as large as the denoiser here, so each part is loaded when it is first needed, and the text encoders
go as soon as the denoiser works. A caller that renders in batches gives all its prompts to `encode_prompts` first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.quantizers import PipelineQuantizationConfig
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight
from PIL import Image

from headshotkit import runtime
from headshotkit.bases import Base
from headshotkit.config import TrainConfig
from headshotkit.errors import BadConfig
from headshotkit.families import Condition, Sampling, check_size, weights_place
from headshotkit.families.loading import choose_precision, dtype_option, nf4_option, quiet, unavailable
from headshotkit.families.lora_files import check_fits, lora_bytes

ADAPTER = "person"
PREFIX = "transformer."
"""Of the LoRA's names in its file, as diffusers has it."""
EDGE = 1e-4
"""Noise levels keep so far from 0 and 1, where the logit-normal density vanishes."""


class FlowFamily:
    """One loaded flow-matching base. See `Family` for what each method promises.

    A family says what differs: the classes, the parts that read text and which of them NF4 pays for, the layers with a
    LoRA as a regular expression over their full names, how many latents a side make one token, and five methods:
    `_encode_prompt`, `_normalise`, `_velocity`, `_told` and `_decodable`.
    """

    pipeline_class: type
    transformer_class: type
    vae_class: type = AutoencoderKL
    text_parts: tuple[str, ...]
    large_text_parts: tuple[str, ...] = ("text_encoder",)
    layers: dict[str, str]
    patch = 2
    uses_negatives = True

    def __init__(self, base: Base) -> None:
        self.base, self.place = base, weights_place(base)
        self.device, _ = runtime.choose_device()
        self.precision = choose_precision(self.device)
        self.dtype, self.dtype_reason = self.precision.dtype, self.precision.reason
        halvings = len(self._load(self.vae_class.load_config, subfolder="vae")["block_out_channels"]) - 1
        self.size_factor = 2**halvings * 2
        self.scheduler = self._load(FlowMatchEulerDiscreteScheduler.from_pretrained, subfolder="scheduler")
        self.processor = VaeImageProcessor(vae_scale_factor=self.size_factor)
        self.texts = self.vae = self.transformer = self.pipeline = None
        self.encoded: dict[str, Condition] = {}
        self.forwards, self.decoding = 0, "whole"

    # --- loading -------------------------------------------------------------------------------------------------

    def _load(self, load, **options):
        """Loads one part, quietly.

        Raises:
            BaseUnavailable: it is not here and can't be downloaded.
        """
        try:
            with quiet():
                return load(self.place, **options)
        except OSError as error:
            raise unavailable(self.base, self.place, error) from error

    def _need_texts(self) -> None:
        """The text encoders, in a pipeline of their own."""
        if self.texts is None:
            options = dtype_option(self.precision.side_dtype) | {"transformer": None, "vae": None}
            if self.precision.nf4:
                config = nf4_option("transformers", self.precision.side_dtype)["quantization_config"]
                mapping = {part: config for part in self.large_text_parts}
                options["quantization_config"] = PipelineQuantizationConfig(quant_mapping=mapping)
            self.texts = self._load(self.pipeline_class.from_pretrained, **options).to(self.device)

    def _need_vae(self) -> None:
        if self.vae is None:
            options = dtype_option(self.precision.side_dtype)
            self.vae = self._load(self.vae_class.from_pretrained, subfolder="vae", **options).to(self.device).eval()

    def _need_transformer(self) -> None:
        """The denoiser; the text encoders make room for it."""
        self._free_texts()
        if self.transformer is None:
            options = dtype_option(self.dtype)
            if self.precision.nf4:
                options |= nf4_option("diffusers", self.dtype)
            loaded = self._load(self.transformer_class.from_pretrained, subfolder="transformer", **options)
            self.transformer = self._made_safe(loaded.to(self.device).eval().requires_grad_(False))

    def _need_pipeline(self) -> None:
        """The stock pipeline around denoiser and autoencoder, without text encoders."""
        self._need_transformer()
        self._need_vae()
        if self.pipeline is None:
            absent = dict.fromkeys(self.text_parts)
            parts = {"transformer": self.transformer, "vae": self.vae, "scheduler": self.scheduler}
            self.pipeline = self._load(self.pipeline_class.from_pretrained, **absent, **parts)
            self.pipeline.set_progress_bar_config(disable=True)

    def _made_safe(self, transformer: torch.nn.Module) -> torch.nn.Module:
        """The denoiser with what it needs to stay finite in its dtype; diffusers' FLUX classes clamp by themselves."""
        return transformer

    def _free_texts(self) -> None:
        if self.texts is not None:
            self.texts = None
            runtime.free_memory()

    # --- encoding ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        self._need_vae()
        latents = []
        for image in images:
            for side_px in image.size:
                check_size(self.base, side_px, self.size_factor)
            pixels = self.processor.preprocess(image).to(self.device, self.vae.dtype)
            latents.append(self._normalise(self.vae.encode(pixels).latent_dist.mode()).float().cpu())
        return torch.cat(latents)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Condition:
        for prompt in prompts:
            if prompt not in self.encoded:
                self._need_texts()
                self.encoded[prompt] = self._encode_prompt(prompt)
        names = self.encoded[prompts[0]]
        return Condition({name: torch.cat([self.encoded[prompt][name] for prompt in prompts]) for name in names})

    def free_encoders(self) -> None:
        self._free_texts()
        self.vae = self.pipeline = None
        runtime.free_memory()

    # --- training ------------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: int, targets: str, seed: int) -> list[torch.nn.Parameter]:
        self._need_transformer()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=self.layers[targets])
            self.transformer.add_adapter(config, ADAPTER)
        parameters = [p for p in self.transformer.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        self.transformer.train()
        return parameters

    def use_checkpointing(self) -> None:
        self._need_transformer()
        self.transformer.enable_gradient_checkpointing()

    def loss(
        self,
        latents: torch.Tensor,
        condition: Condition,
        sizes: list[tuple[int, ...]],
        config: TrainConfig,
        generator: torch.Generator,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `Family.loss`; `sizes` are not told to these denoisers. Without autocast, for each stock class decides by
        the dtype it is given where to clamp; peft computes the float32 LoRA in float32 and gives the base's dtype back.

        Raises:
            BadConfig: min-SNR is on, which weights predictions of noise.
        """
        if config.min_snr_gamma:
            raise BadConfig(
                f"min_snr_gamma is {config.min_snr_gamma:g}, base {self.base.name!r} learns by flow matching.",
                "Min-SNR weights predictions of noise; here the sampling of noise levels does its work.",
                "Set TrainConfig.min_snr_gamma to 0.",
            )
        levels = self.noise_levels(latents, generator)
        noise = torch.randn(latents.shape, generator=generator)
        if config.noise_offset:
            noise += config.noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        sigma = levels.view(-1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * noise
        told = Condition({name: self._to_device(tensor) for name, tensor in condition.items()})
        velocity = self._velocity(self._to_device(noisy), levels.to(self.device), told)
        error = (velocity.float() - (noise - latents).to(self.device)).pow(2)
        return (error if weights is None else error * weights.to(self.device)).mean((1, 2, 3))

    def noise_levels(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Noise levels to train at, in (0, 1), 1 is noise alone; shape (N,). A batch covers them evenly."""
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
        state = get_peft_model_state_dict(self.transformer, adapter_name=ADAPTER)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        set_peft_model_state_dict(self.transformer, state, adapter_name=ADAPTER)

    def layer_weight(self, layer: str) -> torch.Tensor:
        self._need_transformer()
        return dequantize_module_weight(self.transformer.get_submodule(layer)).detach().float().cpu()

    def lora_file(self, metadata: dict[str, str]) -> bytes:
        return lora_bytes(self.transformer, ADAPTER, PREFIX, self.lora_state(), metadata)

    # --- rendering -----------------------------------------------------------------------------------------------

    def use_lora(self, path: Path, scale: float) -> None:
        self._need_pipeline()
        self.pipeline.unload_lora_weights()
        if scale == 0:
            return
        check_fits(path, PREFIX, self.transformer, self.base)
        with quiet():
            self.pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER)
        self.pipeline.set_adapters([ADAPTER], [scale])

    @torch.no_grad()
    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image.Image]:
        """As `Family.render`, by the sampler that the base comes with.

        Raises:
            BadConfig: a share of the steps is to be guided, or another sampler is asked for.
        """
        self._demand_usual(sampling)
        wanted = self.encode_prompts(prompts)
        avoided = self.encode_prompts(negatives) if self.uses_negatives else None
        self._need_pipeline()
        self.transformer.eval()
        counting = self.transformer.register_forward_pre_hook(self._count_rows, with_kwargs=True)
        width, height = sampling.size_px
        try:
            made = self.pipeline(
                **self._told(wanted, avoided, sampling.guidance),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=height,
                width=width,
                num_inference_steps=sampling.steps,
                output_type="latent",  # the autoencoder may be of another dtype, which the pipelines don't expect
                callback_on_step_end=after_step(on_step),
            ).images
        finally:
            counting.remove()
        raw = self._decodable(made, sampling.size_px).to(self.vae.dtype)
        pixels = torch.cat([self.vae.decode(one[None]).sample for one in raw])
        return self.processor.postprocess(pixels, output_type="pil")

    def _demand_usual(self, sampling: Sampling) -> None:
        for side in sampling.size_px:
            check_size(self.base, side, self.size_factor)
        if sampling.guidance_share < 1 or sampling.sampler != "base":
            raise BadConfig(
                f"guidance_share is {sampling.guidance_share:g}, sampler is {sampling.sampler!r}, base is "
                f"{self.base.name!r}.",
                "This family's pipeline guides every step or none, and has one sampler.",
                "Set RenderConfig.guidance_share to 1 and RenderConfig.sampler to base.",
            )

    def _count_rows(self, transformer: torch.nn.Module, inputs: tuple, named: dict) -> None:
        given = inputs[0] if inputs else named["hidden_states"]
        self.forwards += len(given)

    # --- what a family says --------------------------------------------------------------------------------------

    def _encode_prompt(self, prompt: str) -> Condition:
        """What the denoiser is told of one prompt, by `self.texts`; tensors of one row."""
        raise NotImplementedError

    def _normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """The autoencoder's latents as the denoiser wants them."""
        raw = raw - self.vae.config.shift_factor
        return raw * self.vae.config.scaling_factor

    def _velocity(self, noisy: torch.Tensor, levels: torch.Tensor, told: Condition) -> torch.Tensor:
        """The denoiser's answer, noise - latents, in the shape of `noisy`; `levels` (N,) in (0, 1)."""
        raise NotImplementedError

    def _told(self, wanted: Condition, avoided: Condition | None, guidance: float) -> dict:
        """The pipeline's arguments for prompts, negative prompts and guidance (1 is off)."""
        raise NotImplementedError

    def _decodable(self, made: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
        """What the pipeline makes in a size (width, height), as the autoencoder decodes it."""
        return made / self.vae.config.scaling_factor + self.vae.config.shift_factor


def after_step(on_step: Callable[[], None] | None):
    """Diffusers' callback that calls `on_step` after each sampler step; None where there is nothing to call."""
    if on_step is None:
        return None

    def called(pipeline, step: int, timestep, tensors: dict) -> dict:
        on_step()
        return tensors

    return called
