"""Tries to cheat the identity gate, and shows it real photos that it must let pass.

    python tests/benchmarks/gate_cheats.py --people FOLDER/p1 FOLDER/p2 [--runs RUN_P1 RUN_P2] [--strangers FOLDER]
        [--every 3] [--seconds 0] [--out /tmp/gate_cheats.json]

--people: folders of photos of one person each. --runs: for each of them a finished run folder on the embedded base, of
which the headshots of the others are another person's, and report/base is nobody's. --strangers: portraits of others.
A real photo is judged by what the others of its person say; each is to pass, at most 5 % may not. A cheat is a photo
that the gate knows, changed in one of 18 ways (every n-th photo), or somebody else; 99 % are to be refused. The
limits are those of the embedded base, whose sharpness limit is the lower one. Rows are kept in --out, so a run ends
after --seconds (0: when all is done), and the next goes on. About 0.25 s a picture on a core. No picture is written.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from headshotkit.config import GenerateConfig
from headshotkit.faces import copies, recognition
from headshotkit.photos.files import read_photo
from headshotkit.scoring.identity import Person, calibrate, judge_headshot

CONFIG = GenerateConfig.for_base("mini")
SIDE_PX = CONFIG.size_px
SMALL = (SIDE_PX, SIDE_PX)
"""As large as the embedded base's headshots are."""


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(picture: Image.Image, face: recognition.Face, reach: float) -> Image.Image:
    """The face's surroundings up to `reach` of its width on each side of its middle, in SMALL."""
    middle, half = (face.box[:2] + face.box[2:]) / 2, reach * face.width_px
    return picture.crop((*(middle - half).astype(int), *(middle + half).astype(int))).resize(SMALL, Image.LANCZOS)


