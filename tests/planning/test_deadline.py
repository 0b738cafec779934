"""The deadline controller, with a clock that is moved by hand."""

from dataclasses import replace

import pytest

from headshotkit.core.errors import BadConfig
from headshotkit.families.costs import GPUS
from headshotkit.planning import deadline
from headshotkit.planning.deadline import DeadlineController
from headshotkit.planning.ladder import FIXED, LADDERS, STAGES, Task, headshot_seconds, stages_of, step_seconds
from headshotkit.planning.plan import NotEnoughMemory, plan_rest, plan_run


@pytest.fixture
def clock():
    """A clock that is moved by hand: clock.now, seconds."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_a_slow_gpu_is_noticed_after_20_steps_and_said(clock):
    lines = []
    plan = plan_run("t4", 50, 60)
    controller = DeadlineController(plan, clock, lines.append)
    for stage in ("install", "check", "prepare", "download"):
        clock.now += 100
        controller.finish(stage)
    assert controller.plan.choice == plan.choice and not lines
    planned = step_seconds(plan.task, plan.choice, 768, False)[0]
    for _ in range(deadline.TIMED_STEPS + 1):
        clock.now += 2 * planned
        after = controller.time_step()
    assert after.choice != plan.choice and after.task.slower == pytest.approx(2) and after.task.steps_done == 21
    assert "1.53 s" in lines[0] and "0.77" in lines[0] and "sacrificed" in lines[0]
    assert [stage.name for stage in after.stages] == ["train", "generate", "restore", "evaluate", "gallery"]
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
    plan, lines = plan_run("t4", 50, 50), []
    controller = DeadlineController(plan, clock, lines.append)
    assert plan.choice.sampler_steps < 25
    for stage in ("install", "download", "check", "prepare", "train"):
        clock.now += 60
        controller.finish(stage)
    assert controller.plan.choice.sampler_steps == 25 and controller.plan.choice.guidance_share == 1
    assert not any("training steps" in line for line in controller.plan.sacrifices)
    lines.clear()
    for stage in ("generate", "restore", "evaluate", "gallery"):
        controller.finish(stage)
    assert controller.plan.stages == () and not lines
    with pytest.raises(BadConfig, match="'bake'"):
        controller.finish("bake")


def test_a_late_run_goes_on_with_the_cheapest_plan_and_says_how_late(clock):
    lines = []
    controller = DeadlineController(plan_run("t4", 50, 60), clock, lines.append)
    clock.now = 55 * 60
    after = controller.finish("check")
    assert after.choice in LADDERS["sdxl"][-2:] and "minutes late" in lines[-1] and "5 minutes are left" in lines[-1]


def test_out_of_memory_leads_to_cheaper_plans_until_there_is_none(clock):
    lines = []
    controller = DeadlineController(plan_run("t4", 50, 120), clock, lines.append)
    peaks = []
    with pytest.raises(NotEnoughMemory):
        for _ in range(20):
            peaks.append(next(s.peak_gib for s in controller.plan.stages if s.name == "train"))
            controller.out_of_memory("train", steps_done=100)
    assert len(peaks) >= 3 and peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert "out of memory in train, planned" in lines[0] and controller.plan.checkpointing
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


def test_apples_gpu_is_planned_at_a_t4s_rates(monkeypatch):
    """It has none of its own; its memory is not known, so it is not checked."""
    monkeypatch.setattr(deadline.runtime, "gpu_memory", lambda: None)
    monkeypatch.setattr(deadline.runtime, "choose_device", lambda: ("mps", "Apple's GPU is there"))
    task = deadline.plan_here("sdxl", 24, 90).task
    assert (task.rates.name, task.memory_gib) == ("t4", 0.0)


def test_done_steps_are_not_planned_again():
    task = Task(GPUS["t4"], "sdxl", 50, 60.0, 14.7, done=("install", "download", "check", "prepare"))
    fresh, late = plan_rest(task), plan_rest(replace(task, steps_done=1000))
    assert fresh.stages[0].name == late.stages[0].name == "train"
    assert late.stages[0].minutes == FIXED["sdxl"]["begin"][0] < fresh.stages[0].minutes, "the base is loaded again"
    assert plan_rest(replace(task, steps_done=1000, begun=True)).stages[0].minutes == 0


def test_generating_leaves_time_for_what_comes_after_it(clock):
    """Evaluation draws pictures as well, so it gets minutes, and fewer pairs where they are short."""
    controller = DeadlineController(plan_run("t4", 50, 60), clock, lambda line: None)
    controller.finish("train")
    clock.now = 30 * 60.0
    worst = {stage.name: stage.pessimistic for stage in controller.plan.stages}
    later = worst["restore"] + worst["evaluate"] + worst["gallery"]
    assert controller.rendering["minutes"] == pytest.approx(30 - later, abs=0.01) and worst["evaluate"] > 4
    clock.now = 50 * 60.0
    controller.finish("generate")
    assert controller.evaluating["pairs"] == 12 and 9 < controller.evaluating["budget"].minutes_left < 10
    clock.now = 55 * 60.0
    controller.finish("restore")
    assert controller.evaluating["pairs"] == 6 and 4 < controller.evaluating["budget"].minutes_left < 5
    clock.now = 61 * 60.0
    assert controller.evaluating["pairs"] == 6 and controller.evaluating["budget"].minutes_left < 0


def test_a_step_of_other_settings_is_timed_again(clock):
    """What a smaller batch saves is reckoned, not measured, so the plan that it led to is checked by steps of it."""
    controller = DeadlineController(plan_run("cpu", 24, 6), clock, lambda line: None)
    controller.begin("train")
    controller.start_training(controller.plan.training, 0)
    changes = []
    for _ in range(70):
        before = controller.plan.training
        clock.now += 0.5 if before["batch"] == 4 else 0.4
        if controller.time_step().training != before:
            changes.append(controller.plan.task.steps_done)
    seconds = step_seconds(controller.plan.task, controller.plan.choice, 192, False)[0]
    assert changes[0] == deadline.TIMED_STEPS + 1 and controller.plan.training["batch"] < 4
    assert seconds == pytest.approx(0.4) and len(changes) <= 2


def test_what_was_measured_corrects_what_comes_later(clock):
    """Steps of half the speed say that a CPU's pictures take twice as long; pictures that were drawn say it of others.

    A GPU trains and draws by rates of their own, so there the steps say nothing of pictures.
    """
    minutes = {}
    for gpu, px, first in (("cpu", 256, 24), ("t4", 768, 50)):
        plan = plan_run(gpu, first, 60)
        controller = DeadlineController(plan, clock, lambda line: None)
        controller.finish("prepare")
        planned = step_seconds(plan.task, plan.choice, px, False)[0]
        for _ in range(deadline.TIMED_STEPS + 1):
            clock.now += 1.5 * planned
            controller.time_step()
        after = {stage.name: stage.minutes for stage in controller.plan.stages}
        again = stages_of(replace(controller.plan.task, slower=0.0), controller.plan.choice, False)
        before = {stage.name: stage.minutes for stage in again}
        minutes[gpu] = {name: after[name] / before[name] for name in ("train", "generate", "evaluate", "gallery")}
    assert minutes["cpu"] == pytest.approx(dict.fromkeys(minutes["cpu"], 1.5), rel=0.05)
    assert minutes["t4"] == {"train": minutes["t4"]["train"], "generate": 1, "evaluate": 1, "gallery": 1}
    pictures = {stage.name: stage.minutes for stage in controller.plan.stages}["evaluate"]
    controller.finish("generate", 3 * headshot_seconds(controller.plan.task, controller.plan.choice)[0])
    assert controller.plan.task.drawing_slower == pytest.approx(3)
    assert {stage.name: stage.minutes for stage in controller.plan.stages}["evaluate"] > 2 * pictures


def test_the_record_says_planned_expected_and_taken(clock):
    """The training's expectation is corrected by its timed steps; generating is expected to use what it is given."""
    plan = plan_run("cpu", 24, 12)
    controller = DeadlineController(plan, clock, lambda line: None)
    planned = {stage.name: stage.minutes for stage in plan.stages}
    for stage in ("check", "prepare", "train", "generate", "restore", "evaluate", "gallery"):
        controller.begin(stage)
        if stage == "train":
            controller.start_training(plan.training, 0)
            for _ in range(deadline.TIMED_STEPS + 1):
                clock.now += 0.4
                controller.time_step()
        clock.now += 60.0
        controller.finish(stage)
    record = controller.record()
    rows = {row["stage"]: row for row in record["stages"]}
    assert list(rows) == ["check", "prepare", "train", "generate", "restore", "evaluate", "gallery"]
    assert all(row["planned"] == pytest.approx(planned.get(name, 0.0), abs=1e-3) for name, row in rows.items())
    steps = controller.plan.choice.steps if controller.plan.choice.schedule else 0
    assert rows["train"]["expected"] > rows["train"]["planned"] and steps
    assert rows["train"]["minutes"] == pytest.approx(1.14) and rows["generate"]["minutes"] == 1.0
    assert rows["generate"]["expected"] > 3 * rows["generate"]["planned"]
    assert record["plan"] == plan.to_dict() and record["minutes_left"] == pytest.approx(12 - 7.14)


def test_class_images_bring_the_weights_and_are_drawn_before_the_training(clock):
    plan = plan_run("a100", 50, 120, prior=True, class_images=50)
    alone = plan_run("a100", 50, 120, prior=True)
    prepare = [next(s for s in one.stages if s.name == "prepare") for one in (plan, alone)]
    assert prepare[0].minutes > prepare[1].minutes + FIXED["sdxl"]["load"][0] + 1
    controller = DeadlineController(plan, clock, lambda line: None)
    controller.finish("check")
    controller.finish("prepare")
    assert not controller.plan.doing("download") and controller.plan.task.class_images == 0
