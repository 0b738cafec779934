"""Real processes in every stage: killed with SIGKILL at their file operations, or held there beside a second command.

Both are injected faults: a wrapper counts the calls that change files, and at one of them kills its own process or has
it wait. A kill in the middle of a write leaves half of what was to be written.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import P1, open_picture
from safetensors import safe_open

from headshotkit.cli import main
from headshotkit.core.errors import RunBusy
from headshotkit.core.run import CHECK_SUM, Run
from headshotkit.dataset.captions import edit_caption
from headshotkit.generation.pictures import PictureRequest, render_pictures
from headshotkit.generation.previews import render_previews
from headshotkit.photos.override import override_verdict

FAULT = """
import os, signal, stat, sys
place, fault, number, counted = os.path.realpath(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
calls = []

def killing(name, real):
    def call(path, *rest, **more):
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(path)
        if where.startswith(place):
            calls.append(name)
            if len(calls) == number and fault == "hold":
                print("held", flush=True)
                sys.stdin.readline()
            elif len(calls) == number:
                if name == "fsync" and stat.S_ISREG(os.fstat(path).st_mode):
                    os.ftruncate(path, os.fstat(path).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *rest, **more)
    return call

for name in ("fsync", "replace", "rename", "truncate", "unlink", "rmdir", "mkdir"):
    setattr(os, name, killing(name, getattr(os, name)))
from headshotkit.cli import main
code = main(sys.argv[5:])
open(counted, "w").write(" ".join(calls))
sys.exit(code)
"""
"""python -c FAULT FOLDER kill|hold NUMBER FILE COMMAND...: at that call on the folder it dies, or waits for a line.

At its end it writes all calls to the file."""
STAGES = {
    "check": ["check", "{root}/photos", "--min-photos", "3", "--out", "{run}"],
    "prepare": ["prepare", "--base", "mini", "--class-word", "man", "--class-images", "2", "--out", "{run}"],
    "train": ["train", "--steps", "4", "--snapshots", "2", "--out", "{run}"],
    "pick": ["pick", "--scales", "1.0", "--pick-prompts", "2", "--out", "{run}"],
    "export": ["export", "{run}/../me.safetensors", "--out", "{run}"],
    "generate": ["generate", "--count", "3", "--max-attempts", "1", "--sampler-steps", "3", "--out", "{run}"],
    "restore": ["restore", "--out", "{run}"],
    "evaluate": ["evaluate", "--out", "{run}"],
    "gallery": ["gallery", "--out", "{run}"],
    "run": ["run", "{root}/photos", "--base", "mini", "--out", "{run}"],
    "again": ["restore", "--fidelity", "0.9", "--out", "{run}"],
    "clean": ["clean", "{run}", "--yes"],
}
"""Stage -> its command. `run` finds all done; `again` moves what was restored to earlier/, for `clean` to delete."""
MOMENTS = {name: 3 for name in STAGES} | {"train": 5, "generate": 4}
"""Stage -> how many kills are spread over its calls, the first and the last one among them."""
QUICK = {("check", 1)}
"""Which of them are tried in the short suite too."""
TIMES = {"seconds", "started", "finished", "writer", "peak_memory_gib", "drawing_seconds", CHECK_SUM}


class Undisturbed:
    """A run whose stages are done when they are first asked for, each in a process of its own that nobody kills."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, {}
        (root / "photos").mkdir()
        for photo in sorted(P1.glob("p1_*.jpg"))[:4]:
            shutil.copy(photo, root / "photos")
        (root / "begin" / "run").mkdir(parents=True)

    def command(self, stage: str, place: Path) -> list[str]:
        return [part.format(root=self.root, run=place / "run") for part in STAGES[stage]]

    def process(self, stage: str, place: Path, fault: str = "kill", number: int = 0) -> subprocess.Popen:
        """Gives a stage's command in a process that dies or waits at that call; 0: at none."""
        call = [sys.executable, "-c", FAULT, str(place), fault, str(number), str(place.parent / "calls")]
        environment = os.environ | {"HEADSHOTKIT_CACHE": str(place / "cache")}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([*call, *self.command(stage, place)], **pipes, text=True, env=environment)

    def before(self, stage: str) -> Path:
        earlier = list(STAGES)[: list(STAGES).index(stage)]
        return self.after(earlier[-1]) if earlier else self.root / "begin"

    def after(self, stage: str) -> Path:
        place = self.root / stage
        if stage not in self.calls:
            shutil.copytree(self.before(stage), place)
            with self.process(stage, place) as done:
                assert done.communicate() and done.returncode == 0
            self.calls[stage] = (self.root / "calls").read_text().split()
        return place


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Undisturbed(tmp_path_factory.mktemp("kills"))


def without_times(value):
    """A manifest without times, and of the files that it notes the names."""
    if isinstance(value, list):
        return [without_times(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {name: without_times(one) for name, one in value.items() if name not in TIMES}
    return kept | {"files": sorted(kept["files"])} if isinstance(kept.get("files"), dict) else kept


def content(place: Path) -> dict[str, object]:
    """Everything in a folder, hidden files and folders too, as far as it is not a time."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix in (".png", ".jpg"):
            found[name] = (picture := np.asarray(open_picture(path))).shape, picture.tobytes()
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                found[name] = {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
        elif path.suffix == ".html":
            found[name] = re.sub(r"<th>(Seconds|Made)</th><td>.*?</td>", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def moments() -> list:
    marks = {True: (), False: (pytest.mark.slow,)}
    every = [(stage, number) for stage, count in MOMENTS.items() for number in range(count)]
    return [pytest.param(*one, marks=marks[one in QUICK], id=f"{one[0]}-{one[1]}") for one in every]


@pytest.mark.parametrize(("stage", "moment"), moments())
def test_a_kill_at_a_file_operation_costs_nothing(undisturbed, stage, moment, monkeypatch, capsys):
    before, wanted = undisturbed.before(stage), undisturbed.after(stage)
    calls = undisturbed.calls[stage]
    number = 1 + round(moment * (len(calls) - 1) / (MOMENTS[stage] - 1))
    place = Path(shutil.copytree(before, undisturbed.root / f"{stage}-{moment}"))
    with undisturbed.process(stage, place, "kill", number) as killed:
        assert killed.communicate() and killed.returncode == -signal.SIGKILL
    left = sum(path.suffix == ".part" for path in place.rglob("*"))
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(place / "cache"))
    assert main(undisturbed.command(stage, place)) == 0
    capsys.readouterr()
    print(f"{stage}: killed at call {number} of {len(calls)} ({calls[number - 1]}), {left} half files left until then")
    found, as_ever = content(place), content(wanted)
    assert sorted(found) == sorted(as_ever)
    assert not [name for name in found if found[name] != as_ever[name]]
    shutil.rmtree(place)


@pytest.mark.slow
def test_at_least_25_moments_are_spread_over_all_stages(undisturbed):
    assert sum(MOMENTS.values()) >= 25 and not set(MOMENTS) ^ set(STAGES)
    for stage in STAGES:
        undisturbed.after(stage)
        calls = undisturbed.calls[stage]
        print(f"{stage}: {len(calls)} calls {dict(Counter(calls))}")
        assert len(calls) >= MOMENTS[stage]


def held(process: subprocess.Popen) -> bool:
    """Wait until a process waits at its call."""
    return any(line == "held\n" for line in process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("first", [stage for stage in STAGES if stage != "export"])
def test_a_second_command_is_refused_in_the_middle_of_any_stage(undisturbed, first, monkeypatch, capsys):
    """Every command beside every other one; `export` writes nothing in a run, so it is only the second one."""
    before, wanted = undisturbed.before(first), undisturbed.after(first)
    place = Path(shutil.copytree(before, undisturbed.root / f"{first}-beside"))
    run, aside = Run(place / "run"), place.parent / "aside"
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(place / "cache"))
    verbs = (
        lambda: override_verdict(run, "p1_01.jpg", False),
        lambda: edit_caption(run, "p1_01_0.png", "words"),
        lambda: render_previews(run),
        lambda: render_pictures(run, PictureRequest.for_base("mini", "photo")),
    )
    with undisturbed.process(first, place, "hold", 1 + len(undisturbed.calls[first]) // 2) as process:
        assert held(process)
        there = {f: f.stat().st_mtime_ns for f in place.rglob("*")}
        for second in STAGES:
            command = undisturbed.command(second, place)
            if second == "export":
                command[1] = str(aside / "me.safetensors")
            code, refused = main(command), capsys.readouterr().err
            if second == "export":  # the LoRA is there or not
                assert code == 0 or refused.startswith("StageMissing")
                continue
            assert code == 2 and "\nRunBusy: " in f"\n{refused}", second
            assert f"headshotkit {STAGES[first][0]}, process {process.pid}," in refused
        for verb in verbs:
            with pytest.raises(RunBusy):
                verb()
        assert {f: f.stat().st_mtime_ns for f in place.rglob("*")} == there
        process.communicate("\n")
        assert process.returncode == 0
    assert content(place) == content(wanted)
    shutil.rmtree(place)
