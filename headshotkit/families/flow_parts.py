"""The parts of a flow-matching base, each loaded when needed; text encoders and denoiser are never loaded together.

Text encoders are as large as the denoiser here, so they are dropped before the denoiser works. A caller that renders
in batches gives all its prompts to `encode_prompts` first.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.quantizers import PipelineQuantizationConfig

from headshotkit.config.bases import Base
from headshotkit.core import runtime
from headshotkit.families.loading import base_folder, choose_precision, dtype_option, loading, nf4_option

SAFE = {"use_safetensors": True}


class FlowParts:
    """Text encoders, autoencoder, denoiser and the stock pipeline of one base; None while not loaded.

    A subclass names the classes, the parts of the pipeline that read text, and those of them for which NF4 pays.
    """

    pipeline_class: type
    transformer_class: type
    vae_class: type = AutoencoderKL
    text_parts: tuple[str, ...]
    large_text_parts: tuple[str, ...] = ("text_encoder",)

    def __init__(self, base: Base) -> None:
        self.base, self.place = base, base_folder(base)
        self.device, _ = runtime.choose_device()
        self.precision = choose_precision(self.device)
        self.dtype, self.dtype_reason = self.precision.dtype, self.precision.reason
        halvings = len(self._load(self.vae_class.load_config, subfolder="vae")["block_out_channels"]) - 1
        self.size_factor = 2**halvings * 2
        self.scheduler = self._load(FlowMatchEulerDiscreteScheduler.from_pretrained, subfolder="scheduler")
        self.processor = VaeImageProcessor(vae_scale_factor=self.size_factor)
        self.texts = self.vae = self.transformer = self.pipeline = None

    def _load(self, load, **options):
        """Load one part, quietly.

        Raises:
            BaseUnavailable: it can't be loaded.
        """
        with loading(f"the weights of base {self.base.name!r}", self.place, "use the embedded base: --base mini"):
            return load(self.place, **options)

    def _need_texts(self) -> None:
        """Load the text encoders, in a pipeline of their own."""
        if self.texts is None:
            options = dtype_option(self.precision.side_dtype) | SAFE | {"transformer": None, "vae": None}
            if self.precision.nf4:
                config = nf4_option("transformers", self.precision.side_dtype)["quantization_config"]
                mapping = {part: config for part in self.large_text_parts}
                options["quantization_config"] = PipelineQuantizationConfig(quant_mapping=mapping)
            self.texts = self._load(self.pipeline_class.from_pretrained, **options).to(self.device)

    def _need_vae(self) -> None:
        if self.vae is None:
            options = dtype_option(self.precision.side_dtype) | SAFE
            self.vae = self._load(self.vae_class.from_pretrained, subfolder="vae", **options).to(self.device).eval()

    def _need_transformer(self) -> None:
        """Load the denoiser, after dropping the text encoders."""
        self._free_texts()
        if self.transformer is None:
            options = dtype_option(self.dtype) | SAFE
            if self.precision.nf4:
                options |= nf4_option("diffusers", self.dtype)
            loaded = self._load(self.transformer_class.from_pretrained, subfolder="transformer", **options)
            self.transformer = self._made_safe(loaded.to(self.device).eval().requires_grad_(False))

    def _need_pipeline(self) -> None:
        """Build the stock pipeline around denoiser and autoencoder, without text encoders."""
        self._need_transformer()
        self._need_vae()
        if self.pipeline is None:
            absent = dict.fromkeys(self.text_parts)
            parts = {"transformer": self.transformer, "vae": self.vae, "scheduler": self.scheduler}
            self.pipeline = self._load(self.pipeline_class.from_pretrained, **absent, **parts)
            self.pipeline.set_progress_bar_config(disable=True)

    def _made_safe(self, transformer: torch.nn.Module) -> torch.nn.Module:
        """Return the denoiser, kept finite in its dtype if needed; diffusers' FLUX classes clamp by themselves."""
        return transformer

    def _free_texts(self) -> None:
        if self.texts is not None:
            self.texts = None
            runtime.free_memory()
