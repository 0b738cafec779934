"""LoRAs for drawing in a few steps. The real ones can't be had here: a small random one of the same file format, from a
folder instead of the hub, proves that it is loaded, fused, compared, used or refused; not that few steps suffice."""

import json

import numpy as np
import pytest
import torch
from conftest import open_picture

from headshotkit.config import GenerateConfig
from headshotkit.config.few_steps import FEW_STEPS, FewSteps
from headshotkit.core.errors import BadConfig, BaseUnavailable
from headshotkit.core.records import Names
from headshotkit.core.run import write_json
from headshotkit.evaluation.evaluate import evaluate_run
from headshotkit.families import Sampling, load_family
from headshotkit.families.drawing import scheduler_for
from headshotkit.generation import few_steps
from headshotkit.generation.few_steps import compare_few, drawn_in_few
from headshotkit.generation.headshots import generate_headshots
from headshotkit.restoration.restore import restore_headshots

BRIEF = {"count": 2, "sampler_steps": 6, "max_attempts": 1, "batch": 2, "distilled_lora": "tiny"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a LoRA of rank 1 on the embedded base, all but nothing."""
    folder, family = tmp_path_factory.mktemp("few"), load_family("mini")
    family.add_lora(1, 1, "attention", seed=0)
    family.load_lora_state({name: 0.01 * torch.ones_like(value) for name, value in family.lora_state().items()})
    (folder / "few.safetensors").write_bytes(family.lora_file({}))
    return folder


@pytest.fixture
def tiny(made, monkeypatch):
    monkeypatch.setitem(FEW_STEPS, "tiny", FewSteps(str(made), "few.safetensors", 2, "lcm", bases=("mini",)))


def test_the_samplers_are_those_of_the_model_cards():
    usual = load_family("mini").pipeline.scheduler
    names = {few.sampler: type(scheduler_for(usual, few.sampler, "mini")).__name__ for few in FEW_STEPS.values()}
    assert names == {
        "euler-trailing": "EulerDiscreteScheduler",
        "ddim-trailing": "DDIMScheduler",
        "lcm": "LCMScheduler",
    }
    assert scheduler_for(usual, "ddim-trailing", "mini").config.timestep_spacing == "trailing"


def test_they_are_for_sdxl_alone_and_set_how_is_drawn():
    with pytest.raises(BadConfig, match="distilled_lora is 'lightning', base is 'mini'"):
        GenerateConfig.for_base("mini", distilled_lora="lightning")
    with pytest.raises(BadConfig, match="distilled_lora is 'turbo'"):
        GenerateConfig.for_base("sdxl", distilled_lora="turbo")
    fast = drawn_in_few(GenerateConfig.for_base("sdxl", distilled_lora="lightning"))
    assert (fast.sampler_steps, fast.sampler, fast.guidance) == (8, "euler-trailing", 1.0)


@pytest.mark.parametrize(
    "after, held", [([0.5, 0.6, 0.55], True), ([0.35, 0.45, 0.4], False), ([0.5, None, 0.6], False)]
)
def test_it_holds_where_identity_and_faces_do(tiny, after, held):
    config = GenerateConfig.for_base("mini", distilled_lora="tiny")
    drawn = {config.sampler_steps: [0.5, 0.6, 0.56], 2: after}
    known = compare_few(lambda settings: drawn[settings.sampler_steps], lambda: None, config)
    assert known["held"] is held and ("not used" in known["words"]) is not held
    assert known["pairs"] == sum(value is not None for value in after)


def test_where_identity_holds_it_draws_and_goes_on_alike(tiny, brief_run, monkeypatch):
    monkeypatch.setattr(few_steps, "MOST_LOST", 2.0)  # the brief LoRA knows nobody, so that nothing can be lost
    config = GenerateConfig.for_base("mini", **BRIEF)
    monkeypatch.setattr(few_steps, "PAIRS", 2)
    shots = generate_headshots(brief_run, config)
    manifest = brief_run.manifest("headshots")
    if not manifest["few_steps"]["held"]:  # a face may have been lost in two steps
        pytest.skip(manifest["few_steps"]["words"])
    how = json.loads(open_picture(brief_run.path("headshots") / shots[0].file).text["headshotkit"])
    assert (how["steps"], how["sampler"], manifest["config"]["steps"]) == (2, "lcm", 6)
    restore_headshots(brief_run)
    evaluate_run(brief_run)  # only the LoRA may be missing from the bare base's pictures
    family, sampling = load_family("mini"), Sampling.of(drawn_in_few(config), (256, 256), Names("ohwx man", "a man"))
    family.use_few_steps(FEW_STEPS["tiny"])
    drawn = family.render([s.prompt for s in shots], [""] * 2, [s.seed for s in shots], sampling)
    for shot, image in zip(shots, drawn, strict=True):
        assert (np.asarray(open_picture(brief_run.path("report") / "base" / shot.file)) == np.asarray(image)).all()


def test_a_whole_unet_leaves_no_room_for_one(tiny, brief_run):
    trained = brief_run.manifest("lora")
    write_json(brief_run.path("lora") / "manifest.json", trained | {"lora": trained["lora"] | {"method": "dreambooth"}})
    with pytest.raises(BadConfig, match="distilled_lora is 'tiny', the run was trained with method 'dreambooth'"):
        generate_headshots(brief_run, GenerateConfig.for_base("mini", **BRIEF))


def test_where_it_does_not_hold_the_pictures_are_those_without(tiny, brief_run, monkeypatch):
    monkeypatch.setattr(few_steps, "MOST_LOST", -2.0)
    before = [
        open_picture(brief_run.path("headshots") / s["file"]) for s in brief_run.manifest("headshots")["headshots"]
    ]
    shots = generate_headshots(brief_run, GenerateConfig.for_base("mini", **BRIEF))
    manifest = brief_run.manifest("headshots")
    assert manifest["few_steps"]["held"] is False and "not used" in manifest["outcome"]
    for shot, picture in zip(shots, before, strict=False):
        assert (np.asarray(open_picture(brief_run.path("headshots") / shot.file)) == np.asarray(picture)).all()


def test_one_that_can_not_be_had_says_so(tiny, made):
    with pytest.raises(BaseUnavailable, match=r"none.safetensors(.|\n)*leave out --distilled-lora"):
        load_family("mini").use_few_steps(FewSteps(str(made), "none.safetensors", 2, "lcm"))
