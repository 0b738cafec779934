"""Does holding photos out of training weaken a small set? Two trainings, compared with photos that neither saw.

    python tests/benchmarks/held_out.py [--folder FOLDER] [--photos 8] [--count 24] [--steps 1000]

The first PHOTOS of the sample person's good photos are trained on: all of them, and all but the 2 that `prepare` holds
out. Both LoRAs draw the same prompts from the same noise, first attempts only. Identity is measured to the mean of the
sample person's other photos, which neither training saw, by both recognisers, so that neither LoRA has an advantage.
What is done already in FOLDER is used. The last column is the median difference with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from headshotkit.config import CheckConfig, GenerateConfig, PrepareConfig, TrainConfig
from headshotkit.core import runtime
from headshotkit.core.results import DatasetResult, HeadshotsResult
from headshotkit.core.run import Run
from headshotkit.dataset.build import prepare_dataset
from headshotkit.evaluation.evaluate import RECOGNISERS, score_files
from headshotkit.generation.headshots import generate_headshots
from headshotkit.photos.check import check_photos
from headshotkit.scoring.bootstrap import rise_of
from headshotkit.scoring.identity import known_faces
from headshotkit.training.train import train_lora


def main() -> int:
    """Prints the table; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--photos", type=int, default=8)
    arguments.add_argument("--count", type=int, default=24)
    arguments.add_argument("--steps", type=int)
    given = arguments.parse_args()
    root = given.folder or Path(tempfile.mkdtemp())
    good = sorted(runtime.sample_person().glob("p1_*.jpg"))
    some, unseen = Run(root / "some"), Run(root / "unseen")
    for run, photos in ((some, good[: given.photos]), (unseen, good[given.photos :])):
        folder = run.folder / "given"
        folder.mkdir(parents=True, exist_ok=True)
        for photo in photos:
            shutil.copy(photo, folder)
        check_photos(folder, run, CheckConfig(min_photos=3))
    known, rows = {name: known_faces(unseen, name) for name in RECOGNISERS}, {}
    for held_out in (0, 2):
        run = Run(root / f"held-{held_out}")
        if not run.path("photos").exists():
            shutil.copytree(some.path("photos"), run.path("photos"))
        prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man", held_out=held_out))
        train_lora(run, TrainConfig.for_base("mini", steps=given.steps))
        shots = generate_headshots(run, GenerateConfig.for_base("mini", count=given.count, max_attempts=1))
        files = [run.path("headshots") / shot.file for shot in shots]
        prepared = DatasetResult.load(run)
        rows[held_out] = score_files(files, known)
        passed, adherence = HeadshotsResult.load(run), [shot.adherence for shot in shots if shot.adherence is not None]
        medians = [
            np.median([v for s in rows[held_out] if (v := getattr(s, name)) is not None]) for name in RECOGNISERS
        ]
        trained = len({photo.photo for photo in prepared.dataset.photos})
        print(
            f"| {trained} | {', '.join(prepared.held_out) or 'none'} | {medians[0]:.3f} | {medians[1]:.3f} | "
            f"{np.mean(adherence):.3f} | {sum(s.accepted for s in passed.headshots)} of {len(shots)} |",
            flush=True,
        )
    for name in RECOGNISERS:
        print(name, rise_of(*([getattr(score, name) for score in rows[n]] for n in (0, 2))))
    print(f"{platform.machine()}, {time.strftime('%Y-%m-%d')}, {len(known['arcface'])} unseen photos, in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
