"""Prints what the restorer does: to headshots of people, to held-out generated faces and to degraded London faces.

    nice -n 19 python restorer_benchmark.py --parts people --runs RUN RUN ...     # runs with a LoRA on the base
    nice -n 19 python restorer_benchmark.py --parts held_out london

Wants headshotkit with its faces extra. Compared are, all at 512 px: what is given, enlarged (bicubic); the same
sharpened; and restored. A held-out face is shown to the network in another direction, expression and light. In London
it is shown the other photo of the same person, and identity is similarity to that photo. dlib's recogniser took no part in training. Intervals are 95 % bootstrap ones of medians.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import cv2
import losses
import numpy as np
import torch
from judges import Detector, framed
from restorer import Pairs
from restorer_pairs import CLEAN_PX, DRAWN_PX
from store import HOME, SHARED
from training import to_tensor

from headshotkit.core.run import Run
from headshotkit.faces import colours, recognition
from headshotkit.photos.kept import kept_faces
from headshotkit.restoration.embedded import Embedded
from headshotkit.restoration.embedded_net import EMBEDDING, compose_vector, load_restorer, person_vector
from headshotkit.restoration.reference import photo_of
from headshotkit.scoring.bootstrap import BOOTSTRAPS

PARTS = ["people", "held_out", "london"]
RECOGNISERS = ("arcface", "dlib")
LOST = 0.02
"""A picture that loses more identity than this is counted."""


def interval(values) -> str:
    """Return the median of values and its 95 % bootstrap interval."""
    values = np.array([v for v in values if v is not None and np.isfinite(v)])
    if not len(values):
        return "not measured"
    draws = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAPS, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return f"{np.median(values):.3f} ({low:.3f} to {high:.3f})"


def enlarged(given: np.ndarray) -> np.ndarray:
    return cv2.resize(given, (CLEAN_PX, CLEAN_PX), interpolation=cv2.INTER_CUBIC)


def sharpened(given: np.ndarray) -> np.ndarray:
    """The enlargement after an unsharp mask, as a photo editor would do it."""
    large = enlarged(given).astype("float32")
    return (large + 1.0 * (large - cv2.GaussianBlur(large, (0, 0), 2))).clip(0, 255).round().astype("uint8")


class Restored:
    """The network of a folder, with a person's vector and photos, and a fidelity: 0 is all of it, 1 the enlargement."""

    def __init__(self, folder: Path):
        self.net = load_restorer(folder)

    def __call__(
        self, given: np.ndarray, person: np.ndarray, photos: list, eyes=None, fidelity: float = 0.0
    ) -> np.ndarray:
        faces = recognition.detect_faces(given)
        if not faces:
            return enlarged(given)
        return Embedded(self.net, person, photos, eyes).of(given, faces)(fidelity)


def largest_face(picture: np.ndarray):
    found = recognition.detect_faces(picture)
    return found[0] if found else None


class Judge:
    """Measures a picture against a clean one (or None) and a person: name of the measure -> value."""

    def __init__(self):
        self.lpips = losses.Lpips().eval()
        self.models = {name: recognition.load_recogniser(name) for name in RECOGNISERS}

    @torch.no_grad()
    def __call__(self, picture, clean, centres: dict, eyes: np.ndarray | None) -> dict:
        face, out = largest_face(picture), {}
        if clean is not None:
            out["lpips"] = float(self.lpips(to_tensor(picture[None]), to_tensor(clean[None])))
        if face is None:
            return out | {name: np.nan for name in (*RECOGNISERS, "eyes")}
        for name, model in self.models.items():
            out[name] = float(model.similarity(model.embed(picture, face), centres[name])[0])
        seen = colours.eye_colour(picture, face)
        out["eyes"] = float(np.linalg.norm(seen - eyes)) if seen is not None and eyes is not None else np.nan
        return out

    def centres(self, picture) -> dict:
        face = largest_face(picture)
        return {name: model.embed(picture, face) for name, model in self.models.items()}


def compare(name: str, rows: dict[str, list[dict]], base: str = "enlarged") -> dict:
    """Print, for every way, medians of the measures and of the paired differences to `base`."""
    print(f"\n{name} ({len(rows[base])} pictures)", flush=True)
    for measure in rows[base][0]:
        start = np.array([row[measure] for row in rows[base]])
        for way, measured in rows.items():
            end = np.array([row[measure] for row in measured])
            line = f"  {measure:8s} {way:14s} {interval(end)}"
            if way != base:
                change = (end - start)[np.isfinite(end - start)]
                line += f"; change {interval(change)}, mean {change.mean():+.4f}"
                if measure in RECOGNISERS:
                    line += f", {(change < -LOST).sum()} of {len(change)} lose more than {LOST}"
            print(line, flush=True)
    return {way: measured for way, measured in rows.items()}


