"""Trainings under a plan: out of memory, too slow, interrupted. Real steps on the embedded base, a clock by hand."""

import json
import signal

import pytest
import torch
from conftest import P1, P2, result_of
from safetensors.torch import load_file
from test_deadline import clock  # noqa: F401

from headshotkit import pipeline
from headshotkit.cli import main
from headshotkit.config import GenerateConfig, RunSettings, TrainConfig
from headshotkit.core.errors import OutOfMemory
from headshotkit.core.results import GalleryResult
from headshotkit.core.run import COMMANDS, STAGES, Run, write_json
from headshotkit.families import load_family
from headshotkit.pipeline import begin_deadline, make_headshots, planned_settings, progress_of
from headshotkit.planning import deadline
from headshotkit.planning.deadline import DeadlineController
from headshotkit.planning.ladder import STAGES as STEPS
from headshotkit.planning.plan import NotEnoughMemory, TooFewMinutes, plan_run
from headshotkit.training import state, train
from headshotkit.training.checkpoints import Checkpoints
from headshotkit.training.train import train_lora

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB."


@pytest.fixture
def prepared_run(small_run):
    """Three pictures: what is trained on matters to no test here."""
    return small_run


@pytest.fixture
def small_gpu(monkeypatch):
    """Makes the U-Net run out of memory as torch says it: small_gpu(batch, calls) for larger batches after calls."""

    def make(batch, calls):
        family, seen = load_family("mini"), []

        def refuse(unet, inputs, kwargs):
            seen.append(len(inputs[0]))
            if len(seen) > calls and len(inputs[0]) > batch:
                raise torch.OutOfMemoryError(SAID + "\nOther lines that help nobody.")

        family.pipeline.unet.register_forward_pre_hook(refuse, with_kwargs=True)
        monkeypatch.setattr(train, "load_family", lambda base: family)
        return seen

    yield make


def controller_of(steps, lines=None, **options):
    """A plan for the embedded base, and what keeps it."""
    plan = plan_run("cpu", 24, 60, steps=steps)
    return DeadlineController(plan, tell=(lines if lines is not None else []).append, **options)


def config_of(controller):
    return TrainConfig.for_base("mini", checkpoint_every_steps=50, rank=4, alpha=4, **controller.plan.training)


def interrupt_after(steps):
    """Ctrl-C when that number of steps is done: an onlooker of a training."""
    return lambda state: state.step == steps and signal.raise_signal(signal.SIGINT)


def test_out_of_memory_leads_to_cheaper_plans_and_an_exact_resume(prepared_run, three_photos, tmp_path, small_gpu):
    """From step 3 no batch above 2 fits: three plans later it goes on, loses no step, and so it does once more."""
    lines, controller = [], controller_of(6)
    seen = small_gpu(batch=2, calls=3)
    controller.tell = lines.append
    train_lora(prepared_run, config_of(controller), controller)
    manifest = prepared_run.manifest("lora")
    (change,) = manifest["changes"]
    assert change["step"] == 3 and change["batch"] == 2 and change["why"].startswith("out of memory in train")
    assert seen[:3] == [4, 4, 4] and seen[-3:] == [2, 2, 2] and len(json.loads(losses(prepared_run))["loss"]) == 6
    assert all("out of memory in train" in line for line in lines) and len(lines) == len(seen) - 6
    assert manifest["outcome"].startswith("LoRA of rank 4 after 6 steps") and manifest["lora"]["step"] == 6
    again = Run(tmp_path / "again")
    again.folder.mkdir()
    for stage in ("photos", "dataset"):
        (again.folder / stage).symlink_to(three_photos / stage)
    controller = controller_of(6)
    small_gpu(batch=2, calls=3)
    with pytest.raises(KeyboardInterrupt):
        train_lora(again, config_of(controller), controller, interrupt_after(5))
    small_gpu(batch=2, calls=0)
    train_lora(again, config_of(controller_of(6)))  # without a controller: the changes are in the manifest
    one, other = (load_file(run.path("lora") / "person.safetensors") for run in (prepared_run, again))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6


def losses(run):
    return (run.path("lora") / "losses.json").read_text()


