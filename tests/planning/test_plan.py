"""The planner: real-size SDXL counted without memory, the marks of the issue, and what happens when nothing fits."""

import json
import subprocess
import sys
from dataclasses import replace

import counting
import pytest
import torch
from conftest import P1, result_of
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from headshotkit import pipeline
from headshotkit.cli import main
from headshotkit.config import METHODS, RunSettings, TrainConfig
from headshotkit.core.errors import BadConfig, UnknownBase
from headshotkit.core.results import GalleryResult
from headshotkit.core.run import Run
from headshotkit.families import costs
from headshotkit.families.costs import GPUS, cost, public_seconds
from headshotkit.pipeline import _beside_class_images, begin_deadline, config_for, make_headshots
from headshotkit.planning.deadline import DeadlineController
from headshotkit.planning.ladder import (
    FIXED,
    LADDERS,
    METHOD_LADDERS,
    STAGES,
    Task,
    picture_seconds,
    stages_of,
    step_seconds,
)
from headshotkit.planning.plan import NotEnoughMemory, TooFewMinutes, UnknownGpu, options_of, plan_rest, plan_run

# px: (forward TFLOP, step, checkpointed step, GiB of a step), counted independently of this code (2026-11-20)
EARLIER = {512: (1.59, 3.20, 4.40, 7.0), 768: (3.64, 7.52, 10.28, 8.9), 1024: (6.76, 14.31, 19.50, 11.5)}


# --- counting -----------------------------------------------------------------------------------------------------


def test_the_networks_have_the_published_sizes():
    assert counting.count_parameters("unet") == 2_567_463_684
    assert counting.count_parameters("vae") == 83_653_863
    assert counting.count_parameters("text") == 123_060_480 + 694_659_840


@pytest.mark.parametrize(
    ("kind", "px"),
    [
        ("forward", 1024),
        pytest.param("step_half_norms", 1024, marks=pytest.mark.slow),
        pytest.param("step_checkpointed", 1024, marks=pytest.mark.slow),
        ("decode", 1024),
        ("text", 1024),
        ("mini_step", 256),
        ("mini_step_checkpointed", 192),
        ("dreambooth", 512),
        ("mini_textual-inversion", 256),
        ("mini_pivotal_checkpointed", 192),
    ],
)
def test_the_kept_figures_are_what_is_counted(kind, px):
    """Another diffusers or peft may need other memory: then the table must be printed anew."""
    counted, kept = counting.count(kind, px), cost(kind, px)
    assert counted.tflop == pytest.approx(kept.tflop, rel=0.01)
    assert counted.peak_gib == pytest.approx(kept.peak_gib, rel=0.01)
    assert counted.weights_gib == pytest.approx(kept.weights_gib, rel=0.01)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("step_half_norms", marks=pytest.mark.slow),
        "dreambooth_checkpointed",
        pytest.param("textual-inversion_checkpointed", marks=pytest.mark.slow),
    ],
)
def test_what_grows_with_the_batch_is_told_from_what_does_not(kind):
    """DreamBooth's gradients are as large as its weights, and of one size whatever the batch."""
    counted, reckoned = counting.count(kind, 512, batch=2), cost(kind, 512, batch=2)
    assert reckoned.peak_gib == pytest.approx(counted.peak_gib, rel=0.02)
    assert reckoned.tflop == pytest.approx(counted.tflop, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "px"), costs.COUNTED)
def test_every_kept_figure_is_what_is_counted(kind, px):
    counted, kept = counting.count(kind, px), cost(kind, px)
    assert (counted.tflop, counted.peak_gib) == pytest.approx((kept.tflop, kept.peak_gib), rel=0.01)


def test_costs_agree_with_an_independent_count_within_10_percent():
    for px, (forward, step, checkpointed, gib) in EARLIER.items():
        assert cost("forward", px).tflop == pytest.approx(forward, rel=0.01)
        assert cost("step", px).tflop == pytest.approx(step, rel=0.03)
        assert cost("step_checkpointed", px).tflop == pytest.approx(checkpointed, rel=0.03)
        assert cost("step", px).peak_gib == pytest.approx(gib, rel=0.1)
    assert cost("step_checkpointed", 1024).peak_gib == pytest.approx(5.9, rel=0.1)
    assert cost("decode").tflop == pytest.approx(10.5, rel=0.01)
    assert cost("encode").tflop == pytest.approx(4.9, rel=0.01)


def test_a_step_of_real_size_stays_within_the_marks():
    """10.5 GiB at 768 px and 13.0 at 1024, with 10 % slack: thanks to norms in float16, as `SdxlFamily` has them."""
    assert cost("step_half_norms", 768).peak_gib * 1.1 <= 10.5
    assert cost("step_half_norms", 1024).peak_gib * 1.1 <= 13.0 < cost("step", 1024).peak_gib * 1.1


