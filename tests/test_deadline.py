"""The deadline controller, with a clock that is moved by hand."""

from dataclasses import replace

import pytest

from headshotkit import deadline
from headshotkit.costs import GPUS
from headshotkit.deadline import DeadlineController
from headshotkit.errors import BadConfig
from headshotkit.ladder import FIXED, LADDERS, STAGES, Task, step_seconds
from headshotkit.planner import NotEnoughMemory, plan_rest, plan_run


@pytest.fixture
def clock():
    """A clock that is moved by hand: clock.now, seconds."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_a_slow_gpu_is_noticed_after_20_steps_and_said(clock):
    told = []
    plan = plan_run("t4", 50, 60)
    controller = DeadlineController(plan, clock, told.append)
    for stage in ("install", "download", "check", "prepare"):
        clock.now += 60
        controller.finish(stage)
    assert controller.plan.choice == plan.choice and not told
    planned = step_seconds(plan.task, plan.choice, 768, False)[0]
    for _ in range(deadline.TIMED_STEPS + 1):
        clock.now += 2 * planned
        after = controller.time_step()
    assert after.choice != plan.choice and after.task.slower == pytest.approx(2) and after.task.steps_done == 21
    assert "planned again, a step takes 1.53 s, planned 0.77" in told[0] and "gave up" in told[0]
    assert [stage.name for stage in after.stages] == ["train", "load", "generate", "restore", "evaluate"]
    assert after.pessimistic <= controller.minutes_left


def test_weights_are_brought_by_the_training_and_a_late_run_still_loads_them(clock):
    controller = DeadlineController(plan_run("t4", 50, 60), clock, lambda line: None)
    for stage, still in (("check", True), ("prepare", True), ("train", False)):
        controller.finish(stage)
        assert controller.plan.doing("download") == still
    clock.now = 3600.0
    load = FIXED["sdxl"]["load"][1]
    assert controller.rendering["minutes"] == controller.least_minutes == deadline.LEAST_MINUTES + load > load


def test_time_won_in_training_buys_sampler_steps(clock):
    plan, told = plan_run("t4", 50, 50), []
    controller = DeadlineController(plan, clock, told.append)
    assert plan.choice.sampler_steps < 25
    for stage in ("install", "download", "check", "prepare", "train"):
        clock.now += 60
        controller.finish(stage)
    assert controller.plan.choice.sampler_steps == 25 and controller.plan.choice.guidance_share == 1
    assert not any("training steps" in line for line in controller.plan.given_up)
    told.clear()
    for stage in ("load", "generate", "restore", "evaluate"):
        controller.finish(stage)
    assert controller.plan.stages == () and not told
    with pytest.raises(BadConfig, match="no stage is called 'bake'"):
        controller.finish("bake")


def test_a_late_run_goes_on_with_the_cheapest_plan_and_says_how_late(clock):
    told = []
    controller = DeadlineController(plan_run("t4", 50, 60), clock, told.append)
    clock.now = 55 * 60
    after = controller.finish("check")
    assert after.choice in LADDERS["sdxl"][-2:] and "minutes late" in told[-1] and "5 minutes are left" in told[-1]


def test_out_of_memory_leads_to_cheaper_plans_until_there_is_none(clock):
    told = []
    controller = DeadlineController(plan_run("t4", 50, 120), clock, told.append)
    peaks = []
    with pytest.raises(NotEnoughMemory):
        for _ in range(20):
            peaks.append(next(s.peak_gib for s in controller.plan.stages if s.name == "train"))
            controller.out_of_memory("train", steps_done=100)
    assert len(peaks) >= 3 and peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert "out of memory in train, planned" in told[0] and controller.plan.checkpointing
    assert controller.plan.task.steps_done == 100


def test_out_of_memory_on_the_embedded_base_first_costs_time_then_sizes(clock):
    controller = DeadlineController(plan_run("cpu", 24, 60), clock, lambda line: None)
    seen = [(controller.plan.training["checkpointing"], controller.plan.training["batch"])]
    with pytest.raises(NotEnoughMemory):
        for _ in range(20):
            training = controller.out_of_memory("train", steps_done=5).training
            assert {px for px, _ in training["schedule"]} <= controller.sizes_px == {192, 256}
            seen.append((training["checkpointing"], training["batch"]))
    assert seen[:2] == [(False, 4), (True, 4)] and seen[-1][1] == 1 and controller.why.startswith("out of memory")


def test_a_training_that_was_begun_otherwise_is_planned_as_it_is(clock):
    """After an interruption the plan may be another one than that which the training goes on with."""
    controller = DeadlineController(plan_run("t4", 50, 60), clock, lambda line: None)
    other = {"schedule": ((768, 400),), "steps": 400, "batch": 1, "checkpointing": True}
    controller.start_training(other, 300)
    train = controller.plan.stages[0]
    assert train.name == "train" and controller.plan.training == other
    seconds = step_seconds(controller.plan.task, controller.plan.choice, 768, True)[0]
    assert train.minutes == pytest.approx(100 * seconds / 60)
    with pytest.raises(BadConfig, match="step_half_norms at 640 px is not known"):
        controller.start_training(other | {"schedule": ((640, 400),), "checkpointing": False}, 0)


@pytest.mark.parametrize(
    ("gpu", "named", "gib"), [(("Tesla T4", 14.74), "t4", 14.74), (("NVIDIA L4", 22.0), "t4", 22.0), (None, "cpu", 0.0)]
)
def test_the_machine_that_this_is_gets_planned(monkeypatch, gpu, named, gib):
    """A GPU without rates of its own gets a T4's, with the memory that it has."""
    monkeypatch.setattr(deadline.runtime, "gpu_memory", lambda: gpu)
    task = deadline.plan_here("sdxl" if gpu else "mini", 24, 90, 500, ("train", "generate")).task
    assert (task.rates.name, task.memory_gib, task.steps) == (named, gib, 500)
    assert set(STAGES) - set(task.done) == {"train", "generate"}
    assert deadline.plan_here("mini", 24, 90).task.rates.name == "cpu"


def test_done_steps_are_not_planned_again():
    task = Task(GPUS["t4"], "sdxl", 50, 60.0, 14.7, done=("install", "download", "check", "prepare"))
    fresh, late = plan_rest(task), plan_rest(replace(task, steps_done=1000))
    assert fresh.stages[0].name == late.stages[0].name == "train"
    assert late.stages[0].minutes == 0 < fresh.stages[0].minutes