def pasted_into_noise(picture: Image.Image) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2 * SIDE_PX, 2 * SIDE_PX, 3), np.uint8))
    noise.paste(picture, (SIDE_PX // 2, SIDE_PX // 2))
    return noise


def cheats_of(image: np.ndarray, face: recognition.Face) -> dict[str, Image.Image]:
    """A photo in 18 ways: shrunk, cut, mirrored, recoloured, turned, spoilt, pasted."""
    photo = Image.fromarray(image)
    small, head = photo.resize(SMALL, Image.LANCZOS), cut(photo, face, 0.95)
    values, hsv = np.asarray(head, np.float32), np.array(head.convert("HSV"))
    hsv[..., 0] += 90
    noise = np.random.default_rng(0).normal(0, 8, values.shape)
    return {
        "512 px": photo.resize((512, 512), Image.LANCZOS), "256 px": small, "head": head,
        "face": cut(photo, face, 0.75), "mirrored": ImageOps.mirror(small), "head, mirrored": ImageOps.mirror(head),
        "grey": ImageOps.grayscale(head).convert("RGB"), "tinted": to_picture(values * [1.25, 0.9, 0.7]),
        "hue turned": Image.fromarray(hsv, "HSV").convert("RGB"),
        "channels swapped": to_picture(values[..., [2, 0, 1]]),
        "gamma 1.6": to_picture(255 * (values / 255) ** 1.6), "brighter": ImageEnhance.Brightness(head).enhance(1.4),
        "more contrast": ImageEnhance.Contrast(head).enhance(1.5), "turned 8 degrees": photo.rotate(
            8, Image.Resampling.BICUBIC, fillcolor="grey").resize(SMALL, Image.LANCZOS),
        "JPEG 40": jpeg(small, 40), "noisy": to_picture(values + noise),
        "blurred": head.filter(ImageFilter.GaussianBlur(1.6)), "in noise": pasted_into_noise(cut(photo, face, 0.75)),
    }  # fmt: skip


def to_picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


class Known:
    """A person's photos as the gate knows them; what is slow to make is kept in a file."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.name, self.paths = folder.name, sorted(folder.glob("*.jpg"))
        file = store.with_suffix(f".{self.name}.npz")
        if not file.exists():
            made = [self._known(path) for path in self.paths]
            np.savez(file, embeddings=[m[0] for m in made], looks=[m[1] for m in made])
        kept = np.load(file)
        self.embeddings, self.looks = kept["embeddings"], kept["looks"]

    @staticmethod
    def _known(path: Path) -> tuple[np.ndarray, np.ndarray]:
        image = read_photo(path)
        face = recognition.detect_faces(image)[0]
        return recognition.load_recogniser("arcface").embed(image, face), copies.face_crop(image, face)

    def person(self, without: int | None = None) -> Person:
        """The gate's person, as all photos show them but one."""
        places = [n for n in range(len(self.paths)) if n != without]
        known = self.embeddings[places]
        return Person(known.mean(0), calibrate(known, CONFIG), tuple(self.looks[places]))


def trials(people: list[Known], runs: list[Path], strangers: list[Path], every: int) -> Iterator[tuple]:
    """(key, kind, picture, person) of all that is to be judged; a picture is made when asked for."""
    for number, known in enumerate(people):
        for place, path in enumerate(known.paths):
            yield f"{known.name}/own/{path.name}", "own photo", lambda p=path: read_photo(p), (known, place)
        for path in known.paths[::every]:
            for way in WAYS:
                yield f"{known.name}/{way}/{path.name}", way, lambda p=path, w=way: cheat(p, w), (known, None)
        others = [p for other in people if other is not known for p in other.paths[::every]]
        made = [p for n, run in enumerate(runs) if n != number for p in sorted(run.glob("headshots/*_1.png"))[::every]]
        base = [p for run in runs for p in sorted(run.glob("report/base/*_1.png"))[::every]]
        groups = {"another's photo": others + strangers[::every], "another's headshot": made, "nobody's headshot": base}
        for kind, paths in groups.items():
            for path in paths:
                yield f"{known.name}/{kind}/{path}", kind, lambda p=path: read_photo(p), (known, None)


def cheat(path: Path, way: str) -> np.ndarray:
    image = read_photo(path)
    return np.asarray(cheats_of(image, recognition.detect_faces(image)[0])[way])


WAYS = tuple(cheats_of(np.zeros((256, 256, 3), np.uint8), recognition.Face(np.array([64.0, 64, 192, 192]), 1.0, None)))


def report(rows: dict[str, dict]) -> str:
    """A line a kind and the two marks."""
    lines, cheats = [f"{'kind':<20}{'pictures':>9}{'refused':>9}   first reasons; likeness to a photo"], []
    for kind in ("own photo", *WAYS, "another's photo", "another's headshot", "nobody's headshot"):
        some = [row for row in rows.values() if row["kind"] == kind]
        if not some:
            continue
        cheats += some if kind != "own photo" else []
        refused, copy = [r for r in some if not r["accepted"]], [r["copy"] for r in some if r["copy"] is not None]
        why = ", ".join(f"{n} {code}" for code, n in Counter(r["reasons"][-1] for r in refused).most_common(3))
        span = f"{min(copy):.3f} to {max(copy):.3f}" if copy else "-"
        lines.append(f"{kind:<20}{len(some):>9}{len(refused):>9}   {why or '-'}; {span}")
    own = [row for row in rows.values() if row["kind"] == "own photo"]
    for name, some, mark in (("cheats refused", cheats, "at least 99 %"), ("own photos refused", own, "at most 5 %")):
        refused = sum(not r["accepted"] for r in some)
        lines.append(f"{name}: {refused} of {len(some)} = {refused / max(len(some), 1):.1%} (mark: {mark})")
    lines += [f"passed: {key}, identity {r['identity']}" for key, r in rows.items()
              if r["accepted"] and r["kind"] != "own photo"]  # fmt: skip
    lines += [f"refused: {key}, {', '.join(r['reasons'])}" for key, r in rows.items()
              if not r["accepted"] and r["kind"] == "own photo"]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=Path, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--strangers", type=Path)
    parser.add_argument("--every", type=int, default=3, help="use every n-th picture as a cheat")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so many of the process; 0: at the end")
    parser.add_argument("--out", type=Path, default=Path("/tmp/gate_cheats.json"))
    args = parser.parse_args()
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    people = [Known(folder, args.out) for folder in args.people]
    strangers = sorted(args.strangers.glob("*.jpg")) if args.strangers else []
    every = list(trials(people, args.runs, strangers, args.every))
    left = [trial for trial in every if trial[0] not in rows]
    for key, kind, picture, (known, without) in left:
        if args.seconds and time.process_time() > args.seconds:
            break
        judged = judge_headshot(np.asarray(picture()), known.person(without), CONFIG)
        rows[key] = {"kind": kind, **asdict(judged)}
    args.out.write_text(json.dumps(rows))
    print(report(rows))
    print(f"{sum(key not in rows for key, *_ in left)} of {len(every)} are left to judge")


if __name__ == "__main__":
    main()