def test_the_rules_are_those_of_real_autocast(monkeypatch):
    """The step of a small U-Net again, with FakeTensorMode and torch's own autocast: same FLOPs, same memory.

    Autocast's rules for a CPU, for nothing else is linked here; only norms and attention go by `Rules`.
    """
    small = counting.UNET | {"block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 1)}
    monkeypatch.setattr(counting, "UNET", small | {"attention_head_dim": (2, 2, 2)})
    expected = counting.count("step", 256)
    monkeypatch.setattr(counting, "HALF", ())
    with torch.device("meta"):
        unet = UNet2DConditionModel(**counting.UNET).half().requires_grad_(False).train()
        counting.add_lora(unet)
    with FakeTensorMode(), torch.device("cpu"), counting.Counter() as counter:
        for module in unet.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, dtype=p.dtype)
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=p.requires_grad)
        latents, time, text, *_, lines = counting._unet_inputs(256, 1)
        counter.flops, counter.peak = 0, 0
        with counting.Rules(counting.NORMS), torch.autocast("cpu", torch.float16):
            made = unet(latents, time, text, added_cond_kwargs=lines).sample
        made.float().pow(2).mean().backward()
    assert counter.flops / 1e12 == pytest.approx(expected.tflop, rel=1e-6)
    assert counter.peak / costs.GIB == pytest.approx(expected.peak_gib, rel=1e-3)


def test_memory_that_a_tensor_leaves_is_counted_as_free():
    with torch.device("meta"), counting.Counter() as counter:
        kept = torch.empty(2**20)
        passing = torch.empty(2**20) + 1
        view = kept.view(2, -1)
        del passing
    assert view.numel() == 2**20
    assert (counter.now, counter.peak) == (4 * 2**20, 3 * 4 * 2**20)


def test_flops_of_a_product_are_two_for_each_multiplication():
    with torch.device("meta"), counting.Counter() as counter:
        torch.empty(3, 5) @ torch.empty(5, 7)
    assert counter.flops == 2 * 3 * 5 * 7


# --- rates --------------------------------------------------------------------------------------------------------


def test_public_measurements_come_out_again():
    """The T4's two rates were fitted to these two numbers, so this checks the arithmetic, not the model."""
    t4 = GPUS["t4"]
    assert public_seconds(t4, 25, guided=True) == pytest.approx(26.5, rel=0.3)
    assert public_seconds(t4, 4, guided=False) == pytest.approx(8.4, rel=0.3)
    assert t4.render_tflops[0] == pytest.approx(17.2, rel=0.01) and t4.fixed_fp32_s == pytest.approx(6.8, rel=0.01)
    assert t4.train_tflops == pytest.approx((10.0, 8.0), rel=0.01)


def test_every_rate_has_a_source_and_its_pessimistic_side():
    for rates in GPUS.values():
        assert "huggingface.co/" in rates.source or "tests/benchmarks/README.md" in rates.source
        assert rates.render_tflops[1] <= rates.render_tflops[0] and rates.fixed_s[1] >= rates.fixed_s[0]


# --- plans --------------------------------------------------------------------------------------------------------


def test_50_headshots_on_a_t4_fit_into_the_hour():
    plan = plan_run("t4", count=50, minutes=60)
    assert plan.minutes <= 45 and plan.pessimistic <= 58 and plan.peak_gib <= 14.7 and plan.fits
    assert plan.choice.schedule == ((768, 700), (1024, 300)) and not plan.checkpointing
    train = next(stage for stage in plan.stages if stage.name == "train")
    assert train.minutes == pytest.approx(16, abs=1.5)


def test_everything_that_draws_is_planned_with_its_pictures_and_its_load():
    """Evaluation's pairs, picking, class images and each load of the base: none of them is free."""
    plan = plan_run("t4", 50, 60)
    stages = {stage.name: stage for stage in plan.stages}
    picture = picture_seconds(plan.task, plan.choice.sampler_steps, 0.6)[0] / 60
    load = FIXED["sdxl"]["load"][0]
    assert stages["generate"].minutes == pytest.approx(60 * picture + load)
    assert stages["evaluate"].minutes > 8 * picture + load and 8 <= plan.choice.pairs <= 12
    assert stages["evaluate"].peak_gib == stages["generate"].peak_gib
    other = plan_run("t4", 50, 600, pick=42, class_images=50)
    more = {stage.name: stage.minutes for stage in other.stages}
    by_preset = picture_seconds(other.task, 25, 0.6)[0] / 60
    assert more["pick"] == pytest.approx(42 * by_preset + load)
    assert more["prepare"] == pytest.approx(stages["prepare"].minutes + 50 * by_preset + load)
    assert 12 < 50 * by_preset < 15


