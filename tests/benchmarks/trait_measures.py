"""Compares ways to measure smile, direction, light, background and clothes, on pictures of which the truth is known.

    python tests/benchmarks/trait_measures.py LONDON [--faces HOME/faces] [--count 480]

LONDON is the folder of the Face Research Lab London Set: <person>_neutral.jpg and <person>_smiling.jpg of people in
white shirts in front of a light grey wall, in even light. With --faces, the store of generated faces that
data/mini/generate.py and measure.py fill: MediaPipe measured their yaw and smile, and pictures.py puts them in front of
backdrops and into light of a known kind. The first row of each table is `faces/traits.py`; the other rows are what
captions, coverage or prompt adherence used in its place before they shared it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.dataset import captions
from headshotkit.faces import landmarks, measures, recognition, traits

DYES = {
    "white": None, "black": (38, 38, 42), "grey": (140, 140, 142), "blue": (60, 90, 190), "red": (190, 40, 45),
    "green": (50, 140, 70), "beige": (215, 190, 150), "brown": (115, 75, 45),
}  # fmt: skip
ARCFACE = recognition.ARCFACE_TEMPLATE * measures.FACE_PX
DATA = Path(__file__).resolve().parents[2] / "data" / "mini"


@dataclass(frozen=True)
class Seen:
    """A picture with its face: the detector's five points and box, and insightface's 106 landmarks."""

    pixels: np.ndarray
    face: recognition.Face
    marks: np.ndarray

    @property
    def aligned(self) -> np.ndarray:
        return recognition.align_face(self.pixels, self.face.points, measures.FACE_PX)


def seen_in(pixels: np.ndarray) -> Seen | None:
    found = recognition.detect_faces(pixels)
    return Seen(pixels, found[0], recognition.landmarks_106(pixels, found[0])) if found else None


# --- what was used before ------------------------------------------------------------------------------------------


def wide_mouth(one: Seen) -> float:
    """Return the mouth's width by the 106 landmarks, in eye distances; coverage's and adherence's, limit 0.855."""
    eyes = [one.marks[eye].mean(0) for eye in (landmarks.LEFT_EYE, landmarks.RIGHT_EYE)]
    return float(
        np.linalg.norm(np.subtract(*one.marks[list(traits.MOUTH_CORNERS)])) / np.linalg.norm(eyes[1] - eyes[0])
    )


def nose_offset(one: Seen) -> float:
    """Return the nose's offset from the middle of eyes and mouth, in eye distances; captions' head direction."""
    points = one.face.points
    eyes, middle = points[1] - points[0], (points[0] + points[1] + points[3] + points[4]) / 4
    return float((points[2] - middle) @ eyes / np.square(eyes).sum())


def halves_apart(one: Seen) -> float:
    """Return the difference of the face's halves in grey levels; captions' side light."""
    luma, oval = traits.skin_oval(one.aligned)
    half = luma.shape[1] // 2
    return abs(float(luma[:, :half][oval[:, :half]].mean() - luma[:, half:][oval[:, half:]].mean()))


def backdrop_by_rgb(image: np.ndarray) -> str:
    """Return the background by the corners' RGB, as captions did."""
    height, width = image.shape[0] // 3, max(1, image.shape[1] // 12)
    corners = np.concatenate([image[:height, :width].reshape(-1, 3), image[:height, -width:].reshape(-1, 3)])
    middle, spread = np.median(corners, 0), corners.mean(1).std()
    if middle.mean() > 205 and np.ptp(middle) < 28 and spread < 30:
        return "white"
    return "dark" if middle.mean() < 48 else "grey" if np.ptp(middle) < 22 and spread < 30 else ""


def backdrop_by_lab(image: np.ndarray) -> str:
    """Return the background by its CIELAB colour with the limits that prompt adherence had."""
    light, *ab = traits.background(image).lab
    return "dark" if light < 28 else "" if np.hypot(*ab) > 12 else "white" if light > 72 else "grey"


