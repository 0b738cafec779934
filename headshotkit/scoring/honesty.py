"""Tell whether headshots flatter: age, skin tone, eye colour, face width and glasses against the person's own photos.

A recogniser passes a face that is younger, lighter or slimmer. Each measure here compares a picture with the person's
photos, and each photo with the other photos: how far these differ is the natural spread. MEASURES is the registry: a
new measure is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from headshotkit.core import runtime
from headshotkit.core.run import Run
from headshotkit.faces import age, colours, landmarks, measures, recognition, skin, traits
from headshotkit.photos.files import read_photo
from headshotkit.photos.kept import kept_faces
from headshotkit.scoring.bootstrap import BOOTSTRAPS

SPREAD = 2.5
"""Number of standard deviations from the own photos' mean that still count as the person's natural spread."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
"""Weights of linear red, green and blue in luminance (ITU-R BT.709)."""
LEAST_PHOTOS = 5
"""Fewest own photos of which a spread is measured."""


@dataclass(frozen=True)
class Look:
    """What one picture shows of the face; None where it can't be measured.

    age: apparent, years · skin, white: luminance of the skin and of the eyes' whites, in [0, 1] · yellow: b of the skin
    (CIELAB) · eyes: a and b of the irises (CIELAB) · width: of the face relative to its height · spectacles: as
    `measures.spectacles`.
    """

    width: float
    spectacles: float
    skin: float
    yellow: float
    white: float | None = None
    eyes: tuple[float, float] | None = None
    age: float | None = None


def look_at(image: np.ndarray, face: recognition.Face) -> Look:
    """Measure a face.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    marks, aligned = recognition.landmarks_106(image, face), skin.aligned_skin(image, face)
    iris, white = colours.iris_colour(image, marks), colours.eye_white(image, marks)
    return Look(
        width=landmarks.face_width(marks),
        spectacles=measures.spectacles(recognition.align_face(image, face.points, measures.FACE_PX)),
        skin=_luminance(skin.tone_rgb(aligned)),
        yellow=float(skin.tone(aligned)[2]),
        white=None if white is None else _luminance(white),
        eyes=None if iris is None else (float(iris[1]), float(iris[2])),
        age=age.apparent_age(image, marks) if age.missing() is None else None,
    )


def _luminance(rgb: np.ndarray) -> float:
    return max(float(traits.linear(rgb) @ LUMINANCE), 1e-3)


# --- the registry -------------------------------------------------------------------------------------------------


def older(look: Look, others: Sequence[Look]) -> float | None:
    """Return by how many years a face looks older than in the other pictures (median)."""
    return _above_median(look.age, [other.age for other in others])


def lighter(look: Look, others: Sequence[Look]) -> float | None:
    """Return by how many degrees of the individual typology angle the skin is lighter than in the other pictures.

    The angle is arctan((L - 50) / b). Light changes both from photo to photo more than skins differ. So L is the skin's
    in light in which the eyes' whites are as bright as in the other pictures, and b is their median.

    Source: Chardon et al. 1991, Skin colour typology and suntanning pathways.
    """
    known = [other for other in others if other.white is not None]
    if look.white is None or not known:
        return None
    white, yellow = (float(np.median([getattr(one, name) for one in known])) for name in ("white", "yellow"))
    light = np.array([116 * np.cbrt(one.skin / one.white * white) - 16 for one in (look, *known)])
    angles = np.degrees(np.arctan2(light - 50, max(yellow, 1.0)))
    return float(angles[0] - np.median(angles[1:]))


def other_eyes(look: Look, others: Sequence[Look]) -> float | None:
    """Return the distance of the eyes' colour from the other pictures', in a and b of CIELAB; L follows the light."""
    known = [other.eyes for other in others if other.eyes is not None]
    if look.eyes is None or not known:
        return None
    return float(np.hypot(*(np.array(look.eyes) - np.median(known, 0))))


def wider(look: Look, others: Sequence[Look]) -> float | None:
    """Return by how many percent a face is wider, relative to its height, than in the other pictures."""
    return 100 * (look.width / float(np.median([other.width for other in others])) - 1)


def glasses(look: Look, others: Sequence[Look]) -> float | None:
    """Return how much stronger the edge on the bridge of the nose is than in the other pictures: glasses, or none."""
    return _above_median(look.spectacles, [other.spectacles for other in others])


def _above_median(value: float | None, others: Sequence[float | None]) -> float | None:
    known = [other for other in others if other is not None]
    return None if value is None or not known else float(value - np.median(known))


@dataclass(frozen=True)
class Measure:
    """A row of the registry. `more`, `less`: what a picture above or below the spread shows; empty: can't happen.

    least: distance from the mean that is always inside the spread, in the measure's unit; the measure is no finer.
    """

    name: str
    unit: str
    of: Callable[[Look, Sequence[Look]], float | None]
    more: str
    less: str
    least: float


MEASURES = (
    Measure("age", "years", older, "looks {0:.0f} years older than in your photos",
            "looks {0:.0f} years younger than in your photos", 3.0),
    Measure("skin_tone", "ITA degrees", lighter, "the skin is {0:.0f} ITA degrees lighter than in your photos",
            "the skin is {0:.0f} ITA degrees darker than in your photos", 2.0),
    Measure("eye_colour", "CIELAB steps", other_eyes,
            "the eyes are {0:.0f} CIELAB steps from their colour in your photos", "", 3.0),
    Measure("face_width", "%", wider, "the face is {0:.1f} % wider than in your photos",
            "the face is {0:.1f} % narrower than in your photos", 1.0),
    Measure("glasses", "", glasses, "glasses, unlike most of your photos", "no glasses, unlike most of your photos",
            0.5),
)  # fmt: skip


# --- the comparison -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One measure of all headshots against the own photos; differences are in `unit`.

    low, high: the natural spread · own_inside: share of the own photos inside it, each against the others · photos,
    headshots: how many could be measured · shift, shift_low, shift_high: mean of the headshots minus mean of the own
    photos, with its 95 % bootstrap interval; None with fewer than two headshots · outside: headshot -> its difference.
    """

    name: str
    unit: str
    low: float
    high: float
    own_inside: float
    photos: int
    headshots: int
    shift: float | None = None
    shift_low: float | None = None
    shift_high: float | None = None
    outside: dict[str, float] = field(default_factory=dict)

    @property
    def is_shifted(self) -> bool:
        """Return whether the headshots as a whole differ from the photos, surely."""
        return self.shift is not None and (self.shift_low > 0 or self.shift_high < 0)


