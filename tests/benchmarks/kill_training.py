"""Kill -9 at random moments of a training: does each go on, and end in the LoRA of the undisturbed one?

    python tests/benchmarks/kill_training.py [--kills 20] [--steps 60] [--seed 0] [--folder FOLDER]

Each row is a training of its own on the embedded base, in a forked process that is killed once, anywhere from its
start to its last step, and given again to its end. "killed" says after which step the kill came, and how much later;
"from" is the step of the checkpoint that it went on from; "difference" is the largest of any number in the LoRA. On a
CPU a difference above 1e-6 is a failure, and the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from headshotkit import PrepareConfig, Run, TrainConfig, check_photos, prepare_dataset
from headshotkit.core import runtime
from headshotkit.families import load_family
from headshotkit.training import train

MAX_DIFFERENCE = 1e-6
STARTING = -1
"""The place before the first step: loading, encoding."""


def prepare(folder: Path) -> None:
    """Judges the sample person's photos and builds the dataset, once for all trainings."""
    check_photos(runtime.sample_person(), Run(folder))
    prepare_dataset(Run(folder), PrepareConfig.for_base("mini", class_word="man"))


def preload() -> None:
    """Imports in this process what a training imports, so that the processes forked from it need not.

    One thread: an OpenMP that has had more of them does not survive a fork.
    """
    torch.set_num_threads(1)
    load_family("mini")


class Training:
    """A training in a process of its own, forked from this one, which tells each step that it has done."""

    def __init__(self, folder: Path, settings: dict) -> None:
        forking = multiprocessing.get_context("fork")
        self.heard, told = forking.Pipe(duplex=False)
        self.process = forking.Process(target=self._train, args=(folder, settings, told))
        self.begun_s = time.monotonic()
        self.process.start()
        told.close()

    @staticmethod
    def _train(folder: Path, settings: dict, told: Connection) -> None:
        config = TrainConfig.for_base("mini", **settings)
        train.train_lora(Run(folder), config, on_step=lambda state: told.send(state.step - 1))

    def wait_for(self, step: float) -> None:
        """Returns when it has done the step, or has ended."""
        with contextlib.suppress(EOFError):
            while self.heard.recv() < step:
                pass

    def finish(self) -> float:
        """Waits for its end, and returns how many seconds it took."""
        self.wait_for(math.inf)
        self.process.join()
        if self.process.exitcode:
            sys.exit(f"a training ended with exit code {self.process.exitcode}")
        return time.monotonic() - self.begun_s

    def kill_after(self, step: int, delay_s: float) -> bool:
        """Kills it so long after a step; False where it had ended by then."""
        if step != STARTING:
            self.wait_for(step)
        time.sleep(delay_s)
        running = self.process.is_alive()
        self.process.kill()
        self.process.join()
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
    apart = multiprocessing.get_context("spawn").Process(target=prepare, args=(root / "prepared",))
    apart.start()  # its face detector's threads would not survive a fork
    apart.join()
    preload()
    calm = new_run(root / "calm", root / "prepared")
    taken_s = Training(calm, settings).finish()
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
        killed = Training(folder, settings).kill_after(step, delay_s)
        resumed_from = newest_checkpoint(folder)
        rest_s = Training(folder, settings).finish()
        apart = difference(calm, folder)
        failures += apart > MAX_DIFFERENCE
        where = "while starting" if step == STARTING else f"after step {step + 1}"
        where = f"{where} + {delay_s * 1000:.0f} ms" if killed else "not: it had ended"
        print(f"{number + 1:>4}  {where:<24} {resumed_from:>4}  {rest_s:>6.1f}  {apart:>10.1e}", flush=True)
    print(f"\n{given.kills - failures} of {given.kills} ended in the undisturbed LoRA, to {MAX_DIFFERENCE:.0e}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
