import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from headshotkit.cli import main
from headshotkit.config import PrepareConfig, TrainConfig
from headshotkit.core.errors import BadConfig, DiskFull, RunFolderError, StageMissing
from headshotkit.core.run import Run
from headshotkit.dataset.build import prepare_dataset
from headshotkit.families import load_family
from headshotkit.training import train
from headshotkit.training.checkpoints import (
    Checkpoints,
    Interruption,
    random_states,
    read_checked,
    set_random_states,
    to_bytes,
)
from headshotkit.training.state import TrainState
from headshotkit.training.step import denoising_loss
from headshotkit.training.train import train_lora

BRIEF = {"steps": 12, "batch": 2, "checkpoint_every_steps": 2, "rank": 4, "alpha": 4}
COMMAND = """
import json, sys
from headshotkit.config import TrainConfig
from headshotkit.core.run import Run
from headshotkit.training.train import train_lora
tell = (lambda state: print(state.step - 1, flush=True)) if len(sys.argv) > 3 else None
train_lora(Run(sys.argv[1]), TrainConfig.for_base("mini", **json.loads(sys.argv[2])), on_step=tell)
"""


def tensors(run):
    return load_file(run.path("lora") / "person.safetensors")


def run_beside(folder, prepared):
    """A run of its own that shares the prepared one's dataset."""
    folder.mkdir()
    for stage in ("photos", "dataset"):
        (folder / stage).symlink_to(prepared / stage)
    return Run(folder)


def checkpoints_of(run):
    return Checkpoints(run.path("lora"), 3).files()


def training_process(run, settings, *telling):
    """A training in a process of its own; `telling` lets it print the number of each step it has made."""
    command = [sys.executable, "-c", COMMAND, str(run.folder), json.dumps(settings), *telling]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def prepared(quick):
    """Three small pictures: what is trained on matters to no test here."""
    return quick


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """The tensors of a brief training that nothing interrupted."""
    run = run_beside(tmp_path_factory.mktemp("undisturbed") / "run", prepared)
    train_lora(run, TrainConfig.for_base("mini", **BRIEF))
    return tensors(run)


def assert_equal_tensors(one, other, limit=1e-6):
    assert one.keys() == other.keys()
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < limit


# --- never lose a step --------------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_to_the_same_lora(prepared_run, undisturbed):
    """kill -9 in the middle of a real training process, then the same call: the LoRA of an undisturbed run."""
    process = training_process(prepared_run, BRIEF)
    deadline = time.monotonic() + 120
    while len(checkpoints_of(prepared_run)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert len(checkpoints_of(prepared_run)) > 1 and not prepared_run.has("lora"), (
        "it was killed before or after the training"
    )
    assert 0 < len(read_checked(checkpoints_of(prepared_run)[-1])["losses"]) < 12
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    assert_equal_tensors(tensors(prepared_run), undisturbed)


def test_sigterm_lets_the_step_end_and_saves_it(prepared_run):
    """No checkpoint is due in 60 steps, so the one after the start's is the signal's; then the process ends by it."""
    settings = BRIEF | {"steps": 60, "checkpoint_every_steps": 60}
    process = training_process(prepared_run, settings, "telling")
    while process.stdout.readline().strip() not in ("2", ""):
        pass
    process.terminate()
    told, errors = process.communicate()
    assert process.returncode == -signal.SIGTERM and not prepared_run.has("lora"), errors
    last = int(("2\n" + told).split()[-1])
    assert [file.name for file in checkpoints_of(prepared_run)] == ["000000.pt", f"{last + 1:06d}.pt"]
    assert len(read_checked(checkpoints_of(prepared_run)[1])["losses"]) == last + 1 < 60


def test_the_minutes_count_as_well(prepared_run, monkeypatch):
    """With a limit of a few milliseconds each step is saved, but for the last, which the LoRA itself follows."""
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: (saved.append(step), save(self, step, state)))
    settings = BRIEF | {"steps": 4, "checkpoint_every_steps": 100, "checkpoint_every_minutes": 1e-6}
    train_lora(prepared_run, TrainConfig.for_base("mini", **settings))
    assert saved == [0, 1, 2, 3], "the start is what a first step goes back to"


