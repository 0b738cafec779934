"""Counts what the photo gate refuses in low light, by skin tone: is a dark skin refused where a light one is not?

    python tests/benchmarks/skin_tones.py FOLDER [--stops 1 2 2.5 3] [--every 1]

FOLDER holds portraits named <person>_<anything>.jpg, such as the Face Research Lab London Set. Each is dimmed by stops
of exposure in linear light, saved as JPEG, and judged on its own. People are put into thirds by their individual
typology angle (ITA) as photographed: atan((L - 50) / b) on the cheeks, CIELAB. ArcFace knows a dimmed portrait if its
cosine to the original is above 0.9.

Prints one row for each exposure and third, and the largest difference of refusals between thirds among known portraits.
Source: Chardon et al. 1991, Skin colour typology (ITA).
The result is in tests/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import CheckConfig
from headshotkit.faces import measures, recognition, traits
from headshotkit.photos import assess
from headshotkit.photos.colour import srgb_curve
from headshotkit.photos.files import Opened, open_photo

KNOWN = 0.9
THIRDS = ("lightest", "middle", "darkest")
CHEEKS = ((0.55, 0.68, 0.24, 0.38), (0.55, 0.68, 0.62, 0.76))


def dimmed(image: np.ndarray, stops: float) -> np.ndarray:
    """Return a portrait with less light, as a JPEG of quality 95 holds it.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    if not stops:
        return image
    light = srgb_curve(image / 255) * 2.0**-stops
    coded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    buffer = io.BytesIO()
    Image.fromarray((coded.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return np.asarray(Image.open(buffer))


def typology_angle(image: np.ndarray) -> float:
    """Return the ITA of the cheeks, degrees; above 55 is very light, below -30 dark."""
    face = recognition.detect_faces(image)[0]
    aligned = recognition.align_face(image, face.points, measures.FACE_PX)
    light, _, blue = np.median(traits.to_lab(np.concatenate([measures._patch(aligned, *c) for c in CHEEKS])), 0)
    return float(np.degrees(np.arctan2(light - 50, blue)))


def thirds_of(angles: dict[str, list[float]]) -> dict[str, int]:
    """Return which third each person belongs to, by the mean of their portraits: 0 is the lightest."""
    order = sorted(angles, key=lambda person: -np.mean(angles[person]))
    return {person: min(2, 3 * place // len(order)) for place, person in enumerate(order)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stops", type=float, nargs="+", default=[1, 2, 2.5, 3])
    parser.add_argument("--every", type=int, default=1, help="take every n-th portrait only")
    args = parser.parse_args()
    paths, config = sorted(args.folder.glob("*.jpg"))[:: args.every], CheckConfig()
    angles, rows = defaultdict(list), []
    for path in paths:
        image, person = open_photo(path, assess.LEAST_PX).pixels, path.name.split("_")[0]
        angles[person].append(typology_angle(image))
        original = None
        for stops in (0.0, *args.stops):
            seen = dimmed(image, stops)
            measured = assess.measure_photo(Opened(seen, seen.shape[1], seen.shape[0], 1.0, None))
            original = measured.embedding if original is None else original
            cosine = -1.0 if measured.embedding is None else float(measured.embedding @ original)
            codes = [reason.code for reason in assess.reasons_against(measured.measures, config)]
            rows.append((person, stops, codes, cosine))
    thirds, gap = thirds_of(angles), 0.0
    spans = [[np.mean(angles[p]) for p in thirds if thirds[p] == third] for third in range(3)]
    for name, span in zip(THIRDS, spans, strict=True):
        print(f"{name}: {len(span)} people, ITA {max(span):.0f} to {min(span):.0f}")
    print("stops  third     portraits  refused  known  refused of these  cosine: median, least  reasons")
    for stops in (0.0, *args.stops):
        shares = []
        for third, name in enumerate(THIRDS):
            own = [row for row in rows if row[1] == stops and thirds[row[0]] == third]
            known = [row for row in own if row[3] > KNOWN]
            refused = sum(bool(row[2]) for row in known)
            shares.append(refused / max(1, len(known)))
            why = ", ".join(f"{n} {code}" for code, n in Counter(row[2][0] for row in own if row[2]).most_common())
            cosines = [row[3] for row in own]
            row = f"{stops:>5g}  {name:<9} {len(own):>9} {sum(bool(r[2]) for r in own):>8} {len(known):>6}"
            row += f" {refused:>6} = {shares[-1]:>5.1%}    {np.median(cosines):>10.3f}, {min(cosines):.3f}  {why}"
            print(row.rstrip())
        gap = max(gap, max(shares) - min(shares))
    print(f"largest difference between thirds among known portraits: {100 * gap:.1f} points")


if __name__ == "__main__":
    main()
