"""Options of a pipeline besides the prompts: guided steps, the sampler, base-model guidance, decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig
from headshotkit.families import Condition, Sampling, frugal
from headshotkit.families.costs import cost

CUT = ("prompt_embeds", "add_text_embeds", "add_time_ids")
"""Tensors of which StableDiffusionXLPipeline holds two while it guides: of the negative prompts, then the prompts."""


def draw_latents(
    pipeline: StableDiffusionXLPipeline,
    base: str,
    conditions: tuple[Condition, Condition],
    seeds: list[int],
    sampling: Sampling,
    on_step: Callable[[], None] | None = None,
    words: WordGuidance | None = None,
) -> torch.Tensor:
    """Return the stock pipeline's latents for prompts and negative prompts, each from its own seed's noise."""
    dtype, device = pipeline.unet.dtype, pipeline.unet.device
    conditioning = {
        prefix + name: condition[part].to(device, dtype)
        for prefix, condition in zip(("", "negative_"), conditions, strict=True)
        for name, part in (("prompt_embeds", "text"), ("pooled_prompt_embeds", "pooled"))
    }
    with sampling_by(pipeline, sampling.sampler, base), words or nullcontext():
        return pipeline(
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            width=sampling.size_px[0],
            height=sampling.size_px[1],
            num_inference_steps=sampling.steps,
            output_type="latent",
            **conditioning,
            **guidance_options(sampling, on_step),
        ).images


def guidance_options(sampling: Sampling, on_step: Callable[[], None] | None = None) -> dict:
    """Return StableDiffusionXLPipeline's options for guiding the first steps; later ones compute only the prompts.

    `on_step` is called after every step.

    Source: diffusers' guide on pipeline callbacks, dynamic classifier-free guidance.
    """
    guided = sampling.guided_steps
    scale = {"guidance_scale": sampling.guidance if guided else 1.0}
    cuts = 0 < guided < sampling.steps
    if not (cuts or on_step):
        return scale

    def after_step(pipeline: StableDiffusionXLPipeline, step: int, _: torch.Tensor, tensors: dict) -> dict:
        if on_step:
            on_step()
        if not cuts or step != guided - 1:
            return tensors
        pipeline._guidance_scale = 1.0  # the pipeline reads from it whether to guide
        return {name: tensors[name].chunk(2)[1] for name in CUT}

    return scale | {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": list(CUT)}


class WordGuidance:
    """Base-model guidance: while entered, it adds the bare base's response to the words to a U-Net's prediction.

    prediction + (strength - 1) * (bare(words) - bare(plain)), the difference computed in every n-th step. A LoRA that
    was trained on a dozen photos draws the person's usual expression and background whatever the prompt; the bare base
    still follows the words. The difference of its two predictions holds nothing of a person, so identity stays. If a
    prompt asks for another expression than nearly all photos show, (strength - 1) * (bare(words) - bare(the same words
    with the usual expression)) is added as well: the LoRA learned that expression as part of the person.

    Args:
        unet: the U-Net that draws.
        bare: enters a context that gives the base's own U-Net, which may be the same one with other weights.
        conditioning: the N prompts with a class word for the person, N times that class word alone, and a row for each
            of `unusual` with the usual expression.
        unusual: indices of the prompts that ask for another expression than the usual one.
    Source: predictions of several conditions added up, Liu et al. 2022, arXiv:2206.01714.
    """

    def __init__(self, unet: UNet2DConditionModel, bare: Callable, conditioning: Condition, unusual: list[int],
                 sampling: Sampling) -> None:  # fmt: skip
        self.unet, self.bare, self.unusual, self.comparing = unet, bare, unusual, False
        self.count = (conditioning.count - len(unusual)) // 2
        self.strength, self.every, self.step, self.push = (
            sampling.base_guidance - 1,
            sampling.base_guidance_every,
            0,
            None,
        )
        self.text, self.pooled = (conditioning[name].to(unet.device, unet.dtype) for name in ("text", "pooled"))

    def __enter__(self) -> WordGuidance:
        self.hook = self.unet.register_forward_hook(self._after, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _after(self, _: torch.nn.Module, inputs: tuple, kwargs: dict, predicted: tuple) -> tuple | None:
        """Add the words' part to the U-Net's prediction, of the prompts or of negative prompts and prompts."""
        if self.comparing:  # this is the bare base's prediction, in the same U-Net
            return None
        if self.step % self.every == 0:
            self.push = self.strength * self._difference(inputs[0], inputs[1], kwargs["added_cond_kwargs"]["time_ids"])
        self.step += 1
        return (predicted[0] + self.push.repeat(len(predicted[0]) // self.count, 1, 1, 1), *predicted[1:])

    def _difference(self, latents: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return what the words change in the bare base's prediction of the last N latents, shape (N, C, h, w)."""
        rows = [*range(self.count)] * 2 + self.unusual
        facts = {"text_embeds": self.pooled, "time_ids": ids[-self.count :][rows]}
        self.comparing = True
        try:
            with self.bare() as bare:
                made = bare(latents[-self.count :][rows], time, self.text, added_cond_kwargs=facts).sample
        finally:
            self.comparing = False
        worded, plain, usual = made.split([self.count, self.count, len(self.unusual)])
        difference = worded - plain
        difference[self.unusual] += worded[self.unusual] - usual
        return difference


