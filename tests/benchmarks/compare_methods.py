"""The four training methods on the sample person: identity, prompts obeyed, minutes, megabytes.

    python tests/benchmarks/compare_methods.py [--folder FOLDER] [--methods lora,pivotal] [--count 24] [--dry]

Each method is a run on the embedded base with its own preset, in FOLDER/METHOD; what is done already is used, so
the methods can be given one at a time, and the table is of those that lie there. "identity" is the median of first
attempts to the mean of the photos, bare base -> trained, with the median rise and its 95 % bootstrap interval.
"obeyed" is the share of what prompts ask for that the headshot shows, by the gate's own landmarks: turned by at least
7 degrees to the side asked for, less than that where they ask for the camera, and on the right side of the mark between
a neutral mouth and a smile; for the bare base and for the trained one. "minutes" are the training's by the clock and
of processor time; "MB" is what it leaves on the disk. `--dry` trains 2 steps and renders 2 headshots: does it work?
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import METHODS, GenerateConfig, PrepareConfig, TrainConfig
from headshotkit.core import runtime
from headshotkit.core.records import Headshot, Names
from headshotkit.core.run import Run, write_atomic, write_json
from headshotkit.dataset.build import prepare_dataset
from headshotkit.evaluation.evaluate import RECOGNISERS, rise_of, score_files
from headshotkit.faces import recognition
from headshotkit.families import Sampling, load_family
from headshotkit.generation.headshots import generate_headshots
from headshotkit.photos.check import check_photos
from headshotkit.photos.files import png_bytes
from headshotkit.scoring import adherence
from headshotkit.scoring.identity import known_faces
from headshotkit.training.train import train_lora

AXES = ("direction", "expression")
CPU_FILE = "processor.json"
NAMES = Names("ohwx man", "a man")


def obeyed(prompts: list[str], files: list[Path]) -> float:
    """Share of the things that prompts ask for which their pictures show; not exactly one face shows none."""
    asked = kept = 0
    for prompt, file in zip(prompts, files, strict=True):
        wanted = {axis: value for axis, value in adherence.asked_of(prompt).items() if axis in AXES}
        with Image.open(file) as picture:
            image = np.asarray(picture.convert("RGB"))
        found = recognition.detect_faces(image)
        shown = {}
        if len(found) == 1:
            shown = adherence.shown_by(image, found[0].points, recognition.landmarks_106(image, found[0]))
        asked, kept = asked + len(wanted), kept + sum(shown.get(axis) == value for axis, value in wanted.items())
    return kept / asked


def make_run(root: Path, method: str, count: int, dry: bool) -> Run:
    """A method's run up to its headshots; stages that are done are used."""
    prepared, run = Run(root / "prepared"), Run(root / method)
    check_photos(runtime.sample_person(), prepared)
    prepare_dataset(prepared, PrepareConfig.for_base("mini", class_word="man"))
    for stage in ("photos", "dataset"):
        if not run.path(stage).exists():
            shutil.copytree(prepared.path(stage), run.path(stage))
    known, begun, here = run.folder / CPU_FILE, time.process_time(), not run.has("lora")
    train_lora(run, TrainConfig.for_base("mini", method=method, steps=2 if dry else None))
    if here and not known.exists():  # else it was trained before, elsewhere
        write_json(known, {"seconds": round(time.process_time() - begun, 1)})
    generate_headshots(run, GenerateConfig.for_base("mini", count=2 if dry else count, max_attempts=1))
    return run


def bare_files(root: Path, shots: list[Headshot], config: GenerateConfig) -> list[Path]:
    """The same prompts and seeds on the bare base; made once for all methods."""
    files = [root / "base" / shot.file for shot in shots]
    todo = [(shot, file) for shot, file in zip(shots, files, strict=True) if not file.exists()]
    family = load_family("mini") if todo else None
    for shot, file in todo:
        made = family.render([shot.prompt], [shot.negative], [shot.seed], Sampling.of(config, shot.size_px, NAMES))
        write_atomic(file, png_bytes(made[0]))
    return files


def row_of(root: Path, method: str) -> str:
    """A method's line of the table."""
    run = Run(root / method)
    headshots = run.manifest("headshots")
    shots = [Headshot.from_dict(shot) for shot in headshots["headshots"]]
    files = (
        bare_files(root, shots, GenerateConfig.from_dict(headshots["config"])),
        [run.path("headshots") / s.file for s in shots],
    )
    known = {name: known_faces(run, name) for name in RECOGNISERS}
    scores = [score_files(some, known) for some in files]
    parts = []
    for name in RECOGNISERS:
        before, after = ([getattr(score, name) for score in rows] for rows in scores)
        medians = [np.median([value for value in rows if value is not None]) for rows in (before, after)]
        rise = rise_of(before, after)
        interval = f"{rise.median:+.3f} [{rise.low:+.3f}, {rise.high:+.3f}]"
        parts.append(f"{medians[0]:.3f} -> {medians[1]:.3f}, {interval}")
    base, trained = (obeyed([shot.prompt for shot in shots], some) for some in files)
    lora, known_cpu = run.manifest("lora"), run.folder / CPU_FILE
    cpu = f"{json.loads(known_cpu.read_text())['seconds'] / 60:.1f}" if known_cpu.exists() else "-"
    size = sum((run.path("lora") / file).stat().st_size for file in lora["lora"]["files"])
    return (
        f"| `{method}` | {lora['lora']['step']} | {parts[0]} | {parts[1]} | {base:.0%} -> {trained:.0%} "
        f"| {lora['seconds'] / 60:.1f} | {cpu} | {size / 1e6:.3f} |"
    )


def main() -> int:
    """Prints the table; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--methods", default=",".join(METHODS))
    arguments.add_argument("--count", type=int, default=24)
    arguments.add_argument("--dry", action="store_true")
    given = arguments.parse_args()
    root = given.folder or Path(tempfile.mkdtemp())
    for method in given.methods.split(","):
        make_run(root, method, given.count, given.dry)
    done = [method for method in METHODS if Run(root / method).has("headshots")]
    print(f"{platform.machine()}, torch {runtime.versions()['torch']}, {time.strftime('%Y-%m-%d')}, in {root}\n")
    print("| method | steps | identity, ArcFace | identity, dlib | obeyed | minutes | of processor | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for method in done:
        print(row_of(root, method), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
