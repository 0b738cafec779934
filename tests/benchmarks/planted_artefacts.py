"""Does the gate find artefacts, and does it leave good photos alone?

    python tests/benchmarks/planted_artefacts.py LONDON [--people FOLDER ...] [--headshots RUN ...]
        [--limit 0.5] [--out /tmp/planted.json]

LONDON: the Face Research Lab London Set, 40 people; it took no part in training, and no limit was chosen on it. A
person's portraits, neutral and smiling, at 256 px (the size of the embedded base's headshots) or 384 px, are rated as
they are; the neutral one in two of six harmless ways as well: small, soft, noisy, compressed, dark, changed too weakly
to see. Each person gets every kind of artefact of `planting.py` once by a way that the training used, at a strength of
0.9 to 1.1, and two kinds by a way that it did not. What does not show (`planting.is_visible`) is left out. The face is
found anew in the planted picture, as the gate does.

--people: folders of photos of people; --headshots: finished runs. Found: any rating is above the limit. Rows are kept
in --out, so the next call goes on. About 0.2 s a picture.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import planting
from PIL import Image

from headshotkit.config import GenerateConfig
from headshotkit.faces import artefacts, landmarks, recognition
from headshotkit.faces.artefacts import KINDS
from headshotkit.photos.files import read_photo

LIMIT = 0.5
BOOTSTRAPS = 2000


def compressed(picture: np.ndarray) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=35)
    return np.asarray(Image.open(data).convert("RGB"))


def weakly_changed(picture: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One change of each kind at a fifth of its strength or less, and a lock beside the face."""
    for kind in ("eyes", "mouth", "ears_glasses"):
        ways = [way for way in planting.WAYS[kind] if "glasses" not in way.__name__]
        picture = ways[rng.integers(len(ways))](picture, marks, rng, rng.uniform(0.05, 0.2))
    return planting.hair_beside(picture, marks, rng)


HARMLESS = {
    "as it is": lambda p, m, rng: p,
    "128 px": lambda p, m, rng: cv2.resize(cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA), (256, 256)),
    "soft": lambda p, m, rng: cv2.GaussianBlur(p, (0, 0), 0.006 * len(p)),
    "noisy": lambda p, m, rng: np.clip(p + rng.normal(0, 8, p.shape), 0, 255).astype(np.uint8),
    "compressed": lambda p, m, rng: compressed(p),
    "dark": lambda p, m, rng: (p * 0.55).astype(np.uint8),
    "weakly changed": weakly_changed,
}


def rated(picture: np.ndarray) -> dict[str, float] | None:
    """The ratings of a picture's largest face, None if none is found, and the landmarks' own measure of the eyes."""
    found = recognition.detect_faces(picture)
    if not found:
        return None
    marks = recognition.landmarks_106(picture, found[0])
    return artefacts.rate_artefacts(picture, found[0]) | {"rule": unevenness(marks)}


def unevenness(marks: np.ndarray) -> float:
    """A rule in place of the network: the largest difference of the eyes in openness, width, height and gaze."""
    right, down = planting.axes(marks)
    d, eyes = planting.eye_distance(marks), [marks[part] for part in planting.EYES]
    across = [(eye - eye.mean(0)) @ right for eye in eyes]
    gaze = [(marks[iris] - eye.mean(0)) @ right / d for iris, eye in zip(planting.IRISES, eyes, strict=True)]
    widths = [np.ptp(one) for one in across]
    between = marks[planting.MOUTH][:, None] - marks[planting.MOUTH]
    tilt = between.reshape(-1, 2)[(between**2).sum(-1).argmax()]
    tilt = tilt * np.sign(tilt @ right)
    return float(max(landmarks.wink(marks) / 0.2, abs(np.log(widths[0] / widths[1])) / 0.5,
                     abs(gaze[0] - gaze[1]) / 0.12, abs(tilt @ down) / max(tilt @ right, 1e-3) / 0.2))  # fmt: skip