def compare_looks(
    own: Sequence[Look], shots: dict[str, Look], registry: Sequence[Measure] = MEASURES
) -> tuple[list[Compared], list[str]]:
    """Compare headshots with a person's photos by every measure.

    Returns: (the measures that at least LEAST_PHOTOS own photos have, a sentence for each headshot outside a spread).
    """
    compared, sentences = [], []
    for measure in registry:
        spread = _known(measure.of(look, [*own[:n], *own[n + 1 :]]) for n, look in enumerate(own) if len(own) > 1)
        if len(spread) < LEAST_PHOTOS:
            continue
        values = {name: value for name, look in shots.items() if (value := measure.of(look, own)) is not None}
        middle, reach = float(np.mean(spread)), max(SPREAD * float(np.std(spread, ddof=1)), measure.least)
        low, high = (middle - reach if measure.less else 0.0), middle + reach
        outside = {name: round(value, 2) for name, value in values.items() if not low <= value <= high}
        inside = float(np.mean([low <= value <= high for value in spread]))
        one = Compared(measure.name, measure.unit, round(low, 2), round(high, 2), round(inside, 3), len(spread),
                       len(values), *_shift(spread, list(values.values())), outside)  # fmt: skip
        compared.append(one)
        sentences += [_sentence(measure, name, value, one) for name, value in outside.items()]
        if one.is_shifted:
            interval = f"95 % interval {one.shift_low:+.1f} to {one.shift_high:+.1f} {measure.unit}".strip()
            together = f"{len(values)} headshots together, {measure.name.replace('_', ' ')}"
            sentences.append(f"{together}: {one.shift:+.1f} next to your photos, {interval}.")
    return compared, sentences


def _known(values) -> list[float]:
    return [value for value in values if value is not None]


def _shift(own: list[float], shots: list[float], seed: int = 0) -> tuple[float | None, float | None, float | None]:
    """Return the difference of the means with its 95 % percentile-bootstrap interval, both sets drawn again."""
    if len(shots) < 2:
        return None, None, None
    rng = np.random.default_rng(seed)
    a, b = (np.array(some)[rng.integers(0, len(some), (BOOTSTRAPS, len(some)))].mean(1) for some in (own, shots))
    low, high = np.quantile(b - a, [0.025, 0.975])
    return tuple(round(float(value), 3) for value in (np.mean(shots) - np.mean(own), low, high))


def _sentence(measure: Measure, name: str, value: float, one: Compared) -> str:
    """Return what is not as in the photos, for a person."""
    words = (measure.more if value > one.high else measure.less).format(abs(value))
    spread = f"{one.low:+.1f} to {one.high:+.1f}" if measure.less else f"up to {one.high:.1f}"
    own = f"; your photos differ from each other by {spread} {measure.unit}" if measure.unit else ""
    return f"{name}: {words}{own}."


def measure_honesty(run: Run, files: Sequence[Path]) -> dict:
    """Compare headshots with all kept photos of a run, those held out too; return JSON types for metrics.json.

    A headshot without exactly one face is left out, and counted.

    Raises:
        StageMissing: the photos have not been judged.
    """
    own = [look_at(image, face) for image, face in kept_faces(run, "honesty")]
    shots = {}
    for file in runtime.progress(files, "measuring honesty"):
        image = read_photo(file)
        found = recognition.detect_faces(image)
        if len(found) == 1:
            shots[file.name] = look_at(image, found[0])
    compared, sentences = compare_looks(own, shots)
    gap = age.missing()
    missing = [] if gap is None else [f"without apparent age: {gap.happened} {gap.next_step}"]
    few = [m.name for m in MEASURES if m.name not in {one.name for one in compared} and not (m.name == "age" and gap)]
    missing += [f"without {name}: fewer than {LEAST_PHOTOS} of {len(own)} photos show it" for name in few]
    return {
        "measures": {one.name: asdict(one) for one in compared},
        "sentences": sentences,
        "faceless": len(files) - len(shots),
        "missing": missing,
    }
