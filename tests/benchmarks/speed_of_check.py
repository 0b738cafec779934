"""How long `headshotkit check` takes, and how much memory: 20 photos of 12 megapixels, and 50 to 500 smaller ones.

    python tests/benchmarks/speed_of_check.py [--folder FOLDER] [--counts 50 100 200 500] [--large 20]

The photos are made from the sample person's, enlarged, with their own backgrounds mirrored beside them and a camera's
noise on top. Each folder is judged in a process of its own, with the loading of the models. "seconds" is the clock's;
"process" is the time of all threads together, which a busy machine changes little.
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
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.run import Run

LARGE_PX, SMALL_PX = (4032, 3024), (1280, 960)
NOISE = 4.0
MAX_LARGE_S, MAX_OFF_LINE, MAX_GROWTH = 20.0, 0.15, 1.15
"""20 large photos in 20 s; no count off the line by over 15 %; the peak at the largest count over the smallest's."""


def make_photos(folder: Path, count: int, size_px: tuple[int, int], seed: int) -> None:
    """Fills a folder with different photos of the sample person, JPEG of quality 92; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    portraits = sorted(runtime.sample_person().glob("p1_*.jpg"))
    for number in range(count):
        file = folder / f"{number:04d}.jpg"
        if file.exists():
            continue
        rng = np.random.default_rng([seed, number])
        with Image.open(portraits[number % len(portraits)]) as image:
            picture = _photo(image.convert("RGB"), size_px, rng)
        picture.save(file, "JPEG", quality=92)


def _photo(portrait: Image.Image, size_px: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A portrait cut a little differently, enlarged to the height, mirrored outwards to the width, with noise."""
    width, height = size_px
    cut = int(rng.integers(0, portrait.width // 16))
    square = portrait.crop((cut, 0, portrait.width, portrait.height - cut)).resize((height, height))
    side = (width - height) // 2
    pixels = np.pad(np.asarray(square), ((0, 0), (side, width - height - side), (0, 0)), mode="reflect")
    noise = rng.normal(0, NOISE, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
    grain = rng.integers(-3, 4, (height, width, 1))
    return Image.fromarray(np.clip(pixels + noise + grain, 0, 255).astype(np.uint8))


def first_of(folder: Path, count: int, links: Path) -> Path:
    """A folder with links to the first photos of another."""
    links.mkdir()
    for file in sorted(folder.iterdir())[:count]:
        (links / file.name).symlink_to(file.resolve())
    return links


def judge(folder: Path) -> None:
    """Judges one folder and prints seconds, process seconds, peak GiB and what was kept. In a process of its own."""
    from headshotkit.photos.check import check_photos

    with tempfile.TemporaryDirectory() as run:
        started, worked = time.monotonic(), time.process_time()
        verdicts = check_photos(folder, Run(Path(run) / "run"))
        done = {
            "photos": len(verdicts),
            "seconds": time.monotonic() - started,
            "process_s": time.process_time() - worked,
            "peak_gib": runtime.peak_memory_gib()["host"],
            "kept": sum(v.kept for v in verdicts),
        }
    print(json.dumps(done))


def measure(folder: Path) -> dict:
    command = [sys.executable, __file__, "--judge", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def machine() -> str:
    """Cores, processor, load and date, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), processor)
    return f"{cores} cores, {processor}, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}"


def report(name: str, got: dict) -> None:
    each = 1000 * got["process_s"] / got["photos"]
    print(f"| {name} | {got['photos']} | {got['kept']} | {got['seconds']:.1f} | {got['process_s']:.1f} | {each:.0f} "
          f"| {got['peak_gib']:.2f} |", flush=True)  # fmt: skip


def off_line(counts: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """The line of least squares through times: seconds at 0, seconds a photo, largest relative distance from it."""
    slope, start = np.polyfit(counts, seconds, 1)
    line = start + slope * np.array(counts)
    return float(start), float(slope), float(np.abs(np.array(seconds) / line - 1).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the photos are made and stay; else a temporary folder")
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--large", type=int, default=20, help="how many photos of 12 megapixels")
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.judge:
        judge(given.judge)
        return 0
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "photos"
        print(f"{machine()}\n\n| photos | count | kept | seconds | process s | process ms a photo | peak GiB |")
        print("|---|---|---|---|---|---|---|")
        if given.large:
            make_photos(folder / "large", given.large, LARGE_PX, seed=1)
            large = measure(first_of(folder / "large", given.large, Path(temporary) / "large"))
            report("{} x {} px".format(*LARGE_PX), large)
            wrong += [f"{given.large} large photos took {large['seconds']:.1f} s"] * (large["seconds"] > MAX_LARGE_S)
        make_photos(folder / "small", max(given.counts), SMALL_PX, seed=2)
        small = []
        for count in given.counts:
            small.append(measure(first_of(folder / "small", count, Path(temporary) / f"{count}")))
            report("{} x {} px".format(*SMALL_PX), small[-1])
    if len(small) > 2:
        start, slope, off = off_line(given.counts, [s["process_s"] for s in small])
        print(f"\nprocess time = {start:.1f} s + {1000 * slope:.0f} ms a photo; no count is off by over {off:.0%}")
        growth = small[-1]["peak_gib"] / small[0]["peak_gib"]
        wrong += [f"{off:.0%} off the line"] * (off > MAX_OFF_LINE)
        wrong += [f"the peak grew {growth:.2f} times"] * (growth > MAX_GROWTH)
    print("failed: " + "; ".join(wrong) if wrong else "passed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