@contextmanager
def sampling_by(pipeline: StableDiffusionXLPipeline, sampler: str, base: str) -> Iterator[None]:
    """Draw with a sampler, one of `config.SAMPLERS`, and restore the base's own afterwards.

    Raises:
        BadConfig: the sampler does not suit what the base predicts.
    """
    usual = pipeline.scheduler
    pipeline.scheduler = scheduler_for(usual, sampler, base)
    try:
        yield
    finally:
        pipeline.scheduler = usual


def scheduler_for(usual: SchedulerMixin, sampler: str, base: str) -> SchedulerMixin:
    """Return the scheduler of a sampler, one of `config.SAMPLERS`, for a base with that usual one.

    Raises:
        BadConfig: the sampler does not suit what the base predicts.
    """
    match sampler:
        case "base":
            return usual
        case "dpmpp-2m-karras":
            return karras_dpm(usual, base)
        case "euler-trailing":
            return EulerDiscreteScheduler.from_config(usual.config, timestep_spacing="trailing")
        case "ddim-trailing":
            return DDIMScheduler.from_config(usual.config, timestep_spacing="trailing", clip_sample=False)
        case "lcm":
            return LCMScheduler.from_config(usual.config, clip_sample=False)
    raise AssertionError(sampler)


def karras_dpm(usual: SchedulerMixin, base: str) -> DPMSolverMultistepScheduler:
    """Return DPM++ 2M on Karras' noise levels for a base with that scheduler.

    Raises:
        BadConfig: the base predicts neither noise nor velocity, or starts from pure noise, an infinite level.
    """
    kind, endless = usual.config.prediction_type, usual.config.get("rescale_betas_zero_snr", False)
    if kind not in ("epsilon", "v_prediction") or endless:
        raise BadConfig(
            f"sampler is 'dpmpp-2m-karras', base {base!r} predicts "
            f"{kind}{' and starts from pure noise' if endless else ''}.",
            "Karras' highest noise level is finite, and DPM++ here needs a prediction of noise or velocity.",
            "Set GenerateConfig.sampler to base.",
        )
    return DPMSolverMultistepScheduler.from_config(usual.config, use_karras_sigmas=True)


def decode(family, latents: list[torch.Tensor], size_px: tuple[int, int]) -> list[Image.Image]:
    """Decode an SDXL family's latents as its stock pipeline does, each tensor of the list by itself.

    Raises:
        OutOfMemory, NotFinite: as `frugal.coded` and `frugal.demand_finite`.
    """
    vae, images = family.pipeline.vae, []
    for drawn in latents:
        frugal.demand_finite(drawn)
        usual = fit_decoding(vae, size_px, len(drawn))
        made = frugal.coded(
            family, vae, len(drawn),
            lambda drawn=drawn: vae.decode(drawn.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0],
        )  # fmt: skip
        family.decoding = frugal.decoding_of(family, usual)
        images += family.pipeline.image_processor.postprocess(made, output_type="pil")
    return images


def fit_decoding(vae: AutoencoderKL, size_px: tuple[int, int], pictures: int) -> str:
    """Set up the autoencoder for the free memory; return how it decodes, with the reason if not whole."""
    how = decoding_for(runtime.free_gpu_gib(), size_px, pictures, vae.dtype.itemsize)
    (vae.disable_slicing if how == "whole" else vae.enable_slicing)()
    tiles = how.startswith("tiles") and frugal.can_tile(vae)
    (vae.enable_tiling if tiles else vae.disable_tiling)()
    return how if tiles else how.replace("tiles", "slices")


def decoding_for(free_gib: float | None, size_px: tuple[int, int], pictures: int, itemsize: int) -> str:
    """Return how to decode: whole if the memory holds all pictures at once, else slices (a picture at a time) or tiles.

    Args:
        free_gib: of the GPU; None without a GPU: the host has enough memory.
        itemsize: bytes of a number in the autoencoder.

    >>> decoding_for(2.0, (1024, 1024), 1, 2), decoding_for(2.0, (1024, 1024), 4, 2)
    ('whole', 'slices: 2.0 GiB are free, 6.0 needed for all at once')
    """
    one = cost("decode")
    needed = (one.peak_gib - one.weights_gib) * size_px[0] * size_px[1] / 2**20 * itemsize / 2
    if free_gib is None or needed * pictures <= free_gib:
        return "whole"
    if needed <= free_gib:
        return f"slices: {free_gib:.1f} GiB are free, {needed * pictures:.1f} needed for all at once"
    return f"tiles: {free_gib:.1f} GiB are free, {needed:.1f} needed for a whole picture"