def judge_people(judge: Judge, restore: Restored, runs: list[Path], out: Path, fidelities: list[float]) -> dict:
    """First attempts of people's runs, against the people's photos."""
    results = {}
    for folder in runs:
        run, rows = Run(folder), defaultdict(list)
        photos = [image for image, _ in kept_faces(run, "arcface")]
        known = {n: np.array([m.embed(i, largest_face(i)) for i in photos]) for n, m in judge.models.items()}
        person, seen = person_vector(photos, known["arcface"]), [photo_of(i, largest_face(i)) for i in photos]
        own = [c for i in photos if (c := colours.eye_colour(i, largest_face(i))) is not None]
        eyes = np.median(own, 0)
        spread = [float(np.linalg.norm(c - eyes)) for c in own]
        centres = {n: e.mean(0) for n, e in known.items()}
        files = [h["file"] for h in run.manifest("headshots")["headshots"] if h["attempt"] == 1]
        strips = []
        for file in files:
            given = cv2.imread(str(run.path("headshots") / file))[:, :, ::-1].copy()
            ways = {"enlarged": enlarged(given), "sharpened": sharpened(given)}
            ways |= {f"restored {f:g}": restore(given, person, seen, eyes, f) for f in fidelities}
            for way, picture in ways.items():
                rows[way].append(judge(picture, None, centres, eyes))
            strips.append(np.vstack([ways["enlarged"], ways[f"restored {fidelities[0]:g}"]]))
        out.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(out / f"{folder.name}.png"), np.hstack(strips[:12])[:, :, ::-1])
        print(
            f"\n{folder}: eyes of {len(own)} photos off their median colour by {interval(spread)}, most {max(spread):.1f}"
        )
        results[str(folder)] = compare("first attempts", rows)
    return results


def judge_held_out(judge: Judge, restore: Restored) -> dict:
    """The base's drawings of generated faces that were never trained on; another picture of each tells who it is."""
    pairs, rows = Pairs(0), defaultdict(list)
    for number in pairs.test:
        clean, given = np.array(pairs.clean[number]), np.array(pairs.drawn[number])
        other = np.array(pairs.seen[number])
        face = largest_face(clean)
        if face is None or largest_face(other) is None:
            continue
        person = person_vector([other], judge.centres(other)["arcface"][None])
        known_eyes = colours.eye_colour(other, largest_face(other))
        seen = [photo_of(other, largest_face(other))]
        nobody = compose_vector(np.zeros(EMBEDDING), None, None)
        centres, eyes = judge.centres(clean), colours.eye_colour(clean, face)
        ways = {
            "enlarged": enlarged(given),
            "sharpened": sharpened(given),
            "restored": restore(given, person, seen, known_eyes),
        }
        ways["restored, no photo"] = restore(given, person, [])
        ways["restored, nobody told"] = restore(given, nobody, [])
        for way, picture in ways.items():
            rows[way].append(judge(picture, clean, centres, eyes))
    return compare("held-out generated faces", rows)


def degradations() -> dict:
    """The four ways to spoil a picture of 256 px."""

    def noise(picture):
        grain = np.random.default_rng(int(picture.sum()) % 2**32).normal(0, 12, picture.shape)
        return (picture + grain).clip(0, 255).round().astype("uint8")

    def jpeg(picture):
        return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)

    def small(picture):
        quarter = cv2.resize(picture, (DRAWN_PX // 4, DRAWN_PX // 4), interpolation=cv2.INTER_AREA)
        return cv2.resize(quarter, (DRAWN_PX, DRAWN_PX), interpolation=cv2.INTER_CUBIC)

    return {"blur": lambda p: cv2.GaussianBlur(p, (0, 0), 2), "noise": noise, "JPEG": jpeg, "x4 smaller": small}


def judge_london(judge: Judge, restore: Restored, people: int) -> dict:
    """Degraded neutral portraits of the London set, told of the person by the smiling ones."""
    detect, results, spoil = Detector(), {}, degradations()
    rows = {kind: defaultdict(list) for kind in spoil}
    for path in sorted((SHARED / "assets/london").glob("*_neutral.jpg"))[:people]:
        clean, other = (
            framed(rgb, detect(rgb)[2], CLEAN_PX, np.random.default_rng(8))
            for rgb in (
                cv2.imread(str(p))[:, :, ::-1].copy() for p in (path, Path(str(path).replace("neutral", "smiling")))
            )
        )
        centres = judge.centres(other)
        person, eyes = person_vector([other], centres["arcface"][None]), colours.eye_colour(clean, largest_face(clean))
        known_eyes = colours.eye_colour(other, largest_face(other))
        seen = [photo_of(other, largest_face(other))]
        small = cv2.resize(clean, (DRAWN_PX, DRAWN_PX), interpolation=cv2.INTER_AREA)
        for kind, spoiled in ((kind, how(small)) for kind, how in spoil.items()):
            ways = {
                "enlarged": enlarged(spoiled),
                "sharpened": sharpened(spoiled),
                "restored": restore(spoiled, person, seen, known_eyes),
            }
            for way, picture in ways.items():
                rows[kind][way].append(judge(picture, clean, centres, eyes))
    for kind in spoil:
        results[kind] = compare(f"London, {kind}", rows[kind])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--restorer", type=Path, default=HOME / "restorer/export")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="run folders of people, for the part people")
    parser.add_argument("--fidelities", nargs="+", type=float, default=[0.0, 0.3, 0.6])
    parser.add_argument("--london", type=int, default=40, help="portraits")
    parser.add_argument("--out", type=Path, default=HOME / "restorer/benchmark")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge, restore, results = Judge(), Restored(args.restorer), {}
    if "people" in args.parts:
        results["people"] = judge_people(judge, restore, args.runs, args.out, args.fidelities)
    if "held_out" in args.parts:
        results["held_out"] = judge_held_out(judge, restore)
    if "london" in args.parts:
        results["london"] = judge_london(judge, restore, args.london)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