def test_a_signal_in_the_first_checkpoint_waits_for_its_end(prepared_run, monkeypatch):
    """Injected where the file is about to be written."""
    write, seen = Checkpoints.write, []

    def interrupted(self, path, data):
        if not seen:
            seen.append(path)
            signal.raise_signal(signal.SIGINT)
        write(self, path, data)

    monkeypatch.setattr(Checkpoints, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    assert [file.name for file in checkpoints_of(prepared_run)] == ["000000.pt"] and seen
    assert read_checked(seen[0])["losses"] == []


def interrupt_after(steps):
    """Ctrl-C when that number of steps is done: an onlooker of a training."""
    return lambda state: state.step == steps and signal.raise_signal(signal.SIGINT)


def halfway(run, settings=BRIEF):
    """A training that Ctrl-C stopped after step 7."""
    with pytest.raises(KeyboardInterrupt):
        train_lora(run, TrainConfig.for_base("mini", **settings), on_step=interrupt_after(7))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(prepared_run, undisturbed):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    halfway(prepared_run)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [file.name for file in checkpoints_of(prepared_run)] == ["000004.pt", "000006.pt", "000007.pt"]
    newest = checkpoints_of(prepared_run)[-1]
    data = bytearray(newest.read_bytes())
    for tenth in (3, 5, 7):  # one alone may lie in the space between two tensors, where it does no harm
        data[len(data) * tenth // 10] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=r"000007\.pt: .* step 6"):
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    noted = prepared_run.manifest("lora")["damaged_checkpoints"]
    assert len(noted) == 1 and noted[0].startswith("000007.pt: the check sum of ") and noted[0].endswith("step 6")
    assert_equal_tensors(tensors(prepared_run), undisturbed)
    assert not (prepared_run.path("lora") / "checkpoints").exists()


def test_another_optimizer_than_the_checkpoints_begins_anew_and_that_is_noted(prepared_run):
    """As where bitsandbytes was installed in between, or a run came from a GPU; its state has other names."""
    halfway(prepared_run)
    newest = checkpoints_of(prepared_run)[-1]
    state = read_checked(newest)
    strange = {place: {"state1": torch.zeros(4)} for place in state["optimizer"]["state"]}
    other = {"optimizer": state["optimizer"] | {"state": strange}, "optimizer_name": "adamw8bit"}
    newest.write_bytes(to_bytes(state | other))
    with pytest.warns(UserWarning, match="from step 7 .* adamw8bit"):
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    manifest = prepared_run.manifest("lora")
    assert manifest["lora"]["step"] == 12 and len(manifest["other_optimizers"]) == 1


def test_a_training_goes_on_where_the_scaler_came_or_went(prepared_run, undisturbed, monkeypatch):
    """What a training in bfloat16 or on a CPU saved is empty; a T4 has a scaler, which refuses that."""
    halfway(prepared_run)
    assert read_checked(checkpoints_of(prepared_run)[-1])["scaler"] == {}
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    monkeypatch.setattr(TrainState, "new_scaler", staticmethod(lambda family: scaler))
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    assert_equal_tensors(tensors(prepared_run), undisturbed)


def test_a_stopped_training_leaves_nothing_in_memory(prepared_run, monkeypatch):
    """A notebook keeps the last error and its frames, as `caught` does here; the same cell then loads the base anew."""
    seen, load = [], train.load_family

    def loading(base):
        family = load(base)
        seen.append(weakref.ref(family.pipeline.unet))
        return family

    monkeypatch.setattr(train, "load_family", loading)
    with pytest.raises(KeyboardInterrupt) as caught:
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF), on_step=interrupt_after(1))
    assert caught.value.__traceback__ is not None and len(seen) == 1
    assert seen[0]() is None


def test_outside_the_main_thread_it_trains_without_handlers(prepared_run):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as interruption:
            seen.append(interruption.earlier)
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 1}))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{}] and signal.getsignal(signal.SIGTERM) is before and prepared_run.has("lora")


def test_a_second_signal_does_not_wait_and_an_ignored_one_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGTERM)
            assert interruption.signal is None
            signal.raise_signal(signal.SIGINT)
            assert interruption.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def small_disk(tmp_path):
    """Makes small real disks: (size in MiB) -> folder."""
    mounted = []

    def make(mib):
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={int(1024 * mib)}k", "tmpfs", disk], capture_output=True
        )
        if made.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
        mounted.append(disk)
        return disk

    yield make
    for disk in mounted:
        subprocess.run(["umount", disk], check=True)