def test_without_a_plan_it_goes_on_with_checkpointing_then_half_the_batch_then_ends(prepared_run, small_gpu):
    small_gpu(batch=2, calls=2)
    train_lora(prepared_run, TrainConfig.for_base("mini", steps=3, rank=4, alpha=4))
    (change,) = prepared_run.manifest("lora")["changes"]
    assert (change["step"], change["batch"], change["checkpointing"]) == (2, 2, True)
    small_gpu(batch=0, calls=2)
    config = TrainConfig.for_base("mini", steps=4, rank=4, alpha=4)
    with pytest.raises(OutOfMemory, match="step 3 at 256 px, batch 1, with checkpointing") as caught:
        train_lora(prepared_run, config)
    assert caught.value.why == SAID
    files = [file.name for file in Checkpoints(prepared_run.path("lora"), 3).files()]
    assert files == ["000000.pt", "000002.pt"]
    small_gpu(batch=3, calls=0)
    train_lora(prepared_run, config)
    assert [change["step"] for change in prepared_run.manifest("lora")["changes"]] == [2]


def test_out_of_memory_amid_an_update_goes_back_to_the_checkpoint_before(
    prepared_run, three_photos, tmp_path, monkeypatch
):
    """Half of the matrices are updated then; the LoRA must be that of a training whose update did not fail."""
    loras, make, beside = [], state.make_optimizer, Run(tmp_path / "beside")
    beside.folder.mkdir()
    for stage in ("photos", "dataset"):
        (beside.folder / stage).symlink_to(three_photos / stage)
    for run, fails in ((prepared_run, True), (beside, False)):
        done = []

        def made(groups, *args, fails=fails, done=done):
            optimizer, reason = make(groups, *args)
            update = optimizer.step

            def step(*_):
                done.append(1)
                if len(done) == 4 and fails:
                    groups[0]["params"][0].data += 1
                    raise torch.OutOfMemoryError(SAID)
                return update()

            optimizer.step = step
            return optimizer, reason

        monkeypatch.setattr(state, "make_optimizer", made)
        controller = controller_of(5)
        config = config_of(controller).replace(checkpoint_every_steps=2)
        train_lora(run, config, controller)
        loras.append(load_file(run.path("lora") / "person.safetensors"))
        assert len(done) == (7 if fails else 5)
    (change,) = prepared_run.manifest("lora")["changes"]
    assert change["step"] == 2 and change["checkpointing"] is True and change["batch"] == 4
    assert max(float((loras[0][name] - loras[1][name]).abs().max()) for name in loras[0]) < 1e-5


def test_when_no_plan_fits_it_says_so_and_keeps_what_was_trained(prepared_run, small_gpu):
    small_gpu(batch=0, calls=1)
    controller = controller_of(4)
    with pytest.raises(NotEnoughMemory):
        train_lora(prepared_run, config_of(controller), controller)
    assert [file.name for file in Checkpoints(prepared_run.path("lora"), 3).files()][-1] == "000001.pt"


def test_slow_steps_are_noticed_and_the_rest_is_cut(prepared_run, clock, small_gpu, monkeypatch):  # noqa: F811
    """Each step takes 3 s by the clock instead of 0.3: after the timed ones 400 steps are left of 1000."""
    lines = []
    seen = small_gpu(batch=4, calls=0)
    monkeypatch.setattr(deadline, "TIMED_STEPS", 3)
    clock.__class__.__call__ = lambda self: 3.0 * len(seen)
    controller = DeadlineController(plan_run("cpu", 24, 40), clock, lines.append)
    with pytest.raises(KeyboardInterrupt):
        train_lora(prepared_run, config_of(controller), controller, interrupt_after(6))
    (change,) = prepared_run.peek("lora")["changes"]
    assert (change["step"], change["steps"]) == (4, 400) and change["schedule"] == [[192, 280], [256, 120]]
    assert change["why"].startswith("a step takes 3.00 s, planned 0.2")
    assert "a step takes 3.00 s" in lines[0]
    assert controller.plan.task.steps_done == 6