def clothes_by_hsv(one: Seen) -> str:
    """Return the colour of the clothes at both sides below the face by HSV, as captions did."""
    x0, _, x1, y1 = one.face.box
    width, height, middle = x1 - x0, one.face.height_px, (x0 + x1) / 2
    rows = slice(int(y1 + 0.3 * height), min(len(one.pixels), int(y1 + height)))
    sides = (middle - 0.8 * width, middle - 0.35 * width), (middle + 0.35 * width, middle + 0.8 * width)
    names = []
    for a, b in sides if rows.stop - rows.start >= 0.1 * height else ():
        patch = Image.fromarray(one.pixels[rows, max(0, int(a)) : max(0, int(b))])
        hue, colourful, bright = np.moveaxis(np.asarray(patch.convert("HSV"), np.float32), -1, 0)
        hue, strong = hue * 360 / 255, (colourful > 90) & (bright > 70)
        shares = {
            "dark": bright < 60, "white": (bright > 200) & (colourful < 30),
            "grey": (bright > 85) & (bright < 180) & (colourful < 30),
            "red": strong & ((hue < 8) | (hue > 340)) & (colourful > 140), "green": strong & (hue > 80) & (hue < 165),
            "blue": strong & (hue > 190) & (hue < 255), "purple": strong & (hue > 265) & (hue < 310),
        }  # fmt: skip
        best = max(shares, key=lambda name: shares[name].mean())
        names.append(best if shares[best].mean() >= traits.SURE_CLOTHES else "")
    return names[0] if len(set(names)) == 1 else ""


# --- tables --------------------------------------------------------------------------------------------------------


def dyed(one: Seen, colour: tuple[int, int, int] | None) -> Seen:
    """Return a portrait with its white shirt, folds and shadows included, in another colour."""
    if colour is None:
        return one
    lab = traits.to_lab(one.pixels).reshape(one.pixels.shape)
    shirt = (lab[..., 0] > 62) & (np.hypot(lab[..., 1], lab[..., 2] + 2) < 11)
    shirt[: int(one.face.box[3]) + 2] = False
    pixels, light = one.pixels.astype(np.float32), (one.pixels @ traits.LUMA / 235)[..., None]
    pixels[shirt] = (light * np.array(colour))[shirt]
    return Seen(pixels.clip(0, 255).round().astype(np.uint8), one.face, one.marks)


def print_smiles(people: dict[str, Seen], smiling: np.ndarray) -> None:
    """Print how often a limit, and the words of captions, are right."""
    seen = people.values()
    rated, width = np.array([traits.smile(s.face.points) for s in seen]), np.array([wide_mouth(s) for s in seen])
    for name, values, limit in (("traits.smile", rated, traits.SMILE), ("106 landmarks", width, 0.855)):
        print(f"  {name:<14} right {np.mean((values >= limit) == smiling):.1%} of {len(smiling)}")
    words = np.array([captions.expression(s.face.points) for s in seen])
    right = ((words == "smiling") & smiling) | ((words == "neutral expression") & ~smiling)
    print(f"  captions       right {right.sum()}, wrong {((words != '') & ~right).sum()} of {len(smiling)}")


def print_light(people: dict[str, Seen]) -> None:
    """Print both measures of side light for the same light at three exposures."""
    ramp = np.linspace(0.7, 1.3, measures.FACE_PX)[None, :, None]
    for exposure in (1.0, 0.6, 0.35):
        lit = [(one.aligned * ramp * exposure).clip(0, 255).astype(np.uint8) for one in people.values()]
        side = [abs(traits.light_side(aligned)) for aligned in lit]
        faces = [Seen(aligned, recognition.Face(np.zeros(4), 1.0, ARCFACE), np.zeros((106, 2))) for aligned in lit]
        grey = [halves_apart(face) for face in faces]
        print(f"  exposure {exposure}: traits.light_side {np.median(side):.3f}, grey levels {np.median(grey):.1f}")


def print_clothes(people: dict[str, Seen]) -> None:
    """Print what captions and coverage say of shirts that are white, and of the same shirts dyed."""
    for name, colour in DYES.items():
        seen = [dyed(one, colour) for one in people.values()]
        wanted = captions.CLOTHES.get(name, "")
        now = [captions.clothes(captions.View(s.pixels, s.face.points, s.face.box)) for s in seen]
        now, before = (
            [word.removeprefix("wearing ").removesuffix(" clothes") for word in now],
            map(clothes_by_hsv, seen),
        )
        found = [traits.clothes(s.pixels, s.face.box) for s in seen]
        called = [traits.colour_name(one.lab) for one in found if one]
        counts = [f"named {sum(w == wanted != '' for w in words)}, wrong {sum(w not in ('', wanted) for w in words)}"
                  for words in (now, list(before))]  # fmt: skip
        right = sum(word.removeprefix("dark ").removeprefix("light ") == name for word in called)
        print(f"  {name:<6} captions {counts[0]}; by HSV {counts[1]}; coverage {right} of {len(called)}")