def pictures_of(path: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A portrait at 256 or 384 px, and its landmarks."""
    side = 256 if number % 2 else 384
    picture = cv2.resize(read_photo(path), (side, side), interpolation=cv2.INTER_AREA)
    return picture, recognition.landmarks_106(picture, recognition.detect_faces(picture)[0])


def try_person(folder: Path, people: list[str], number: int) -> Iterator[dict]:
    """A row for each rated picture of a person: kind, way, whether the training used it, and the ratings."""
    rng, person = np.random.default_rng((7, number)), people[number]
    picture, marks = pictures_of(folder / f"{person}_neutral.jpg", number)
    smiling, smiling_marks = pictures_of(folder / f"{person}_smiling.jpg", number + 1)
    for name, spoil in [("as it is", HARMLESS["as it is"]), *rng.permutation(list(HARMLESS.items())[1:])[:2]]:
        yield {"kind": "", "way": name, "rated": rated(spoil(picture, marks, rng))}
    yield {"kind": "", "way": "as it is", "rated": rated(smiling)}
    other, other_marks = pictures_of(folder / f"{people[number - 7]}_neutral.jpg", number)
    for at, kind in enumerate(KINDS):
        seen, its_marks = ((picture, marks), (smiling, smiling_marks))[(at + number) % 2]
        way = planting.WAYS[kind][rng.integers(len(planting.WAYS[kind]))]
        made = way(seen, its_marks, rng, rng.uniform(0.9, 1.1))
        if planting.is_visible(seen, made, its_marks):
            yield {"kind": kind, "way": way.__name__, "trained": True, "rated": rated(made)}
        if at % 2 == number % 2:
            way = planting.UNSEEN[kind][0]
            made = way(seen, its_marks, rng, other, other_marks)
            if planting.is_visible(seen, made, its_marks):
                yield {"kind": kind, "way": way.__name__, "trained": False, "rated": rated(made)}


def is_found(row: dict) -> bool:
    return row["rated"] is None or max(row["rated"][kind] for kind in KINDS) > LIMIT


def share(rows: list[dict], hit=is_found) -> str:
    """Share of hits, with a bootstrap interval over people, or Wilson's if all or none were hit."""
    hits = np.array([hit(row) for row in rows], float)
    people = defaultdict(list)
    for value, row in zip(hits, rows, strict=True):
        people[row["person"]].append(value)
    groups, rng = list(people.values()), np.random.default_rng(0)
    means = []
    for _ in range(BOOTSTRAPS):
        some = [groups[n] for n in rng.integers(len(groups), size=len(groups))]
        means.append(np.concatenate(some).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    if hits.mean() in (0, 1):  # of as many people as there are, not pictures
        edge = 3.84 / (len(groups) + 3.84)
        low, high = (1 - edge, 1.0) if hits.mean() else (0.0, edge)
    return f"{int(hits.sum())} of {len(hits)} = {100 * hits.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def report(rows: list[dict]) -> str:
    lines = [f"  good, as they are: refused {share([r for r in rows if r['way'] == 'as it is'])}"]
    lines.append(
        f"  good, spoilt harmlessly: refused {share([r for r in rows if not r['kind'] and r['way'] != 'as it is'])}"
    )
    planted = [r for r in rows if r["kind"]]
    lines.append(f"  planted: found {share(planted)}")
    for trained, words in ((True, "ways of the training"), (False, "other ways")):
        some = [r for r in planted if r["trained"] is trained]
        lines.append(f"  planted, {words}: found {share(some)}")
        lines += [f"    {kind:<13} found {share([r for r in some if r['kind'] == kind])}" for kind in KINDS]
    for way in sorted({r["way"] for r in rows}):
        some = [r for r in rows if r["way"] == way]
        lines.append(f"      {way:<24} {sum(map(is_found, some))} of {len(some)}")
    clean = [r["rated"]["rule"] for r in rows if not r["kind"] and r["rated"]]
    eyes = [r for r in planted if r["kind"] == "eyes" and r["trained"] and r["rated"]]
    by_rule = share(eyes, lambda r: r["rated"]["rule"] > np.quantile(clean, 0.97))
    return "\n".join([*lines, f"  the landmarks' rule at 3 % false alarms finds of the eyes {by_rule}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("london", type=Path)
    parser.add_argument("--people", type=Path, nargs="*", default=[])
    parser.add_argument("--headshots", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=GenerateConfig().max_artefact)
    parser.add_argument("--report", action="store_true", help="rate no more people")
    parser.add_argument("--out", type=Path, default=Path("/tmp/planted.json"))
    args = parser.parse_args()
    global LIMIT
    LIMIT = args.limit
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    people = sorted({path.name[:3] for path in args.london.glob("*.jpg")})
    with args.out.open("a") as out:
        left = [n for n in range(len(people)) if people[n] not in {row["person"] for row in done}]
        for number in [] if args.report else left:
            new = [{"person": people[number], **row} for row in try_person(args.london, people, number)]
            out.write("".join(json.dumps(row) + "\n" for row in new))
            out.flush()
            done += new
    print(f"{len(done)} pictures, limit {LIMIT}\n{report(done)}")
    for folder in args.people:
        rows = [(path.name, rated(read_photo(path))) for path in sorted(folder.glob("p*.jpg"))]
        most = {name: max(found[kind] for kind in KINDS) for name, found in rows}
        print(
            f"{folder.name}: {sum(v > LIMIT for v in most.values())} of {len(rows)} refused, "
            f"highest {max(most.values())}"
        )
    for run in args.headshots:
        shots = json.loads((run / "headshots/manifest.json").read_text())["headshots"]
        rows = [shot | {"rated": rated(read_photo(run / "headshots" / shot["file"]))} for shot in shots]
        print({row["file"]: row["rated"] for row in rows})
        for words, some in (("first attempts", [r for r in rows if r["attempt"] == 1]),
                            ("accepted", [r for r in rows if r["accepted"]])):  # fmt: skip
            print(f"{run}: of {len(some)} {words} refused {sum(map(is_found, some))}")


if __name__ == "__main__":
    main()