def test_on_a_full_disk_the_last_good_checkpoint_stays(small_disk, prepared, undisturbed):
    """A disk that holds one checkpoint (the LoRA and Adam's two means of it), not the LoRA too; then it is enlarged."""
    checkpoint_mib = 3 * sum(tensor.nbytes for tensor in undisturbed.values()) / 2**20
    run = run_beside(small_disk(1.2 * checkpoint_mib) / "run", prepared)
    with pytest.raises(DiskFull, match="the last good checkpoint, .*000002.pt, stays") as full:
        train_lora(run, TrainConfig.for_base("mini", **BRIEF))
    assert "step 2" in str(full.value) and len(read_checked(checkpoints_of(run)[0])["losses"]) == 2
    subprocess.run(["mount", "-o", "remount,size=300m", run.folder.parent], check=True)
    train_lora(run, TrainConfig.for_base("mini", **BRIEF))
    assert_equal_tensors(tensors(run), undisturbed)


def refuse(monkeypatch, number, refused):
    """Has the system refuse to write files by name; an injected fault, raised where the real one is."""
    sync = os.fsync

    def fsync(file):
        if refused(Path(os.readlink(f"/proc/self/fd/{file}")).name):
            raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [pytest.param(errno.EDQUOT, marks=pytest.mark.slow), errno.EIO])
def test_a_checkpoint_that_can_not_be_written_stops_no_training(prepared_run, undisturbed, monkeypatch, capsys, number):
    refuse(monkeypatch, number, lambda name: name.startswith(".0000") and not name.startswith((".000000", ".000002")))
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    assert_equal_tensors(tensors(prepared_run), undisturbed)
    noted = prepared_run.manifest("lora")["not_written"]
    assert [words.split(":")[0] for words in noted] == [f"the checkpoint of step {step}" for step in (4, 6, 8, 10)]
    lines = capsys.readouterr().err.splitlines()
    assert sum("the checkpoint of step" in line for line in lines) == 4


def test_after_a_training_without_room_for_its_lora_the_same_call_goes_on(prepared_run, undisturbed, monkeypatch):
    """All checkpoints, snapshots and the LoRA are refused, but for one checkpoint."""
    config, one = TrainConfig.for_base("mini", **BRIEF, snapshots=2), ".000006.pt"
    with monkeypatch.context() as patched, pytest.raises(DiskFull):
        refuse(patched, errno.EDQUOT, lambda name: name.startswith((".0000", ".person")) and not name.startswith(one))
        train_lora(prepared_run, config)
    assert [file.name for file in checkpoints_of(prepared_run)] == ["000006.pt"]
    train_lora(prepared_run, config)
    assert_equal_tensors(tensors(prepared_run), undisturbed)


def test_an_interruption_that_can_not_be_saved_says_so(prepared_run, monkeypatch):
    """Ctrl-C after step 3, whose checkpoint is refused: an error in place of a silent loss."""
    refuse(monkeypatch, errno.EIO, lambda name: "000003.pt." in name)
    with pytest.raises(RunFolderError):
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF), on_step=interrupt_after(3))
    assert [file.name for file in checkpoints_of(prepared_run)] == ["000000.pt", "000002.pt"]


def test_older_checkpoints_give_way_on_a_full_disk(small_disk):
    disk = small_disk(8)
    kept = Checkpoints(disk, 3)
    state = {"tensor": torch.zeros(2**19)}  # 2 MiB
    for step in (1, 2, 3):
        kept.save(step, state)
    kept.write(disk / "lora", bytes(3 * 2**20))
    assert [f.name for f in kept.files()] == ["000003.pt"] and (disk / "lora").stat().st_size == 3 * 2**20


def test_on_a_full_disk_the_checkpoint_of_step_0_gives_way(small_disk):
    kept = Checkpoints(small_disk(5), 3)
    state = {"tensor": torch.zeros(3 * 2**18)}  # 3 MiB
    for step in (0, 2):
        kept.save(step, state)
    assert [f.name for f in kept.files()] == ["000002.pt"]
    with pytest.raises(DiskFull):
        kept.save(4, state)
    assert [f.name for f in kept.files()] == ["000002.pt"]


def test_the_newest_few_are_kept_and_half_written_ones_cleared(tmp_path):
    kept = Checkpoints(tmp_path, 2)
    for step in (5, 10, 15):
        kept.save(step, {"step": step})
    (kept.folder / ".000020.pt.123.part").write_bytes(b"half")
    assert [f.name for f in kept.files()] == ["000010.pt", "000015.pt"]
    assert kept.newest() == ({"step": 15}, []) and not list(kept.folder.glob(".*"))
    Checkpoints(tmp_path, 1).save(20, {"step": 20})
    assert [f.name for f in kept.files()] == ["000020.pt"]
    kept.clear()
    assert kept.newest() == (None, [])