def print_generated(count: int, home: Path) -> None:
    """Print directions and smiles against MediaPipe's, and backdrops and light against what pictures were made with."""
    sys.path.insert(0, str(DATA))
    from measure import POINTS, column
    from pictures import make_variant
    from store import Store

    store = Store(home)
    known, pixels, mattes = np.array(store.array("measures")), store.array("pixels"), store.array("alpha")
    rows = np.flatnonzero(np.isfinite(column(known, "yaw")))
    rows = rows[:: max(1, len(rows) // count)]
    seen = {str(row): one for row in rows if (one := seen_in(np.array(pixels[row])))}
    at = known[[int(row) for row in seen]]
    yaw = column(at, "yaw")
    for name, values in (
        ("traits.head_pose", [traits.head_pose(s.marks)[0] for s in seen.values()]),
        ("nose's offset", [nose_offset(s) for s in seen.values()]),
    ):
        slope, start = np.polyfit(values, yaw, 1)
        off = yaw - slope * np.array(values) - start
        print(f"  {name:<16} correlation {np.corrcoef(values, yaw)[0, 1]:.4f}, {off.std():.2f} degrees off a line")
    smiles = (column(at, "mouthSmileLeft") + column(at, "mouthSmileRight")) / 2
    sure = (smiles > 0.6) | ((smiles < 0.14) & (column(at, "jawOpen") < 0.2))
    print_smiles({n: s for (n, s), is_sure in zip(seen.items(), sure, strict=True) if is_sure}, smiles[sure] > 0.6)
    whole = (column(known, "matte_face") > 0.97) & (column(known, "matte_corners") < 0.03)
    points, rng = np.stack([column(known, name) for name in POINTS], 1).reshape(-1, 5, 2), np.random.default_rng(7)
    made = [make_variant(np.array(pixels[i]), np.array(mattes[i]), points[i], 256, rng, composite=1.0)
            for i in np.flatnonzero(np.isfinite(column(known, "yaw")) & whole)[:600]]  # fmt: skip
    truth = [{words: colour for colour, words in captions.BACKDROPS.items()}.get(one.backdrop, "") for one in made]
    ways = {
        "adherence": lambda image: traits.background(image).colour, "adherence before": backdrop_by_lab,
        "captions": captions.backdrop, "captions before": backdrop_by_rgb,
    }  # fmt: skip
    for name, way in ways.items():
        words = [
            next((c for c, w in captions.BACKDROPS.items() if w == said), said)
            for said in (way(m.pixels) for m in made)
        ]
        right = [word == true for word, true in zip(words, truth, strict=True)]
        named = sum(word != "" for word in words)
        wrong = sum(word != "" and not is_right for word, is_right in zip(words, right, strict=True))
        print(f"  {name:<17} right {np.mean(right):.1%} of {len(made)}; a colour named {named} times, {wrong} wrong")
    dim = np.array([one.light == "dim lighting" for one in made])
    aligned = [recognition.align_face(one.pixels, one.points, measures.FACE_PX) for one in made]
    bright = np.array([traits.brightness(face) for face in aligned])
    now = np.array([traits.is_dim(b, traits.highlights(m.pixels)) for b, m in zip(bright, made, strict=True)])
    for name, flags in (("traits.is_dim", now), ("coverage before", bright < 60)):
        print(
            f"  {name:<16} finds {(flags & dim).sum()} of {dim.sum()} dim pictures, and {(flags & ~dim).sum()} others"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("london", type=Path)
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--count", type=int, default=480)
    args = parser.parse_args()
    people = {}
    for file in sorted(args.london.glob("*.jpg")):
        with Image.open(file) as picture:
            people[file.stem] = seen_in(np.asarray(picture.convert("RGB")))
    print("smile, by label")
    print_smiles(people, np.array(["smiling" in name for name in people]))
    print("head direction: portraits that look aside, by traits.ASIDE_DEG")
    print(" ", sum(bool(traits.side_of(traits.head_pose(s.marks)[0], traits.ASIDE_DEG)) for s in people.values()))
    print("background: a light grey wall")
    for name, way in (("traits", lambda image: traits.background(image).colour), ("by RGB", backdrop_by_rgb),
                      ("adherence before", backdrop_by_lab)):  # fmt: skip
        print(f"  {name:<16}", sum(way(s.pixels) == "grey" for s in people.values()), "of", len(people), "grey")
    print("side light, a ramp of 0.7 to 1.3 over the face")
    print_light(people)
    print("clothes")
    print_clothes(people)
    if args.faces:
        print("generated faces")
        print_generated(args.count, args.faces)


if __name__ == "__main__":
    main()