def test_a_run_on_a_t4_decides_what_the_plan_says(tmp_path, monkeypatch):
    """`plan` counts the installation too; a run counts from its start, with the download where weights are missing."""
    monkeypatch.setattr(pipeline.runtime, "gpu_memory", lambda: ("Tesla T4", 14.7))
    plan, lines = plan_run("t4", 50, 60), []
    for here, names in ((False, {"download"}), (True, set())):
        monkeypatch.setattr(pipeline, "weights_here", lambda base, here=here: here)
        run = begin_deadline(Run(tmp_path), RunSettings(base="sdxl", minutes=60), lines.append).plan
        assert run.minutes <= 45 and run.pessimistic <= 58 and run.choice.schedule == plan.choice.schedule
        assert run.choice.pairs == plan.choice.pairs and run.choice.sampler_steps >= plan.choice.sampler_steps
        assert {stage.name for stage in plan.stages} - {stage.name for stage in run.stages} == {
            "install",
            "download",
        } - names
        if not here:
            assert run.choice == plan.choice
    said = RunSettings(base="sdxl", minutes=300, train_batch=4, checkpointing=True)
    made = begin_deadline(Run(tmp_path), said, lines.append).plan.training
    assert (made["batch"], made["checkpointing"]) == (4, True)


@pytest.mark.parametrize(
    ("gpu", "asked", "minutes"),
    [
        (("Tesla T4", 14.7), {}, 60), (("Tesla T4", 14.7), {"minutes": 0}, None), (None, {}, None),
        (("Tesla T4", 14.7), {"minutes": 90}, 90), (("Tesla T4", 14.7), {"base": "mini"}, None),
        (("Tesla T4", 14.7), {"schedule": ((1024, 5),)}, None), (("Tesla T4", 14.7), {"max_attempts": 2}, None),
        (("Tesla T4", 14.7), {"prepare_size_px": 768}, None),
        (("Tesla T4", 14.7), {"count": 400}, None), (("Tesla T4", 14.7), {"base": "flux"}, None),
    ],
)  # fmt: skip
def test_an_hour_is_what_a_run_on_cuda_is_planned_for(tmp_path, monkeypatch, gpu, asked, minutes):
    """Where nothing was said; the stages only note the controller that they are given."""
    monkeypatch.setattr(pipeline.runtime, "gpu_memory", lambda: gpu)
    seen, lines = [], []

    def done(stage, run, options, controller):
        seen.append(controller)
        return result_of(GalleryResult).to_dict()

    monkeypatch.setattr(pipeline, "do_stage", done)
    make_headshots(P1, tmp_path, RunSettings(**{"base": "sdxl"} | asked), tell=lines.append)
    given = seen[0] and seen[0].first.task.minutes
    assert given == minutes
    assert (tmp_path / "plan.json").exists() == (minutes is not None)
    none = asked.keys() & {"count", "prepare_size_px"} or asked.get("base") == "flux"
    assert any("plan       none: " in line for line in lines) == bool(none)


def test_what_was_given_up_is_said_with_its_numbers():
    plan = plan_run("t4", 50, 60)
    assert len(plan.sacrifices) == 4 and all("minutes at worst, of 60" in line for line in plan.sacrifices)
    said = plan.explain()
    assert "sacrificed batch 2" in said and "guidance in the first 60%" in said
    assert plan.rendering == {"sampler_steps": 20, "guidance_share": 0.6}


def test_steps_that_a_person_set_are_kept_and_shared_among_the_sizes():
    plan = plan_run("t4", 50, 60, steps=500)
    assert all(choice.steps == 500 for choice in options_of(plan.task)) and plan.training["steps"] == 500
    assert LADDERS["sdxl"][3].with_steps(501).schedule == ((768, 351), (1024, 150))
    assert len(options_of(plan.task)) < len(LADDERS["sdxl"])


def test_a_batch_and_checkpointing_that_a_person_set_are_kept():
    known = {"steps": 1000, "batch": 4, "checkpointing": True}
    plan = plan_run("t4", 50, 600, **known)
    assert {name: plan.training[name] for name in known} == known and not plan.sacrifices
    assert all(choice.batch == 4 for choice in options_of(plan.task))
    controller = DeadlineController(plan, clock=iter(range(0, 10**6, 60)).__next__, tell=lambda line: None)
    controller.start_training(plan.training, 0)
    made = [controller.time_step().training for _ in range(60)]
    assert len({one["schedule"] for one in made}) > 1 and {(one["batch"], one["checkpointing"]) for one in made} == {
        (4, True)
    }
    with pytest.raises(NotEnoughMemory):
        plan_run("t4", 50, 60, batch=64)
    with pytest.raises(NotEnoughMemory):
        plan_run("t4", 50, 6000, batch=8, checkpointing=False)
    assert plan_run("t4", 50, 6000, batch=8).checkpointing


