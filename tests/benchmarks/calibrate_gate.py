"""Calibrates the photo gate on real people: which spoilt portraits its limits refuse, and whom it takes for whom.

    python tests/benchmarks/calibrate_gate.py FOLDER [--first 0] [--every 2] [--out /tmp/calibration]

FOLDER holds portraits named <person>_<anything>.jpg, such as the Face Research Lab London Set. Each is judged as it is;
every n-th is spoilt in eleven ways of graded strength. A spoilt portrait ought to be refused where ArcFace hardly knows
it any more (cosine to the original below 0.5) or finds no face. Prints the figures, draws the curves, writes both to
--out; no picture of a person is written. Takes about 0.3 s a spoilt picture on a core: 26 minutes for 80 portraits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
from degradations import STRENGTHS, degrade

from headshotkit.config import CheckConfig
from headshotkit.faces import recognition
from headshotkit.photos import assess
from headshotkit.photos.files import Opened, open_photo

SUFFERS = 0.5
SAME_AT = {"arcface": CheckConfig().min_same_person, "dlib": 0.4}
"""From this similarity on two portraits are of one person; dlib's authors say 0.6 apart, which is 1 - 0.4."""


def opened(image: np.ndarray) -> Opened:
    return Opened(image, image.shape[1], image.shape[0], 1.0, None, None, None)


def judged(image: np.ndarray, original: np.ndarray, config: CheckConfig) -> dict:
    """What the gate says of one picture, and how alike it is to the original (None without a face)."""
    measured = assess.measure_photo(opened(image))
    codes = [reason.code for reason in assess.reasons_against(measured.measures, config)]
    cosine = None if measured.embedding is None else float(measured.embedding @ original)
    return {"codes": codes, "cosine": cosine, "measures": measured.measures}


def spoil_all(paths: list[Path], config: CheckConfig) -> list[dict]:
    rows = []
    for number, path in enumerate(paths):
        image = open_photo(path, assess.LEAST_PX).pixels
        face = recognition.detect_faces(image)[0]
        original = assess.measure_photo(opened(image)).embedding
        for kind, strengths in STRENGTHS.items():
            for strength in strengths:
                found = judged(degrade(image, face, kind, strength, number), original, config)
                rows.append({"photo": path.name, "kind": kind, "strength": strength, **found})
        print(f"  {number + 1} of {len(paths)} portraits spoilt", end="\r", flush=True)
    print()
    return rows


def suffers(row: dict) -> bool:
    return row["cosine"] is None or row["cosine"] < SUFFERS


def rejection_table(rows: list[dict]) -> list[str]:
    lines = ["kind      suffer  refused of these   refused of the others   reasons of the first"]
    for kind in [*STRENGTHS, "all"]:
        of_kind = [r for r in rows if kind in (r["kind"], "all")]
        bad, fine = [r for r in of_kind if suffers(r)], [r for r in of_kind if not suffers(r)]
        why = Counter(r["codes"][0] for r in bad if r["codes"])
        words = ", ".join(f"{n} {code}" for code, n in why.most_common(4))
        lines.append(f"{kind:<9} {len(bad):>6}  {share(bad):>16}   {share(fine):>21}   {words}")
    return lines


def share(rows: list[dict]) -> str:
    refused = sum(bool(r["codes"]) for r in rows)
    return f"{refused} = {refused / len(rows):.1%}" if rows else "-"


def draw_curves(rows: list[dict], path: Path) -> None:
    """Fraction refused against strength, one panel a kind: a line a reason, the grey line is ArcFace's cosine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(16, 10), layout="constrained")
    codes = [c for c, _ in Counter(c for r in rows for c in r["codes"]).most_common()]
    colours = dict(zip(codes, plt.get_cmap("tab20").colors * 2, strict=False))
    for axis, (kind, strengths) in zip(axes.flat, STRENGTHS.items(), strict=False):
        cells = [[r for r in rows if (r["kind"], r["strength"]) == (kind, s)] for s in strengths]
        places = range(len(strengths))
        axis.plot(places, [np.mean([bool(r["codes"]) for r in c]) for c in cells], "k-", lw=3, label="refused")
        for code in codes:
            line = [np.mean([code in r["codes"] for r in c]) for c in cells]
            if max(line) > 0.05:
                axis.plot(places, line, "-o", ms=3, color=colours[code], label=code)
        axis.plot(places, [np.median([r["cosine"] or 0 for r in c]) for c in cells], "--", color="grey", label="cosine")
        axis.axhline(SUFFERS, color="grey", lw=0.5)
        axis.set(title=kind, ylim=(-0.05, 1.05), xticks=places, xticklabels=[f"{s:g}" for s in strengths])
        axis.legend(fontsize=7)
    for axis in axes.flat[len(STRENGTHS) :]:
        axis.axis("off")
    figure.suptitle(
        "Fraction refused and median ArcFace cosine to the original, by strength (degradations.py has units)"
    )
    figure.savefig(path, dpi=70)


def who_is_who(paths: list[Path]) -> list[str]:
    """Errors of "same person or not" over all pairs of portraits, for both recognisers at their limits."""
    people, lines = [path.name.split("_")[0] for path in paths], []
    images = [open_photo(path, assess.LEAST_PX).pixels for path in paths]
    found = [recognition.detect_faces(image)[0] for image in images]
    for name, limit in SAME_AT.items():
        recogniser = recognition.load_recogniser(name)
        embeddings = np.stack([recogniser.embed(i, f) for i, f in zip(images, found, strict=True)])
        alike = np.stack([recogniser.similarity(embeddings, e) for e in embeddings])
        pairs = [(people[a] == people[b], alike[a, b]) for a, b in itertools.combinations(range(len(people)), 2)]
        same, other = ([v for is_same, v in pairs if is_same == wanted] for wanted in (True, False))
        missed, mistaken = sum(v < limit for v in same), sum(v >= limit for v in other)
        lines.append(
            f"{name}: limit {limit:.2f}: {missed} of {len(same)} same pairs missed (least {min(same):.3f}), "
            f"{mistaken} of {len(other)} other pairs mistaken (most {max(other):.3f}): "
            f"{(missed + mistaken) / len(pairs):.2%} wrong"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0, help="the first portrait to spoil")
    parser.add_argument("--every", type=int, default=1, help="spoil every n-th portrait only")
    parser.add_argument("--out", type=Path, default=Path("/tmp/calibration"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config, paths = CheckConfig(), sorted(args.folder.glob("*.jpg"))
    whole = [{"photo": p.name, **judged(open_photo(p, assess.LEAST_PX).pixels, np.zeros(512), config)} for p in paths]
    passed = sum(not row["codes"] for row in whole)
    lines = [f"originals: {passed} of {len(whole)} pass ({passed / len(whole):.1%})"]
    lines += [f"  {row['photo']}: {', '.join(row['codes'])}" for row in whole if row["codes"]]
    rows = spoil_all(paths[args.first :: args.every], config)
    text = "\n".join([*lines, *rejection_table(rows), *who_is_who(paths)])
    print(text)
    (args.out / "calibration.txt").write_text(text + "\n")
    plain = [{**r, "cosine": None if r["cosine"] is None or math.isnan(r["cosine"]) else r["cosine"]} for r in rows]
    (args.out / "rows.json").write_text(json.dumps(plain))
    draw_curves(rows, args.out / "curves.png")


if __name__ == "__main__":
    main()
