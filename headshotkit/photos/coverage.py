"""What a set of photos covers: pose, expression, light, framing, background, clothes; and which share a scene.

Pure functions over the gate's measurements (`Verdict.measures`); no picture is opened. A photo without a measure counts
for no value of that axis.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from headshotkit.core.records import Record, Verdict, stored_as

TURNED_DEG, RAISED_DEG = 15.0, 20.0
"""Yaw and pitch from which a face is turned or raised; half profile is about 30 to 45. Pitch is less exact."""
SMILE = 0.5
"""`landmarks.smile` from which a face counts as smiling, in a photo and in a headshot."""
ONE_SIDED = 0.75
"""Share of the photos above which they cover effectively one value of an axis, such as one background."""
SIDE_LIGHT = 0.15
"""Difference between the face's halves from which the light comes from the side."""
DIM_LUMA, HARD_CLIPPED = 60.0, 0.15
"""Median luma of a face below which the light is dim; fraction of pure white skin above which it is hard."""
DIM_SHARE, SURELY_DIM_LUMA, LEAST_OWN = 0.5, 48.0, 3
"""A face is dim below DIM_SHARE of the person's own well-lit luma, because dark skin is not dim light, and always below
SURELY_DIM_LUMA. With fewer than LEAST_OWN photos, DIM_LUMA is the limit."""
CLOSE_UP, HALF_BODY = 0.55, 0.3
"""Face height over the photo's shorter side: above, a close-up; below, half of the body is visible."""
BUSY_STD = 6.0
"""Standard deviation of L in the upper corners, around a fitted plane, above which a background is busy."""
SAME_COLOUR = 12.0
"""Largest CIELAB distance, with lightness at half weight, between things that count as one colour."""
SAME_ANGLE_DEG, SAME_SCENE_COSINE, SAME_SCENE_S = 8.0, 0.85, 60.0
"""Largest difference in pose, least cosine, and largest time difference of two photos of one scene."""

POSES = ("left", "front", "right", "up or down")
EXPRESSIONS = ("neutral", "smiling")
FIXED = {
    "pose": POSES,
    "expression": EXPRESSIONS,
    "light": ("soft", "from the left", "from the right", "dim or hard"),
    "framing": ("face fills the frame", "head and shoulders", "half body"),
}
AXES = (*FIXED, "background", "clothes")
"""Axes in which photos differ. The first four have fixed values; backgrounds and clothes are clustered by colour."""


@dataclass(frozen=True)
class Axis(Record):
    """Number of scenes for each value of one axis; `most` is the most frequent value, `share` its part, in [0, 1]."""

    name: str
    values: tuple[str, ...]
    scenes: tuple[int, ...] = stored_as("moments")
    most: str
    share: float

    def count(self, value: str) -> int:
        return dict(zip(self.values, self.scenes, strict=True)).get(value, 0)


@dataclass(frozen=True)
class Coverage(Record):
    """What the kept photos cover. `grid` counts scenes: rows are POSES, columns EXPRESSIONS."""

    photos: int
    scenes: int = stored_as("moments")
    axes: tuple[Axis, ...]
    grid: tuple[tuple[int, ...], ...]

    def axis(self, name: str) -> Axis:
        return next(axis for axis in self.axes if axis.name == name)


def coverage(verdicts: list[Verdict]) -> Coverage:
    """Count what the kept photos cover. Photos of one scene count once, by the best of them."""
    kept = [v for v in verdicts if v.kept]
    best = [members[0] for members in by_scene(kept)]
    shown = traits(kept)
    axes = []
    for name in AXES:
        counts = Counter(shown[i][name] for i in best if shown[i][name])
        values = FIXED.get(name) or tuple(value for value, _ in counts.most_common())
        most, top = counts.most_common(1)[0] if counts else ("", 0)
        share = round(top / max(1, counts.total()), 3)
        axes.append(Axis(name, values, tuple(counts[v] for v in values), most, share))
    pairs = Counter((shown[i]["pose"], shown[i]["expression"]) for i in best)
    grid = tuple(tuple(pairs[pose, expression] for expression in EXPRESSIONS) for pose in POSES)
    return Coverage(len(kept), len(best), tuple(axes), grid)