def test_more_minutes_never_plan_worse_and_fewer_never_take_longer():
    plans = [plan_run("t4", 50, minutes) for minutes in range(35, 240, 5)]
    indices = [LADDERS["sdxl"].index(plan.choice) for plan in plans]
    assert indices == sorted(indices, reverse=True) and indices[0] > indices[-1] == 0
    assert all(plan.fits and plan.peak_gib <= 14.7 for plan in plans)


def test_a_small_gpu_gets_checkpointing_and_the_reason():
    t4 = GPUS["t4"]
    plan = plan_rest(Task(t4, "sdxl", 50, 75.0, 11.0))
    assert plan.checkpointing and plan.peak_gib <= 11.0
    assert any(line.startswith("training without checkpointing: train needs") for line in plan.sacrifices)


def test_a_faster_gpu_gets_the_best():
    plan = plan_run("a100", 50, 60)
    assert plan.choice == LADDERS["sdxl"][0] and plan.sacrifices == ()


def test_too_few_minutes_are_an_error_that_says_the_least(capsys):
    with pytest.raises(TooFewMinutes, match="50 headshots in 20 minutes .* t4") as caught:
        plan_run("t4", 50, 20)
    least = int(caught.value.next_step.split("at least ")[1].split()[0])
    assert plan_run("t4", 50, least).fits
    with pytest.raises(TooFewMinutes):
        plan_run("t4", 50, least - 1)


def test_a_gpu_too_small_is_an_error():
    with pytest.raises(NotEnoughMemory, match="needs .* GiB"):
        plan_rest(Task(GPUS["t4"], "sdxl", 50, 60.0, 6.0))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("tpu", 50, 60), UnknownGpu, ": t4, a100"),
        (("t4", 0, 60), BadConfig, "count is 0"),
        (("t4", 50, 0), BadConfig, "minutes is 0"),
        (("t4", 50, float("nan")), BadConfig, "minutes is nan"),
        (("t4", 50, float("inf")), BadConfig, "minutes is inf"),
        (("t4", 50, 60, "mini"), BadConfig, "base is 'mini', gpu is 't4'"),
        (("cpu", 50, 60, "sdxl"), BadConfig, "base is 'sdxl', gpu is 'cpu'"),
        (("t4", 50, 60, "sd15"), UnknownBase, "sd15"),
    ],
)
def test_bad_input_is_an_error(arguments, error, said):
    with pytest.raises(error, match=said):
        plan_run(*arguments)


# --- methods ------------------------------------------------------------------------------------------------------


def gib_of(plan, stage="train"):
    return next(one.peak_gib for one in plan.stages if one.name == stage)


@pytest.mark.parametrize(("gpu", "base", "minutes"), [("a100", "sdxl", 60), ("cpu", "mini", 15)])
def test_every_method_is_planned_with_its_own_steps_and_costs(gpu, base, minutes):
    plans = {method: plan_run(gpu, 24, minutes, base, method=method) for method in METHODS}
    for method, plan in plans.items():
        wanted = TrainConfig.for_base(base, method=method)
        assert plan.training["steps"] == wanted.steps and plan.fits and plan.sacrifices == ()
        assert plan.to_dict()["method"] == method and (f"by {method}: " in plan.explain()) == (method != "lora")
        TrainConfig.for_base(base, method=method, **plan.training)  # what a plan decides suits the method
    step = {m: step_seconds(p.task, p.choice, p.choice.px_at(0), p.checkpointing)[0] for m, p in plans.items()}
    gib = {method: gib_of(plan) for method, plan in plans.items()}
    assert max(gib, key=gib.get) == "dreambooth" and step["pivotal"] > step["textual-inversion"]
    if base == "mini":
        assert step == pytest.approx(costs.MINI_METHOD_STEP_S)
    else:
        assert step["dreambooth"] > step["lora"] and gib["textual-inversion"] > gib["lora"]