def test_a_notebooks_bar_ends_where_the_new_plan_does(prepared_run, clock, small_gpu, monkeypatch):  # noqa: F811
    """tqdm.notebook's own widget, not shown: it keeps its length when only `total` is set."""
    from tqdm.notebook import tqdm

    bars = []

    def progress(items, title, total=None):
        bars.append(tqdm(items, desc=title, total=total, display=False, leave=True))
        return bars[-1]

    seen = small_gpu(batch=4, calls=0)
    monkeypatch.setattr(deadline, "TIMED_STEPS", 2)
    monkeypatch.setattr(train.runtime, "progress", progress)
    clock.__class__.__call__ = lambda self: 3.0 * len(seen)
    controller = DeadlineController(plan_run("cpu", 24, 20), clock, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        train_lora(prepared_run, config_of(controller), controller, interrupt_after(5))
    bar = next(bar for bar in bars if bar.desc == "training")
    assert bar.total == bar.container.children[1].max == controller.plan.training["steps"] == 400
    assert bar.n == 5 and bar.initial > 0


# --- the commands -------------------------------------------------------------------------------------------------


def test_the_command_plans_its_training_and_stays_with_that(prepared_run, capsys):
    arguments = ["train", "--steps", "3", "--out", str(prepared_run.folder)]
    assert main([*arguments, "--minutes", "0.5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("plan ") and "train 3 at 256 px" in out and "train      LoRA of rank 32 after 3 steps" in out
    assert prepared_run.manifest("lora")["planned"] == ["schedule", "steps", "batch", "checkpointing"]
    before = losses(prepared_run), prepared_run.manifest("lora")["finished"]
    for more in ([], ["--minutes", "50"]):
        assert main([*arguments, *more]) == 0
    assert (losses(prepared_run), prepared_run.manifest("lora")["finished"]) == before
    assert main(["train", "--steps", "1", "--out", str(prepared_run.folder)]) == 0
    assert prepared_run.manifest("lora")["lora"]["step"] == 1 and "planned" not in prepared_run.manifest("lora")


def test_minutes_that_do_not_suffice_or_contradict_a_schedule_are_errors(prepared_run, capsys):
    assert main(["train", "--minutes", "0.01", "--out", str(prepared_run.folder)]) == 2
    assert capsys.readouterr().err.startswith("TooFewMinutes: ")
    assert main(["train", "--minutes", "9", "--schedule", "192", "5", "--out", str(prepared_run.folder)]) == 2
    assert "schedule is ((192, 5),), minutes is 9." in capsys.readouterr().err
    assert not prepared_run.path("lora").exists()


def test_another_method_keeps_its_minutes_too(prepared_run, capsys):
    """Planned with the method's own steps, timed as any other, and noted in the manifest."""
    arguments = ["train", "--method", "textual-inversion", "--steps", "2", "--out", str(prepared_run.folder)]
    assert main([*arguments, "--minutes", "0.5"]) == 0
    assert "train by textual-inversion: 2 at 256 px" in capsys.readouterr().out
    manifest = prepared_run.manifest("lora")
    assert manifest["planned"] == ["schedule", "steps", "batch", "checkpointing"]
    assert (manifest["lora"]["method"], manifest["lora"]["step"]) == ("textual-inversion", 2)
    continued = begin_deadline(prepared_run, RunSettings(base="mini", minutes=5), print)
    assert continued.plan.task.method == "textual-inversion", "the run began with it"
    lines = []
    options = RunSettings(base="mini", minutes=5, method="dreambooth", class_images=8)
    controller = pipeline.begin_deadline(Run(prepared_run.folder.parent / "new"), options, lines.append)
    task = controller.plan.task
    assert (task.method, task.prior) == ("dreambooth", True) and "as many class images" in lines[0]


def test_a_training_that_was_begun_goes_on_as_it_was_planned(prepared_run):
    """A plan made later, with less time left, would have another schedule, so another training."""
    config = TrainConfig.for_base("mini", **plan_run("cpu", 24, 60).training)
    begun = prepared_run.begin("lora", config, prepared_run.inputs_from("dataset"), seed=0)
    begun.manifest["planned"] = list(plan_run("cpu", 24, 60).training)
    begun.note_seconds()
    late = DeadlineController(plan_run("cpu", 24, 4.5), tell=lambda line: None)
    assert late.plan.training != plan_run("cpu", 24, 60).training
    for controller in (late, None):
        kept = planned_settings("lora", prepared_run, "mini", RunSettings(), controller)
        assert kept == plan_run("cpu", 24, 60).training
    assert planned_settings("lora", prepared_run, "mini", RunSettings(rank=4), late) == late.plan.training
    assert planned_settings("lora", prepared_run, "mini", RunSettings(rank=4), None) == {}


def test_headshots_that_were_begun_go_on_as_they_were_planned(prepared_run):
    """Without minutes, or with fewer: the tries that were made belong to these settings."""
    planned = {"sampler_steps": 12, "guidance_share": 0.2, "minutes": 3.5}
    begun = prepared_run.begin("headshots", GenerateConfig.for_base("mini", **planned), {}, seed=0)
    begun.manifest["planned"] = list(planned)
    begun.note_seconds()
    late = DeadlineController(plan_run("cpu", 24, 4.5), tell=lambda line: None)
    for controller in (late, None):
        assert planned_settings("headshots", prepared_run, "mini", RunSettings(), controller) == planned
    assert planned_settings("headshots", prepared_run, "mini", RunSettings(count=3), None) == {}


def test_headshots_that_got_the_least_minutes_get_new_ones(prepared_run):
    """A late training left them next to none; the same command with new minutes must not give those again."""
    fresh = DeadlineController(plan_run("cpu", 2, 20), tell=lambda line: None)
    for minutes, delivered, again in ((0.5, 1, True), (0.5, 2, False), (0.6, 1, False)):
        planned = {"sampler_steps": 12, "guidance_share": 0.2, "minutes": minutes}
        stage = prepared_run.begin("headshots", GenerateConfig.for_base("mini", **planned, count=2), {}, seed=0)
        stage.manifest["planned"] = list(planned)
        stage.finish("", headshots=[], delivered=["a.png", "b.png"][:delivered], pass_mark={"mark": 0.5})
        settings = planned_settings("headshots", prepared_run, "mini", RunSettings(count=2), fresh)
        assert (settings["minutes"] > 15) == again, (minutes, delivered)
        assert planned_settings("headshots", prepared_run, "mini", RunSettings(count=2), None)["minutes"] == minutes


def test_a_run_that_is_gone_on_with_is_planned_for_what_is_left(brief_run, five_photos, tmp_path):
    """Finished stages and steps need no minutes, as long as they are what is asked for."""
    asked, lines = RunSettings(photos=five_photos, base="mini", class_word="man", steps=6, snapshots=2, count=4), []
    assert progress_of(brief_run, "mini", asked, STEPS) == (("check", "prepare", "train"), 0)
    assert progress_of(brief_run, "mini", asked, ("download", "train")) == (("train",), 0)
    assert progress_of(brief_run, "mini", asked.replace(steps=7), STEPS) == (("check", "prepare"), 0)
    assert progress_of(brief_run, "mini", asked.replace(photos=P2), STEPS) == ((), 0)
    assert progress_of(Run(tmp_path / "new"), "mini", asked, STEPS) == ((), 0)
    with pytest.raises(TooFewMinutes):
        begin_deadline(Run(tmp_path / "new"), asked.replace(minutes=1.5, steps=None), lines.append)
    assert not begin_deadline(brief_run, asked.replace(minutes=1.5), lines.append).plan.doing("train")
    trained = brief_run.manifest("lora")
    write_json(brief_run.path("lora") / "manifest.json", trained | {"status": "started"})
    (brief_run.path("lora") / "checkpoints").mkdir()
    (brief_run.path("lora") / "checkpoints" / "000004.pt").touch()
    assert progress_of(brief_run, "mini", asked, STEPS) == (("check", "prepare"), 4)
    assert begin_deadline(brief_run, asked.replace(minutes=9), lines.append).plan.task.steps_done == 4
    next(brief_run.path("dataset").glob("*.txt")).write_text("photo of ohwx man, on a ship")
    assert progress_of(brief_run, "mini", asked, STEPS) == (("check", "prepare"), 0), "it will begin anew"


def test_a_run_tells_its_deadline_of_every_stage(tmp_path, clock, monkeypatch):  # noqa: F811
    """The stages only move the clock here. A late training costs sampler steps; what a person set stays."""
    seen = {}

    def done(stage, run, options, controller):
        seen[stage] = controller.plan
        clock.now += 60 * {"lora": 24.0}.get(stage, 0.1)
        return result_of(GalleryResult).to_dict()

    monkeypatch.setattr(pipeline, "do_stage", done)
    monkeypatch.setattr(pipeline, "DeadlineController", lambda plan, tell: DeadlineController(plan, clock, tell))
    lines = []
    options = RunSettings(base="mini", minutes=25, steps=300)
    make_headshots(P1, tmp_path, options, tell=lines.append)
    assert list(seen) == list(STAGES) and lines[2].startswith("plan       ")
    assert seen["lora"].training["steps"] == 300
    assert seen["lora"].rendering == {"sampler_steps": 20, "guidance_share": 0.2}
    assert seen["headshots"].rendering["sampler_steps"] == 12
    assert [s.name for s in seen["gallery"].stages] == ["gallery"]
    record = json.loads((tmp_path / "plan.json").read_text())
    assert [row["stage"] for row in record["stages"]] == [COMMANDS[stage] for stage in STAGES]
    assert [row["minutes"] for row in record["stages"]] == pytest.approx([0.1, 0.1, 24, 0.1, 0.1, 0.1, 0.1])
    assert record["minutes_left"] == pytest.approx(25 - 24.6) and record["plan"]["minutes_given"] == 25
