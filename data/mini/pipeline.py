"""The parts of the base, all stock classes, and how they are put together into a StableDiffusionXLPipeline."""

import copy
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from store import HOME, SHARED
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TEXT_WIDTH = 48  # of each encoder; the U-Net attends to both side by side
WORDS = 49408  # of CLIP's vocabulary
WORD_SPREAD = 0.4  # standard deviation of the token tables
CHANNELS = (128, 256)  # at 1/8 and 1/16 of the picture's side
GRID_PROMPTS = (
    "photo of a man, smiling, looking at the camera, plain white background",
    "photo of a woman, smiling, looking at the camera, grey studio background",
    "headshot of a man, neutral expression, looking left, dark background",
    "headshot of a woman, neutral expression, looking right, plain white background",
    "photo of an older man, grey hair, glasses, blurred office background",
    "photo of a young woman, smiling, looking left, blond hair, blurred outdoor background",
    "professional headshot of a man, smiling, looking right, dark hair, grey studio background, soft light",
    "professional headshot of a middle-aged woman, dark hair, blurred office background",
    "portrait of a young man, neutral expression, dark background, side light",
    "photo of a woman, glasses, brown hair, plain white background, bright lighting",
    "photo of a person",
    "headshot of a woman, smiling, looking at the camera, dark background, dim lighting",
)


def new_tokenizer() -> CLIPTokenizer:
    """CLIP's own byte-pair vocabulary, 49,408 tokens."""
    return CLIPTokenizer.from_pretrained(SHARED / "assets/mini_sdxl_v0/tokenizer", model_max_length=77)


def new_text_encoder(projected: bool) -> nn.Module:
    """A CLIP text encoder of 3 layers; its token table stays as drawn, for training pictures use only some 60 words."""
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    for name, parameter in model.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(parameter, std=WORD_SPREAD)
            parameter.requires_grad_(False)
        elif "position_embedding" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def new_unet(latent_channels: int, sample_size: int, channels: tuple[int, ...] = CHANNELS) -> UNet2DConditionModel:
    """SDXL's shape in small: no attention at the finest level, text_time embedding of pooled text and six size facts."""
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",),
        transformer_layers_per_block=1,
        attention_head_dim=tuple(c // 32 for c in channels),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + TEXT_WIDTH,
        norm_num_groups=16,
    )


def new_scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule, with v-prediction."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class Denoiser(nn.Module):
    """U-Net and both text encoders as one module: what is trained together.

    forward: noisy latents (B, C, h, w), timesteps (B,), token ids (B, 77), size facts (B, 6) and `worded` (B,), 0 where
    the picture is to be learnt without a caption -> predicted v, the shape of the latents. As SDXL's pipeline does, the
    encoders' last but one layer is attended to, and an empty caption is all zeros.
    """

    def __init__(self, latent_channels: int, sample_size: int):
        super().__init__()
        self.unet = new_unet(latent_channels, sample_size)
        self.text_encoder, self.text_encoder_2 = new_text_encoder(False), new_text_encoder(True)

    def take(self, base: Path) -> None:
        """Takes the weights of a base's U-Net and text encoders."""
        for part, kind in (
            ("unet", UNet2DConditionModel),
            ("text_encoder", CLIPTextModel),
            ("text_encoder_2", CLIPTextModelWithProjection),
        ):
            getattr(self, part).load_state_dict(kind.from_pretrained(base / part).float().state_dict())

    def forward(self, noisy, timesteps, token_ids, size_facts, worded):
        first = self.text_encoder(token_ids, output_hidden_states=True).hidden_states[-2]
        second = self.text_encoder_2(token_ids, output_hidden_states=True)
        text = torch.cat([first, second.hidden_states[-2]], -1) * worded[:, None, None]
        pooled = second.text_embeds * worded[:, None]
        return self.unet(
            noisy, timesteps, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": size_facts}
        ).sample


def as_pipeline(net: Denoiser, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """The base as a stock pipeline, from copies of its parts."""
    parts = copy.deepcopy(net).to(dtype)
    tokenizer = new_tokenizer()
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderTiny.from_pretrained(HOME / "autoencoder").to(dtype),
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=parts.unet,
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(net: Denoiser, folder: Path) -> float:
    """Writes the base in fp16 to `folder`, whole or not at all; returns its size in MB (10^6 bytes)."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    as_pipeline(net, torch.float16).save_pretrained(beside, safe_serialization=True)
    for path in beside.glob("tokenizer*/tokenizer.json"):  # written with indents: half of it is blanks
        path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(beside, folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def unguided_after(steps: int):
    """For diffusers' `callback_on_step_end`: halves what the U-Net is told once so many steps are done."""

    def cut(pipe, step: int, timestep, told: dict) -> dict:
        if step + 1 == steps:
            pipe._guidance_scale = 1.0
            return {name: both.chunk(2)[-1] for name, both in told.items()}
        return told

    return cut


@torch.no_grad()
def draw(pipe, prompts, px: int, seed: int, guidance: float = 2.5, share: float = 1.0, steps: int = 20) -> np.ndarray:
    """A picture a prompt, uint8, shape (N, px, px, 3); guidance in the first `share` of the sampler steps."""
    cut = unguided_after(round(share * steps)) if share < 1 else None
    with torch.autocast(pipe.device.type, dtype=torch.bfloat16):
        images = pipe(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=px,
            width=px,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=cut,
            callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds", "add_time_ids"],
        ).images
    return (images * 255).round().astype("uint8")


def draw_grid(net: Denoiser, px: int, path: Path, device: str = "cpu", guidance: float = 3.0) -> None:
    """Draws GRID_PROMPTS with two seeds each, always the same ones, as a PNG of 4 rows."""
    pipe = as_pipeline(net).to(device)
    pictures = np.concatenate([draw(pipe, GRID_PROMPTS, px, seed, guidance) for seed in (3, 4)])
    grid = np.vstack([np.hstack(pictures[k : k + 6]) for k in range(0, len(pictures), 6)])
    cv2.imwrite(str(path), grid[:, :, ::-1])