def test_dreambooth_is_refused_on_a_t4_with_its_numbers(capsys):
    """2.57 B weights and gradients in float32 are 19.1 GiB, 8-bit Adam's moments 4.8, before any activation."""
    with pytest.raises(NotEnoughMemory, match="dreambooth needs 26.7 GiB .* 14.7"):
        plan_run("t4", 50, 600, method="dreambooth")
    assert main(["plan", "--method", "dreambooth"]) == 2
    said = capsys.readouterr().err
    assert "--method lora" in said and "a100 (74 GiB)" in said
    assert gib_of(plan_run("a100", 50, 600, method="dreambooth")) > 24
    with pytest.raises(NotEnoughMemory):
        plan_run("rtx4090", 50, 600, method="dreambooth")


@pytest.mark.parametrize("method", ["textual-inversion", "pivotal"])
def test_tokens_fit_a_t4(method):
    plan = plan_run("t4", 50, 60, method=method)
    assert plan.fits and gib_of(plan) <= 14.7
    large = plan_run("t4", 50, 600, method=method)
    assert large.choice.schedule == ((1024, 1000),) and gib_of(large) <= 14.7


def test_class_images_count_as_so_many_more_pictures_a_step():
    alone, beside = (plan_run("a100", 50, 90, method="dreambooth", prior=prior) for prior in (False, True))
    seconds = [step_seconds(plan.task, alone.choice, 1024, False)[0] for plan in (alone, beside)]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    assert (
        beside.task.step_cost(alone.choice, 1024, False).peak_gib
        > alone.task.step_cost(alone.choice, 1024, False).peak_gib
    )
    assert "class images" in beside.explain() and "class images" not in alone.explain()


def test_without_a_plan_class_images_on_a_large_base_bring_checkpointing(tmp_path):
    """Two losses at once do not fit a T4 without it; nor would an out-of-memory error help in a notebook."""
    asked, task = RunSettings(class_images=4), Task(GPUS["t4"], "sdxl", 50, 60, 14.7, prior=True)
    large = next(choice for choice in task.ladder if choice.schedule[0][0] == 1024 and choice.batch == 1)
    fits = {way: stages_of(replace(task, done=STAGES[:4]), large, way)[0].peak_gib <= 14.7 for way in (False, True)}
    assert fits == {False: False, True: True}
    assert _beside_class_images(Run(tmp_path), "sdxl", asked) == {"checkpointing": True}
    assert _beside_class_images(Run(tmp_path), "sdxl", RunSettings()) == {}
    assert _beside_class_images(Run(tmp_path), "mini", asked) == {}
    begun = config_for(TrainConfig, "sdxl", asked)
    Run(tmp_path).begin("lora", begun, {})
    assert not begun.checkpointing and _beside_class_images(Run(tmp_path), "sdxl", asked) == {}, "it goes on as it was"


def test_steps_given_up_are_counted_by_the_methods_own():
    said = [choice.sacrificed for choice in METHOD_LADDERS["sdxl", "dreambooth"]]
    assert "160 of 800 training steps" in said and "160 more training steps, so 320 are left" in said
    assert [choice.sacrificed for choice in LADDERS["sdxl"]][6] == "200 of 1000 training steps"
    assert all("{" not in choice.sacrificed for options in METHOD_LADDERS.values() for choice in options)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"base": "flux", "method": "dreambooth"}, "base is 'flux'.\n.*: lora."),
        ({"method": "textual-inversion", "prior": True}, "'textual-inversion'.* class images"),
    ],
)  # fmt: skip
def test_what_a_base_cannot_learn_is_not_planned(known, said):
    with pytest.raises(BadConfig, match=said):
        plan_run("a100", 50, 600, **known)


def test_the_demo_is_planned_as_it_was_measured():
    """On two free cores: 1,000 steps in 257 s (2026-11-21); 58 pictures in 56 s, 24 restored in 28 s (2026-11-29)."""
    plan = plan_run("cpu", 24, 15)
    minutes = {stage.name: stage.minutes for stage in plan.stages}
    assert minutes["train"] * 60 == pytest.approx(257, rel=0.05)
    assert minutes["generate"] * 60 == pytest.approx(58, rel=0.1)
    assert minutes["restore"] * 60 == pytest.approx(28, rel=0.15)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_json(capsys):
    assert main(["plan", "--gpu", "t4", "--count", "50", "--minutes", "60"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("stage") and "\nall " in out and "sacrificed" in out
    assert main(["plan", "--json"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert plan["gpu"] == "t4" and plan["fits"] and plan["minutes"] <= 45 and len(plan["stages"]) == 9
    assert captured.err.startswith("stage")


def test_the_command_says_what_is_wrong(capsys):
    assert main(["plan", "--gpu", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("UnknownGpu: ")


def test_planning_loads_no_torch():
    code = "import sys; from headshotkit.planning.plan import plan_run; plan_run(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