def test_no_damage_goes_unseen(tmp_path):
    """Whatever byte is changed or wherever the file is cut: either all is as it was, or the one before is taken."""
    states = [{"tensor": torch.arange(300.0) + n, "losses": [0.5, 0.25], "name": "x"} for n in range(2)]
    rng = np.random.default_rng(0)
    seen = 0
    for trial in range(150):
        kept = Checkpoints(tmp_path / str(trial), 3)
        kept.save(1, states[0])
        data = bytearray(to_bytes(states[1]))
        if trial % 5:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            del data[int(rng.integers(len(data))) :]
        (kept.folder / "000002.pt").write_bytes(data)
        found, problems = kept.newest()
        seen += bool(problems)
        expected = states[0] if problems else states[1]
        assert (found["tensor"] == expected["tensor"]).all() and found["losses"] == [0.5, 0.25], trial
        assert (kept.folder / "000002.damaged").exists() == bool(problems)
    assert seen > 60


def test_the_generators_go_on_where_they_were(tmp_path):
    import random

    (tmp_path / "states.pt").write_bytes(to_bytes({"random": random_states()}))
    drawn = random.random(), np.random.rand(), float(torch.rand(1))
    set_random_states(read_checked(tmp_path / "states.pt")["random"])
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == drawn


# --- one size after the other -------------------------------------------------------------------------------------


def test_two_sizes_one_after_the_other_go_on_exactly(prepared_run, prepared, tmp_path, monkeypatch):
    """Stopped after step 7, in the midst of the second size; and what the U-Net saw, step by step."""
    settings, seen = BRIEF | {"schedule": ((64, 5), (128, 7)), "face_weight": 3.0}, []
    halfway(prepared_run, settings)
    train_lora(prepared_run, TrainConfig.for_base("mini", **settings))

    def watched(family, batch, config, generator):
        seen.append((tuple(batch.latents.shape[-2:]), {size[4:] for size in batch.sizes}, tuple(batch.weights.shape)))
        return denoising_loss(family, batch, config, generator)

    monkeypatch.setattr("headshotkit.training.step.denoising_loss", watched)
    undisturbed = run_beside(tmp_path / "undisturbed", prepared)
    train_lora(undisturbed, TrainConfig.for_base("mini", **settings))
    assert_equal_tensors(tensors(prepared_run), tensors(undisturbed))
    small, full = ((4, 4), {(64, 64)}, (2, 1, 4, 4)), ((8, 8), {(128, 128)}, (2, 1, 8, 8))
    assert seen == [small] * 5 + [full] * 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"schedule": ((192, 5), (256, 6))}, "schedule has 11 steps, steps is 12"),
        ({"schedule": ((100, 12),)}, r"schedule is \(\(100, 12\),\)"),
        ({"schedule": ((192, 12), (256, 0))}, r"schedule is \(\(192, 12\), \(256, 0\)\)"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_named(settings, said):
    with pytest.raises(BadConfig, match=said):
        TrainConfig.for_base("mini", **BRIEF | settings)


def test_a_size_beyond_the_dataset_is_refused(small_run):
    with pytest.raises(BadConfig, match="schedule has 512 px, the dataset's pictures have 256"):
        train_lora(small_run, TrainConfig.for_base("mini", **BRIEF | {"schedule": ((256, 6), (512, 6))}))


# --- the average of the LoRA --------------------------------------------------------------------------------------


def test_the_average_is_what_is_saved(prepared_run, undisturbed, monkeypatch):
    """The moving average by its definition, from the LoRA of each step, through an interruption after step 7."""
    settings = BRIEF | {"ema": 0.6, "checkpoint_every_steps": 1, "keep_checkpoints": 20}
    folder = prepared_run.path("lora") / "checkpoints"
    halfway(prepared_run, settings)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_tidy", lambda stage: None)
        train_lora(prepared_run, TrainConfig.for_base("mini", **settings))
    states = [read_checked(folder / f"{step:06d}.pt") for step in range(1, 12)]
    average = [p.detach().clone() for p in load_family("mini").add_lora(4, 4, "all", seed=0)]
    loras = [list(state["lora"].values()) for state in states]
    loras.append([undisturbed[f"unet.{name}"] for name in states[0]["lora"]])
    for step, lora in enumerate(loras):
        decay = min(0.6, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * now for a, now in zip(average, lora, strict=True)]
        if step < 11:
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(average, states[step]["average"], strict=True))
    saved = tensors(prepared_run)
    assert_equal_tensors(saved, dict(zip((f"unet.{name}" for name in states[0]["lora"]), average, strict=True)), 1e-5)
    assert any((saved[name] - undisturbed[name]).abs().max() > 1e-4 for name in saved)


