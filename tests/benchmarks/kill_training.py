"""Kill -9 at random moments of a training: does each go on, and end in the LoRA of the undisturbed one?

    python tests/benchmarks/kill_training.py [--kills 20] [--steps 60] [--seed 0] [--folder FOLDER]

Each row is a training of its own on the embedded base, in a process that is killed once, anywhere from its start to
its last step, and given again to its end. "killed" says after which step the kill came, and how much later; "from" is
the step of the checkpoint that it went on from; "difference" is the largest of any number in the LoRA. On a CPU a
difference above 1e-6 is a failure, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from headshotkit import runtime
from headshotkit.run import Run

MAX_DIFFERENCE = 1e-6
STARTING = -1
"""The place before the first step: imports, loading, encoding."""
PREPARE = """
import sys
from headshotkit import DatasetConfig, Run, build_dataset, judge_photos, runtime
judge_photos(runtime.sample_person(), Run(sys.argv[1]))
build_dataset(Run(sys.argv[1]), DatasetConfig.for_base("mini", class_word="man"))
"""
TRAIN = """
import json, sys
from headshotkit import Run, TrainConfig, train
step_of = train._Loop._step
train._Loop._step = lambda self, step: (step_of(self, step), print(step, flush=True))[0]
train.train_lora(Run(sys.argv[1]), TrainConfig.for_base("mini", **json.loads(sys.argv[2])))
"""


def train(folder: Path, settings: dict) -> subprocess.Popen:
    """Starts a training, which prints each step that it has done."""
    command = [sys.executable, "-c", TRAIN, str(folder), json.dumps(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> float:
    """Waits for the end of a training, and returns how many seconds that took."""
    begun = time.monotonic()
    process.communicate()
    if process.returncode:
        sys.exit(f"a training ended with exit code {process.returncode}")
    return time.monotonic() - begun


def kill_after(process: subprocess.Popen, step: int, delay_s: float) -> bool:
    """Kills the training so long after a step; False where it had ended by then."""
    if step != STARTING:
        while (line := process.stdout.readline()) and int(line) < step:
            pass
    time.sleep(delay_s)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def new_run(folder: Path, prepared: Path) -> Path:
    """A run folder with the prepared dataset."""
    folder.mkdir()
    for stage in ("photos", "dataset"):
        (folder / stage).symlink_to(prepared / stage)
    return folder


def difference(one: Path, other: Path) -> float:
    """The largest difference between two runs' LoRAs; infinite where their layers differ."""
    a, b = (load_file(folder / "lora" / "person.safetensors") for folder in (one, other))
    return max(float(np.abs(a[k] - b[k]).max()) for k in a) if a.keys() == b.keys() else float("inf")


def newest_checkpoint(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 where there is none."""
    return max((int(file.stem) for file in (folder / "lora" / "checkpoints").glob("[0-9]*.pt")), default=0)


def main() -> int:
    """Prints the table. Returns the exit code: 1 where a LoRA differs."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    root = Path(tempfile.mkdtemp(dir=given.folder)).resolve()  # links to it are made
    settings = {"steps": given.steps, "batch": 1, "checkpoint_every_steps": 7}
    subprocess.run([sys.executable, "-c", PREPARE, str(root / "prepared")], check=True)
    calm = new_run(root / "calm", root / "prepared")
    taken_s = finish(train(calm, settings))
    seconds = Run(calm).manifest("lora")["seconds"]
    step_s, start_s = seconds / given.steps, max(0.5, taken_s - seconds)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {runtime.versions()['torch']}")
    print(f"undisturbed: {taken_s:.1f} s for {given.steps} steps, a checkpoint every 7\n")
    print(f"{'kill':>4}  {'killed':<24} {'from':>4}  {'rest s':>6}  {'difference':>10}")
    rng, failures = np.random.default_rng(given.seed), 0
    for number in range(given.kills):
        folder = new_run(root / f"kill{number}", root / "prepared")
        step = int(rng.integers(STARTING, given.steps - 1))
        delay_s = float(rng.uniform(0, start_s if step == STARTING else step_s))
        killed = kill_after(train(folder, settings), step, delay_s)
        resumed_from = newest_checkpoint(folder)
        rest_s = finish(train(folder, settings))
        apart = difference(calm, folder)
        failures += apart > MAX_DIFFERENCE
        where = "while starting" if step == STARTING else f"after step {step + 1}"
        where = f"{where} + {delay_s * 1000:.0f} ms" if killed else "not: it had ended"
        print(f"{number + 1:>4}  {where:<24} {resumed_from:>4}  {rest_s:>6.1f}  {apart:>10.1e}", flush=True)
    print(f"\n{given.kills - failures} of {given.kills} ended in the undisturbed LoRA, to {MAX_DIFFERENCE:.0e}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
