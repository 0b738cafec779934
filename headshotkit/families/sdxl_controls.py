"""SDXL's guided drawing, by stock pipelines that are built from a loaded family's own parts.

Image-to-image, ControlNet, and the refiner, which is staged: the base's U-Net leaves the GPU before the refiner enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from headshotkit.core import hub, runtime
from headshotkit.core.errors import BadConfig, BaseUnavailable
from headshotkit.families import Sampling, check_size, drawing, frugal
from headshotkit.families.controls import Guide
from headshotkit.families.edges import find_edges
from headshotkit.families.loading import loading

PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
LORA_FILE = "pytorch_lora_weights.safetensors"
"""Diffusers' own name; a refiner in such a file is the base's own U-Net with that LoRA."""

SHARED = ("vae", "text_encoder_2", "tokenizer_2")
"""Parts of the base that the hub's refiner uses."""

Conditioning = dict[str, torch.Tensor]


class SdxlControls:
    """The guided drawing of one loaded SDXL base. `Controls` describes its methods."""

    def __init__(self, family) -> None:
        self.family, self.net = family, None

    # --- inputs besides the prompts -----------------------------------------------------------------------------

    def edges_of(self, photo: Image.Image, size_px: tuple[int, int]) -> Image.Image:
        halvings = len(self._controlnet().config.conditioning_embedding_out_channels) - 1
        return find_edges(photo, tuple(side // self.family.pipeline.vae_scale_factor << halvings for side in size_px))

    @torch.no_grad()
    def render(
        self,
        prompts: list[str],
        negatives: list[str],
        seeds: list[int],
        sampling: Sampling,
        guide: Guide,
        on_step: Callable[[], None] | None = None,
    ) -> list[Image.Image]:
        family = self.family
        for side in sampling.size_px:
            check_size(family.base, side, family._size_factor())
        gone = int(sampling.steps * guide.strength) if guide.photo else sampling.steps
        options = _with_edges_cut(drawing.guidance_options(replace(sampling, steps=gone), on_step), bool(guide.edges))
        options |= {"denoising_end": 1 - guide.refined} if guide.refined else {}

        drawing.fit_decoding(family.pipeline.vae, sampling.size_px, 1)  # a photo is encoded in the same mode

        def draw(indices: list[int]) -> torch.Tensor:
            pipeline, given = self._mode([seeds[n] for n in indices], sampling, guide)
            conditioning = self._conditioning(pipeline, [prompts[n] for n in indices], [negatives[n] for n in indices])
            with drawing.sampling_by(pipeline, sampling.sampler, family.base.name):
                return pipeline(
                    num_inference_steps=sampling.steps, output_type="latent", **conditioning, **given, **options
                ).images

        with family.counting_rows():
            latents = frugal.in_parts(family, len(prompts), sampling.size_px, draw)
        if guide.refined:
            latents = self._refine(torch.cat(latents), prompts, negatives, sampling, guide, on_step)
        return drawing.decode(family, latents, sampling.size_px)

    def _mode(self, seeds: list[int], sampling: Sampling, guide: Guide) -> tuple[DiffusionPipeline, dict]:
        """Return the pipeline that draws, and its arguments besides the prompts.

        Raises:
            BadConfig: photo and edges at once.
        """
        if guide.photo and guide.edges:
            raise BadConfig(
                "both a photo and edges are given.",
                "Image-to-image starts from the photo, a ControlNet from noise.",
                "Leave out one of them.",
            )
        width, height = sampling.size_px
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if guide.photo:
            photo = guide.photo.resize((width, height), Image.Resampling.LANCZOS)
            return self._img2img(), {"image": photo, "strength": guide.strength, "generator": generators}
        if not guide.edges:
            return self.family.pipeline, {"width": width, "height": height, "generator": generators}
        # The edges have their own size: a ControlNet may halve more or less often than the autoencoder does.
        scale, unet = self.family.pipeline.vae_scale_factor, self.family.pipeline.unet
        shape = (len(seeds), unet.config.in_channels, height // scale, width // scale)
        return self._with_controlnet(), {
            "image": guide.edges,
            "controlnet_conditioning_scale": float(guide.edge_scale),
            "width": guide.edges.width,
            "height": guide.edges.height,
            "original_size": (height, width),
            "target_size": (height, width),
            "latents": randn_tensor(shape, generators, torch.device(self.family.device), unet.dtype),
        }

    def _conditioning(self, pipeline: DiffusionPipeline, prompts: list[str], negatives: list[str]) -> Conditioning:
        """Return the U-Net's conditioning; a refiner reads only the second encoder's columns, which are the last."""
        width, whole = pipeline.unet.config.cross_attention_dim, {}
        for prefix, texts in (("", prompts), ("negative_", negatives)):
            parts = [self._encoded(text, pipeline.config.force_zeros_for_empty_prompt) for text in texts]
            text, pooled = (
                torch.cat(part).to(self.family.device, pipeline.unet.dtype) for part in zip(*parts, strict=True)
            )
            whole |= {f"{prefix}prompt_embeds": text[..., -width:], f"{prefix}pooled_prompt_embeds": pooled}
        return whole

    def _encoded(self, prompt: str, zero: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a prompt as the base does, except that a refiner may read the empty one as words, not as zeros."""
        if prompt or zero == self.family.pipeline.config.force_zeros_for_empty_prompt:
            condition = self.family.encode_prompts([prompt])
            return condition["text"], condition["pooled"]
        parts = self.family.pipeline.encode_prompt("", device=self.family.device, do_classifier_free_guidance=False)
        return parts[0] * (not zero), parts[2] * (not zero)

    # --- pipelines ------------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        base = self.family.pipeline
        return {name: getattr(base, name) for name in PARTS} | {
            "force_zeros_for_empty_prompt": base.config.force_zeros_for_empty_prompt,
            "add_watermarker": False,
        }

    def _img2img(self, **others) -> StableDiffusionXLImg2ImgPipeline:
        return _silent(StableDiffusionXLImg2ImgPipeline(**self._parts() | others))

    def _with_controlnet(self) -> StableDiffusionXLControlNetPipeline:
        return _silent(StableDiffusionXLControlNetPipeline(controlnet=self._controlnet(), **self._parts()))

    def _controlnet(self) -> ControlNetModel:
        if self.net is None:
            place = self._place("controlnet", "config.json")
            with self._loading("controlnet", place):
                net = ControlNetModel.from_pretrained(place, **self.family._options(place))
            self.net = net.to(self.family.device).eval()
        return self.net

    def _place(self, part: str, file: str) -> str:
        """Return the folder of the ControlNet or the refiner; download the missing files.

        Raises:
            BadConfig: the base has none.
            BaseUnavailable: it belongs to the project's data, and is missing there; or can't be downloaded.
        """
        base, place = self.family.base, getattr(self.family.base, part)
        if not place:
            raise BadConfig(
                f"base {base.name!r} has no {part}.", "None is defined for it.", "Choose another base: --base sdxl"
            )
        if not place.startswith("data:"):
            title, otherwise = f"the {part} of base {base.name!r}", f"leave out the {part}."
            of_it = {"parts": hub.ROOT} if part == "controlnet" else {"without": SHARED}
            return str(hub.fetch(hub.Wanted(place, title, otherwise, half=self.family.half, **of_it)))
        folder = runtime.data_path(*place.removeprefix("data:").split("/"))
        if not (folder / file).is_file():
            raise BaseUnavailable(
                f"the {part} of base {base.name!r} is not at {folder}.",
                "The package was installed without its data.",
                "Clone the repository and install from there, or choose another base: --base sdxl",
            )
        return str(folder)

    def _loading(self, part: str, place: str) -> AbstractContextManager[None]:
        """Load silently; an error names the part."""
        return loading(f"the {part} of base {self.family.base.name!r}", place, f"leave out the {part}.")

    # --- the refiner ----------------------------------------------------------------------------------------------

    def _refine(
        self, latents: torch.Tensor, prompts: list[str], negatives: list[str], sampling: Sampling, guide: Guide, on_step
    ) -> list[torch.Tensor]:
        """Draw the lowest noise levels of latents that the base left there; guided if the base's last steps are.

        The refiner is loaded once, whatever the number of pictures at once.
        """
        guided = sampling.guidance if sampling.guidance_share > 1 - guide.refined else 1.0
        options = drawing.guidance_options(replace(sampling, guidance=1.0), on_step) | {"guidance_scale": guided}
        with self._refiner() as pipeline:
            counting = pipeline.unet.register_forward_pre_hook(self.family._count_rows)

            def draw(indices: list[int]) -> torch.Tensor:
                conditioning = self._conditioning(
                    pipeline, [prompts[n] for n in indices], [negatives[n] for n in indices]
                )
                return pipeline(
                    image=Image.new("RGB", sampling.size_px),  # required, but only the latents are used
                    latents=latents[indices],
                    denoising_start=1 - guide.refined,
                    num_inference_steps=sampling.steps,
                    output_type="latent",
                    **conditioning,
                    **options,
                ).images

            try:
                with drawing.sampling_by(pipeline, sampling.sampler, self.family.base.name):
                    return frugal.in_parts(self.family, len(prompts), sampling.size_px, draw)
            finally:
                counting.remove()

    @contextmanager
    def _refiner(self) -> Iterator[StableDiffusionXLImg2ImgPipeline]:
        """Lend the refiner's pipeline; the base's U-Net and the ControlNet leave the GPU meanwhile.

        Its weights are dropped afterwards: in the host's memory with the base's U-Net they would be 4.2 GiB too many
        for Colab.
        """
        staged = [part for part in (self.family.pipeline.unet, self.net) if part is not None]
        for part in staged:
            part.to("cpu")
        runtime.free_memory()
        pipeline = None
        try:
            pipeline = self._load_refiner()
            yield pipeline
        finally:
            if pipeline is not None:  # the caller still holds a reference to it
                pipeline.unet.to("meta")
            runtime.free_memory()
            for part in staged:
                part.to(self.family.device)

    def _load_refiner(self) -> StableDiffusionXLImg2ImgPipeline:
        """Load the hub's refiner with the base's encoders and autoencoder, or the base's own U-Net with a LoRA."""
        source = self.family.base.refiner
        place, base = self._place("refiner", LORA_FILE), self.family.pipeline
        with self._loading("refiner", place):
            if not source.startswith("data:"):
                shared = {name: getattr(base, name) for name in SHARED}
                kind, options = StableDiffusionXLImg2ImgPipeline, shared | self.family._options(place)
                return _silent(kind.from_pretrained(place, add_watermarker=False, **options).to(self.family.device))
            home = self.family.place
            unet = type(base.unet).from_pretrained(home, subfolder="unet", **self.family._options(home, "unet"))
            pipeline = self._img2img(unet=unet.to(self.family.device))
            pipeline.load_lora_weights(str(Path(place)), weight_name=LORA_FILE)
            pipeline.fuse_lora(components=["unet"])
            pipeline.unload_lora_weights()
        return pipeline


def _silent(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _with_edges_cut(options: dict, edges: bool) -> dict:
    """Cut the edges with the prompts when guidance ends: a ControlNet's pipeline holds them twice as well till then."""
    after_step = options.get("callback_on_step_end")
    if not (edges and after_step):
        return options
    names = options["callback_on_step_end_tensor_inputs"]

    def after(pipeline, step: int, time: torch.Tensor, tensors: dict) -> dict:
        conditioning = after_step(pipeline, step, time, {name: tensors[name] for name in names})
        cut = len(conditioning["prompt_embeds"]) < len(tensors["prompt_embeds"])
        return conditioning | {"image": tensors["image"].chunk(2)[1] if cut else tensors["image"]}

    return options | {"callback_on_step_end": after, "callback_on_step_end_tensor_inputs": [*names, "image"]}
