"""Requests weighed against the host's memory, before any of it is taken."""

import json

import pytest
import torch
from peft import LoraConfig

from headshotkit import families
from headshotkit.cli import main
from headshotkit.config import TrainConfig
from headshotkit.config.bases import BASES
from headshotkit.core import runtime
from headshotkit.core.errors import NotEnoughMemory
from headshotkit.core.run import Run
from headshotkit.families import CHANGES, Sampling, load_family, lora_files, weighing
from headshotkit.families.sdxl import TARGETS
from headshotkit.training.train import train_lora

GIB = 2**30


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


@pytest.fixture
def free(monkeypatch):
    """Sets how much of the host's memory is said to be free, GiB."""
    return lambda gib: monkeypatch.setattr(runtime, "free_host_gib", lambda: gib)


def written(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def proc(tmp_path):
    """A system with 8 GiB available, whose process is in the control group /box/job."""
    written(tmp_path / "proc", meminfo=f"MemTotal: 16777216 kB\nMemAvailable: {8 * 2**20} kB\n")
    written(tmp_path / "proc" / "self", cgroup="4:cpu,memory:/box/job\n1:name=systemd:/\n0::/box/job\n")
    return tmp_path / "proc"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limited", ["box", "box/job"])
def test_a_containers_limit_counts_wherever_it_is_set(proc, tmp_path, version, limited):
    """3 GiB allowed, 2.5 in use, of which 1 is cached files: 1.5 are left. A group without a limit says nothing."""
    names = {1: ("memory__limit_in_bytes", "memory__usage_in_bytes", "total_inactive_file", tmp_path / "g" / "memory"),
             2: ("memory__max", "memory__current", "inactive_file", tmp_path / "g")}  # fmt: skip
    limit, used, cached, root = names[version]
    for group in ("box", "box/job"):
        most = 3 * GIB if group == limited else ("max" if version == 2 else 2**63 - 4096)
        stat = f"anon 7\n{cached} {GIB}\n"
        written(root / group, **{limit: f"{most}\n", used: f"{5 * GIB // 2}\n"}, memory__stat=stat)
    assert runtime.free_host_gib(proc, tmp_path / "g") == pytest.approx(1.5)


def test_without_a_limit_what_is_available_counts(proc, tmp_path):
    assert runtime.free_host_gib(proc, tmp_path / "none") == pytest.approx(8)
    here = runtime.free_host_gib()
    assert here is None or 0 < here < 10_000


@pytest.mark.parametrize("targets", TARGETS)
def test_a_loras_numbers_are_known_before_there_is_one(targets):
    family = load_family("mini")
    config = LoraConfig(r=3, target_modules=TARGETS[targets])
    counted = lora_files.lora_numbers(family.pipeline.unet, config)
    assert counted == sum(p.numel() for p in family.add_lora(3, 3, targets, 0))


def test_a_rank_that_memory_has_no_room_for_is_refused_before_it_is_taken(prepared_run, free, monkeypatch, capsys):
    """Both numbers are said, and the command line's answer is bad input."""
    free(0.1)
    taken = []
    monkeypatch.setattr(torch.nn.Module, "add_adapter", lambda *_: taken.append(1), raising=False)
    assert main(["train", "--rank", "1024", "--steps", "2", "--out", str(prepared_run.folder)]) == 2
    err = capsys.readouterr().err
    assert "NotEnoughMemory" in err and "0.1 GiB are free" in err and "--rank" in err and not taken


@pytest.mark.parametrize(
    ("settings", "gib"),
    [({"method": "dreambooth"}, 0.2), ({"rank": 1, "alpha": 1, "batch": 64}, 0.5)],
)  # fmt: skip
def test_other_trainings_are_weighed_too(prepared_run, free, settings, gib):
    """A whole U-Net of 15 million numbers takes 0.3 GiB, a step of 64 pictures of 256 px one."""
    free(gib)
    with pytest.raises(NotEnoughMemory, match=f"{gib} GiB are free"):
        train_lora(prepared_run, TrainConfig.for_base("mini", **{"steps": 1} | settings))


def test_pictures_are_drawn_as_many_at_once_as_fit(family, free):
    """Two of 64 px fit: of four the first two come first, and an interrupted stage goes on so."""
    inputs, sampling = (["photo of a man"] * 4, [""] * 4, [1, 2, 3, 4]), Sampling((64, 64), 1, 1.0)
    family.changes, one = [], weighing.picture_gib(BASES["mini"], (64, 64), 4)
    whole, seen = family.render(*inputs, sampling), []
    free(2.5 * one)
    counting = family.pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        parts = family.render(*inputs, sampling)
    finally:
        counting.remove()
    assert seen == [2, 2] and family.changes[0]["pictures_at_once"] == 2 and json.dumps({CHANGES: family.changes})
    assert [abs(a - b) <= 2 for a, b in zip(whole[3].tobytes(), parts[3].tobytes(), strict=True)].count(False) == 0
    free(0.5 * one)
    with pytest.raises(NotEnoughMemory, match="64 x 64 px"):
        family.render(*inputs, sampling)
    family.changes = []


def test_a_base_that_the_host_cannot_hold_is_refused_before_its_download(free, monkeypatch):
    """In float32 SDXL takes 13 GiB, in bfloat16 half of that."""
    fetched = []
    monkeypatch.setattr(families.hub, "fetch", lambda wanted: fetched.append(wanted))
    monkeypatch.delenv("HEADSHOTKIT_DTYPE", raising=False)
    free(12.0)
    with pytest.raises(NotEnoughMemory, match=r"13\.0 GiB.*12\.0 GiB are free") as caught:
        load_family("sdxl")
    assert "HEADSHOTKIT_DTYPE=bfloat16" in caught.value.next_step and not fetched
    weighing.demand_room_for_base(BASES["sdxl"], "cpu", 2)
    weighing.demand_room_for_base(BASES["sdxl"], "cuda", 4)
    free(0.001)
    weighing.demand_room_for_base(BASES["mini"], "cpu", 4)


def test_nothing_is_refused_where_the_memory_is_not_known(free):
    free(None)
    weighing.demand_room("a request", 10**6, "")
    assert weighing.pictures_in_room(BASES["mini"], (4096, 4096), 4) == (None, "")


def test_every_base_has_figures_to_weigh_with(free):
    free(0.0)
    for name, base in BASES.items():
        assert 0.5 < weighing.picture_gib(base, (1024, 1024), 4) < 20
        with pytest.raises(NotEnoughMemory):
            weighing.demand_room_for_step(TrainConfig.for_base(name), base.family, 1024, 4, 1)


def test_a_run_that_was_refused_goes_on_with_less(prepared_run, free, monkeypatch):
    free(0.1)
    with pytest.raises(NotEnoughMemory):
        train_lora(prepared_run, TrainConfig.for_base("mini", rank=1024, alpha=1024, steps=1, batch=1))
    monkeypatch.undo()
    train_lora(Run(prepared_run.folder), TrainConfig.for_base("mini", rank=1, alpha=1, steps=1, batch=1))
    assert prepared_run.has("lora")