def quality(measures: dict) -> float:
    """Return a photo's quality, in [0.05, 1]; higher is better. The gate's, else from sharpness and face size."""
    value = measures.get("quality")
    if value is None:
        sharp = np.clip((measures.get("sharpness", 5.0) - 5) / 10, 0, 1)
        large = np.clip((measures.get("face_px", 90) - 90) / 310, 0, 1)
        value = math.sqrt(sharp * large)
    return float(np.clip(value, 0.05, 1))


def by_scene(verdicts: list[Verdict]) -> list[list[int]]:
    """Return the indices of each scene's photos, best photo first; a photo of unknown scene forms its own."""
    groups = defaultdict(list)
    for index, verdict in enumerate(verdicts):
        scene = verdict.measures.get("moment")
        groups[("own", index) if scene is None else scene].append(index)
    return [sorted(g, key=lambda i: (-quality(verdicts[i].measures), verdicts[i].photo)) for g in groups.values()]


# --- the axes -----------------------------------------------------------------------------------------------------


def traits(verdicts: list[Verdict]) -> list[dict[str, str | None]]:
    """Return each photo's value on each of AXES, None if not measured. Clusters are formed among these photos."""
    measures = [v.measures for v in verdicts]
    backgrounds, clothes, dim = _backgrounds(measures), _clothes(measures), _dim_luma(measures)
    return [
        {
            "pose": _pose(m), "expression": _expression(m), "light": _light(m, dim), "framing": _framing(m),
            "background": background, "clothes": worn,
        }
        for m, background, worn in zip(measures, backgrounds, clothes, strict=True)
    ]  # fmt: skip


def _pose(m: dict) -> str | None:
    yaw, pitch = m.get("yaw_deg"), m.get("pitch_deg") or 0.0
    if yaw is None:
        return None
    if abs(yaw) >= TURNED_DEG:
        return "left" if yaw < 0 else "right"
    return "up or down" if abs(pitch) >= RAISED_DEG else "front"


def _expression(m: dict) -> str | None:
    smile = m.get("smile")
    return None if smile is None else "smiling" if smile >= SMILE else "neutral"


def _dim_luma(measures: list[dict]) -> float:
    """Return the luma below which this person's face is in dim light."""
    own = [m["brightness"] for m in measures if m.get("brightness") is not None]
    if len(own) < LEAST_OWN:
        return DIM_LUMA
    return float(np.clip(DIM_SHARE * np.percentile(own, 75), SURELY_DIM_LUMA, DIM_LUMA))


def _light(m: dict, dim: float) -> str | None:
    side, luma = m.get("light_side"), m.get("brightness")
    if side is None or luma is None:
        return None
    if luma < dim or m.get("clipped", 0.0) > HARD_CLIPPED:
        return "dim or hard"
    return "soft" if abs(side) <= SIDE_LIGHT else "from the right" if side > 0 else "from the left"


def _framing(m: dict) -> str | None:
    part = m.get("face_fraction")
    if part is None:
        return None
    close, middle, wide = FIXED["framing"]
    return close if part > CLOSE_UP else wide if part < HALF_BODY else middle


def _backgrounds(measures: list[dict]) -> list[str | None]:
    """Name each photo's background: plain or busy, and its colour."""
    busy = np.array([(m.get("backdrop_busy") or 0.0) > BUSY_STD for m in measures], bool)
    names: list[str | None] = [None] * len(measures)
    for kind in (False, True):
        indices = [i for i, m in enumerate(measures) if m.get("backdrop_lab") and busy[i] == kind]
        found = _colours([measures[i]["backdrop_lab"] for i in indices])
        for i, name in zip(indices, found, strict=True):
            names[i] = f"{'busy' if kind else 'plain'} {name}"
    return names


def _clothes(measures: list[dict]) -> list[str | None]:
    """Name the colour of the clothes in each photo."""
    indices = [i for i, m in enumerate(measures) if m.get("clothes_lab")]
    found = dict(zip(indices, _colours([measures[i]["clothes_lab"] for i in indices]), strict=True))
    return [found.get(i) for i in range(len(measures))]


def _colours(labs: list) -> list[str]:
    """Name the cluster of each CIELAB colour by its most frequent colour name. Clusters of one name are merged."""
    if not labs:
        return []
    labels = clusters(colour_distances(np.array(labs, float)) <= SAME_COLOUR).tolist()
    called = defaultdict(Counter)
    for label, lab in zip(labels, labs, strict=True):
        called[label][colour_name(lab)] += 1
    return [called[label].most_common(1)[0][0] for label in labels]