@pytest.mark.parametrize(
    ("name", "value"), [("ema", 1.0), ("ema", -0.1), ("checkpoint_every_minutes", -1.0), ("keep_checkpoints", 0)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(BadConfig, match=f"{name} is {value}"):
        TrainConfig(**{name: value})


# --- what training leaves -----------------------------------------------------------------------------------------


def test_the_file_says_how_it_was_made(prepared_run):
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 1}))
    with safe_open(prepared_run.path("lora") / "person.safetensors", framework="pt") as file:
        said = {name.removeprefix("headshotkit."): value for name, value in file.metadata().items()}
    manifest, dataset = prepared_run.manifest("lora"), prepared_run.manifest("dataset")["dataset"]
    assert (said["base"], said["token"], said["class_word"], said["steps"]) == ("mini", "ohwx", "man", "1")
    assert said["rank"] == said["alpha"] == str(manifest["config"]["rank"])
    assert json.loads(said["captions"]) == [photo["caption"] for photo in dataset["photos"]]
    assert json.loads(said["config"]) == manifest["config"]
    assert said["fingerprint"] == manifest["fingerprint"] and said["version"] == manifest["headshotkit"]


def test_what_nearly_all_photos_show_goes_with_the_lora(prepared_run):
    for file in prepared_run.path("dataset").glob("*.txt"):
        file.write_text("photo of ohwx man, smiling")
    lora = train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 1}))
    assert lora.usual_expression == prepared_run.manifest("lora")["lora"]["usual_expression"] == "smiling"


def test_a_kill_after_the_end_leaves_no_rest(prepared_run):
    """The stage is finished before its checkpoints go, so a kill in between costs nothing, and the next call tidies."""
    config = TrainConfig.for_base("mini", **BRIEF | {"steps": 1})
    train_lora(prepared_run, config)
    shutil.copytree(prepared_run.path("dataset"), prepared_run.path("lora") / "checkpoints")
    train_lora(prepared_run, config)
    assert sorted(p.name for p in prepared_run.path("lora").iterdir()) == [
        "losses.json", "manifest.json", "person.safetensors"]  # fmt: skip


def test_training_moves_every_matrix_and_notes_how(prepared_run):
    lora = train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    manifest = prepared_run.manifest("lora")
    assert all(t.abs().sum() > 0 for name, t in tensors(prepared_run).items() if "lora_B" in name)
    assert manifest["optimizer"].startswith("adamw: 8-bit Adam saves nothing on cpu")
    assert manifest["dtype"] and manifest["versions"]["torch"] and manifest["seconds"] > 0
    assert lora.step == 12 and lora.base == "mini"
    files = sorted(p.name for p in prepared_run.path("lora").iterdir())
    assert files == ["losses.json", "manifest.json", "person.safetensors"]


def test_another_seed_is_another_lora_and_the_first_is_set_aside(prepared_run):
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 2}))
    first = tensors(prepared_run)
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 2, "seed": 1}))
    second = tensors(prepared_run)
    assert any((first[k] != second[k]).any() for k in first)
    aside = load_file(prepared_run.folder / "earlier" / "lora-1" / "person.safetensors")
    assert all((aside[k] == first[k]).all() for k in first)


def test_prior_preservation_adds_the_class(prepared_run):
    prepare_dataset(prepared_run, PrepareConfig.for_base("mini", class_word="man", class_images=1))
    losses = {}
    for weight in (0.0, 1.0):
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 1, "prior_weight": weight}))
        outcome = prepared_run.manifest("lora")["outcome"]
        losses[weight] = float(outcome.rsplit(" ", 1)[1])
    assert losses[1.0] > losses[0.0]


def test_without_a_dataset_there_is_no_training(tmp_path):
    with pytest.raises(StageMissing, match="check, prepare"):
        train_lora(Run(tmp_path), TrainConfig.for_base("mini"))


# --- what is told of the time ---------------------------------------------------------------------------------------


def test_the_time_is_told_before_the_first_step_and_again_by_the_clock(prepared_run, capsys):
    train_lora(prepared_run, TrainConfig.for_base("mini", steps=22, batch=1, rank=2, alpha=2, targets="attention"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Training", "A"]
    assert " 2 steps " in lines[1]


def test_with_json_only_json_is_on_standard_output(prepared_run, capsys):
    options = ["--steps", "1", "--rank", "2", "--out", str(prepared_run.folder), "--json"]
    assert main(["train", *options]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["stage"] == "lora" and "\nTraining " in printed.err
