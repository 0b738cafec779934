"""A run under a deadline on the embedded base: what each stage was planned for, and what it took.

    python tests/benchmarks/plan_against_actual.py [--minutes 5 8 15] [--out FOLDER]

`headshotkit run` with the sample person's photos, once for each number of minutes, each in a process of its own. The
plan.json that a run leaves has all figures: the minutes planned at the start; those expected when the stage began (of
the training: after its 20 timed steps; of generating: all that it is given, for it tries again until every prompt has
a headshot); those it took. Marks: the run ends in time, its start included, and each stage took 0.75 to 1.25 of what
was expected, or differs from it by at most 5 seconds, which is what starting a process and its libraries is worth.
Nothing else should compute meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headshotkit.core import runtime

SHARE, SECONDS = 0.25, 5.0


def held(stage: dict) -> bool:
    """Whether a stage took about what was expected when it began."""
    return abs(stage["minutes"] - stage["expected"]) <= max(SHARE * stage["expected"], SECONDS / 60)


def table(stages: list[dict]) -> str:
    """A line a stage: minutes planned, expected, taken, and the last relative to the one before."""
    lines = [f"{'stage':<10}{'planned':>9}{'expected':>10}{'actual':>9}{'ratio':>8}"]
    for stage in stages:
        ratio = f"{stage['minutes'] / stage['expected']:>8.2f}" if stage["expected"] else f"{'-':>8}"
        figures = f"{stage['planned']:>9.2f}{stage['expected']:>10.2f}{stage['minutes']:>9.2f}{ratio}"
        lines.append(f"{stage['stage']:<10}{figures}  {'' if held(stage) else 'MISSED'}".rstrip())
    return "\n".join(lines)


def run_in(minutes: float, out: Path) -> bool:
    """Do a run, print its table, and return whether all marks are met."""
    photos = runtime.sample_person()
    command = [sys.executable, "-m", "headshotkit.cli", "run", str(photos), "--out", str(out), "--base", "mini",
               "--class-word", "man", "--minutes", f"{minutes:g}"]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr)
    took = (time.monotonic() - start) / 60
    stages = json.loads((out / "plan.json").read_text())["stages"]
    in_time, close = took <= minutes, all(held(stage) for stage in stages)
    print(
        f"{minutes:g} minutes given, {took:.2f} taken: {'in time' if in_time else 'LATE'}\n{table(stages)}\n",
        flush=True,
    )
    return in_time and close


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 8.0, 15.0])
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        met = [run_in(minutes, (args.out or Path(place)) / f"minutes-{minutes:g}") for minutes in args.minutes]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