def colour_distances(labs: np.ndarray) -> np.ndarray:
    """Compute distances of CIELAB colours, shape (N, 3) -> (N, N); lightness, which light changes, at half weight."""
    weighted = labs * [0.5, 1, 1]
    return np.linalg.norm(weighted[:, None] - weighted[None], axis=-1)


def colour_name(lab) -> str:
    """Return a plain word for a CIELAB colour (L in [0, 100], D65).

    >>> [colour_name(lab) for lab in ([95, 0, 0], [55, 2, 1], [15, 1, 2], [40, 10, -40], [45, 60, 40])]
    ['white', 'grey', 'black', 'blue', 'red']
    """
    light, a, b = lab
    chroma, hue = math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360
    if chroma < (20 if light < 18 else 10):
        return "black" if light < 25 else "dark grey" if light < 45 else "grey" if light < 82 else "white"
    if chroma < 28 and 40 <= hue < 115 and light >= 45:
        return "beige"
    limits = ((20, "pink"), (52, "red"), (80, "orange"), (112, "yellow"), (180, "green"), (225, "turquoise"))
    name = next((word for limit, word in (*limits, (312, "blue"), (345, "purple")) if hue < limit), "pink")
    if name == "pink" and (light < 60 or chroma > 60):
        name = "red" if hue < 20 else "purple"
    elif name == "red" and light > 68 and chroma < 45:
        name = "pink"
    elif (name == "orange" and light < 55) or (name == "red" and light < 55 and chroma < 30):
        name = "brown"
    return name if name == "brown" else f"dark {name}" if light < 30 else f"light {name}" if light > 78 else name


def clusters(near: np.ndarray) -> np.ndarray:
    """Cluster greedily: the item with most free neighbours forms a cluster with them, and so on.

    A chain of close items does not join two far ends. Ties go to the first.

    Args:
        near: which pairs are neighbours, bool, symmetric, shape (N, N).
    Returns: int, shape (N,); numbered from 0 in order of each group's first member.
    Source: Daura et al. 1999, Peptide folding (the GROMOS clustering).
    """
    near = np.asarray(near, np.float32)
    labels = np.full(len(near), -1)
    while (labels < 0).any():
        free = labels < 0
        centre = int(np.argmax(np.where(free, near @ free, -1)))
        labels[free & (near[centre] > 0)] = labels[centre] = labels.max() + 1
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], int)


# --- scenes -------------------------------------------------------------------------------------------------------


def scenes(measures: list[dict], embeddings: np.ndarray) -> list[int]:
    """Group photos of one scene: a burst, or the same pose held for the same camera.

    Two photos share a scene if yaw, pitch and roll differ by at most SAME_ANGLE_DEG, background and clothes have the
    same colours, their faces' cosine is above SAME_SCENE_COSINE, and they were taken at most SAME_SCENE_S apart, if
    both times are known. A background or clothes measured in only one of them are ignored.

    Args:
        measures: of N photos.
        embeddings: ArcFace, shape (N, 512), L2 norm 1.
    Returns: N numbers from 0; equal ones are one scene.
    """
    if not measures:
        return []
    near = embeddings @ embeddings.T > SAME_SCENE_COSINE
    for name in ("yaw_deg", "pitch_deg", "roll_deg"):
        near &= _at_most([m.get(name) for m in measures], SAME_ANGLE_DEG)
    near &= _at_most([_seconds(m.get("taken_at")) for m in measures], SAME_SCENE_S)
    for name in ("backdrop_lab", "clothes_lab"):
        colours = np.array([m.get(name) or [np.nan] * 3 for m in measures], float)
        near &= ~(colour_distances(colours) > SAME_COLOUR)
    np.fill_diagonal(near, True)
    return clusters(near).tolist()


def _at_most(values: list, limit: float) -> np.ndarray:
    """Return which pairs differ by at most `limit`, or can't be compared because one is None; bool, shape (N, N)."""
    known = np.array([np.nan if value is None else value for value in values], float)
    return ~(np.abs(known[:, None] - known[None]) > limit)


def _seconds(taken_at: str | None) -> float | None:
    """Convert an ISO date and time to seconds, for differences only; None if it is not valid."""
    try:
        return (datetime.fromisoformat(taken_at).replace(tzinfo=None) - datetime(2000, 1, 1)).total_seconds()
    except (TypeError, ValueError):
        return None
