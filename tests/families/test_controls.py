"""SDXL's other ways to draw, against the stock pipelines, with the embedded base's own ControlNet and refiner."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import P2
from diffusers import (
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)

from headshotkit.config import GenerateConfig
from headshotkit.config.bases import find_base
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, BaseUnavailable
from headshotkit.families import Sampling, load_family, weights_place
from headshotkit.families.controls import Guide, load_controls
from headshotkit.families.edges import edge_agreement
from headshotkit.generation.pictures import PictureRequest, fitted_photo

PX = GenerateConfig.for_base("mini").size_px
SIX = Sampling((PX, PX), 6, 3.0)
INPUTS = (["photo of a woman, smiling"], [""], [5])


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


@pytest.fixture(scope="module")
def controls(family):
    return load_controls(family)


@pytest.fixture(scope="module")
def photo():
    return fitted_photo(str(P2 / "p2_01.jpg"), PictureRequest.for_base("mini", ""))


def stock(kind, **parts):
    pipeline = kind.from_pretrained(weights_place(find_base("mini")), add_watermarker=False, **parts)
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    return pipeline


def asked():
    return {"prompt": INPUTS[0], "num_inference_steps": 6, "guidance_scale": 3.0,
            "generator": [torch.Generator().manual_seed(5)]}  # fmt: skip


def equal(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_image_to_image_is_the_stock_pipelines(controls, photo):
    (made,) = controls.render(*INPUTS, SIX, Guide(photo=photo, strength=0.7))
    assert equal(made, stock(StableDiffusionXLImg2ImgPipeline)(image=photo, strength=0.7, **asked()).images[0])


def test_less_strength_stays_nearer_to_the_photo(controls, photo):
    made = [controls.render(*INPUTS, SIX, Guide(photo=photo, strength=s))[0] for s in (0.35, 0.7, 1.0)]
    away = [np.abs(np.asarray(m, float) - np.asarray(photo, float)).mean() for m in made]
    assert away == sorted(away)


def test_control_is_the_stock_pipelines(controls, photo):
    edges = controls.edges_of(photo, SIX.size_px)
    (made,) = controls.render(*INPUTS, SIX, Guide(edges=edges, edge_scale=0.8))
    net = ControlNetModel.from_pretrained(runtime.data_path("mini", "controlnet"), torch_dtype=torch.float32)
    noise = torch.randn(1, 12, edges.height // 8, edges.width // 8, generator=torch.Generator().manual_seed(5))
    given = {"image": edges, "controlnet_conditioning_scale": 0.8, "latents": noise, "width": edges.width,
             "height": edges.height, "original_size": (PX, PX), "target_size": (PX, PX)}  # fmt: skip
    assert equal(made, stock(StableDiffusionXLControlNetPipeline, controlnet=net)(**given, **asked()).images[0])


def test_edges_without_strength_change_nothing(family, controls, photo):
    edges = controls.edges_of(photo, SIX.size_px)
    assert edges.width == 8 * family.pipeline.unet.config.sample_size
    (made,) = controls.render(*INPUTS, SIX, Guide(edges=edges, edge_scale=0.0))
    assert equal(made, family.render(*INPUTS, SIX)[0])


@pytest.mark.slow
def test_the_trained_controlnet_is_obeyed(controls, photo):
    edges = controls.edges_of(photo, SIX.size_px)
    sampling, inputs = replace(SIX, steps=10), (INPUTS[0] * 4, [""] * 4, [1, 2, 3, 4])
    with_it, without = (
        np.mean(
            [edge_agreement(m, edges) for m in controls.render(*inputs, sampling, Guide(edges=edges, edge_scale=s))]
        )
        for s in (1.0, 0.0)
    )
    assert with_it > without + 0.1, "0.56 against 0.30 by tests/benchmarks/obey_edges.py, 2026-11-21"


@pytest.mark.parametrize(("way", "rows"), [("photo", 2 * 2 + 1), ("edges", 3 * 2 + 3), ("refiner", 3 * 2 + 3)])
def test_guidance_ends_where_it_should(family, controls, photo, way, rows):
    guide = {
        "photo": Guide(photo=photo, strength=0.5),
        "edges": Guide(edges=controls.edges_of(photo, SIX.size_px)),
        "refiner": Guide(refined=0.2),
    }[way]
    before, steps = family.forwards, []
    controls.render(*INPUTS, replace(SIX, guidance_share=0.5), guide, on_step=lambda: steps.append(1))
    assert family.forwards - before == rows and len(steps) == (3 if way == "photo" else 6)


def with_refiner(family, folder):
    other = load_controls(family)
    names = ("_size_factor", "_count_rows", "counting_rows", "_options", "encode_prompts", "render")
    other.family = SimpleNamespace(**vars(family), **{name: getattr(family, name) for name in names})
    other.family.base = replace(family.base, refiner=str(folder))
    return other


def test_a_refiner_that_is_the_base_changes_nothing(family, controls, tmp_path):
    """So the hand-over loses nothing: neither noise level nor latents nor words."""
    controls._img2img().save_pretrained(tmp_path)
    (made,) = with_refiner(family, tmp_path).render(*INPUTS, SIX, Guide(refined=0.34))
    assert equal(made, family.render(*INPUTS, SIX)[0])


def test_the_refiner_is_out_before_the_base_is_in_again(family, controls, tmp_path, monkeypatch):
    """Where networks went, in order; here all of it is the CPU's memory."""
    controls._img2img().save_pretrained(tmp_path)
    went, to = [], UNet2DConditionModel.to
    monkeypatch.setattr(UNet2DConditionModel, "to", lambda self, *where: went.append(self) or to(self, *where))
    with_refiner(family, tmp_path).render(*INPUTS, SIX, Guide(refined=0.34))
    base = family.pipeline.unet
    assert went[0] is base is went[-1] and went[-2] is not base and base not in went[1:-1]


def test_a_refiner_in_sdxls_own_form_runs(family, controls, tmp_path):
    """Random weights: the second encoder alone, and an aesthetic score; it proves that such a refiner is told all."""
    config = dict(family.pipeline.unet.config) | {
        "cross_attention_dim": 48, "projection_class_embeddings_input_dim": 5 * 32 + 48,
    }  # fmt: skip
    unet = UNet2DConditionModel.from_config(config)
    parts = controls._parts() | {
        "text_encoder": None,
        "tokenizer": None,
        "unet": unet,
    }
    parts["force_zeros_for_empty_prompt"] = False
    StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True).save_pretrained(tmp_path)
    (made,) = with_refiner(family, tmp_path).render(*INPUTS, SIX, Guide(refined=0.34))
    assert not equal(made, family.render(*INPUTS, SIX)[0])


def test_the_trained_refiner_refines_a_little(family, controls):
    (plain,), (made,) = family.render(*INPUTS, SIX), controls.render(*INPUTS, SIX, Guide(refined=0.34))
    away = np.abs(np.asarray(plain, float) - np.asarray(made, float)).mean()
    assert 0 < away < 12


def test_it_says_what_can_not_be_had(family, controls, photo, tmp_path):
    edges = controls.edges_of(photo, SIX.size_px)
    with pytest.raises(BadConfig, match="photo"):
        controls.render(*INPUTS, SIX, Guide(photo=photo, edges=edges))
    with pytest.raises(BadConfig, match="base 'flux'"):
        load_controls(SimpleNamespace(base=find_base("flux")))
    with pytest.raises(BaseUnavailable, match="the refiner of base 'mini'"):
        with_refiner(family, tmp_path / "nowhere").render(*INPUTS, SIX, Guide(refined=0.34))
