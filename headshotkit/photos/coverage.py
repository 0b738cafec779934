"""What a set of photos covers: pose, expression, light, framing, background, clothes; and which share a scene.

Pure functions over the gate's measurements (`Verdict.measures`, from `faces.traits`); no picture is opened. A photo
without a measure counts for no value of that axis.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from headshotkit.core.records import Record, Verdict, stored_as
from headshotkit.faces import traits

ONE_SIDED = 0.75
"""Share of the photos above which they cover effectively one value of an axis, such as one background."""
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
    shown = shown_by(kept)
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


def shown_by(verdicts: list[Verdict]) -> list[dict[str, str | None]]:
    """Return each photo's value on each of AXES, None if not measured. Clusters are formed among these photos."""
    measures = [v.measures for v in verdicts]
    backgrounds = _backgrounds(measures)
    clothes = _colours([m.get("clothes_lab") for m in measures])
    return [
        {
            "pose": _pose(m),
            "expression": None if (smile := m.get("smile")) is None else EXPRESSIONS[smile >= traits.SMILE],
            "light": _light(m),
            "framing": _framing(m),
            "background": background,
            "clothes": worn,
        }
        for m, background, worn in zip(measures, backgrounds, clothes, strict=True)
    ]


def _pose(m: dict) -> str | None:
    yaw, pitch = m.get("yaw_deg"), m.get("pitch_deg") or 0.0
    if yaw is None:
        return None
    return traits.side_of(yaw, traits.HALF_TURNED_DEG) or ("up or down" if abs(pitch) >= traits.RAISED_DEG else "front")


def _light(m: dict) -> str | None:
    side, luma = m.get("light_side"), m.get("brightness")
    if side is None or luma is None:
        return None
    if traits.is_dim(luma, m.get("highlights")) or m.get("clipped", 0.0) > traits.HARD_CLIPPED:
        return "dim or hard"
    return "soft" if abs(side) <= traits.SIDE_LIGHT else "from the right" if side > 0 else "from the left"


def _framing(m: dict) -> str | None:
    """Return the framing; runs of earlier versions noted the face relative to the photo's shorter side only."""
    part = m.get("face_height", m.get("face_fraction"))
    if part is None:
        return None
    close, middle, wide = FIXED["framing"]
    return close if part > traits.CLOSE_UP else wide if part < traits.HEAD_AND_SHOULDERS else middle


def _backgrounds(measures: list[dict]) -> list[str | None]:
    """Name each photo's background: plain or busy, and its colour."""
    names: dict[int, str] = {}
    for kind, is_busy in (("plain", False), ("busy", True)):
        same = [i for i, m in enumerate(measures) if ((m.get("backdrop_busy") or 0.0) > traits.BUSY_STD) == is_busy]
        colours = _colours([measures[i].get("backdrop_lab") for i in same])
        names |= {i: f"{kind} {colour}" for i, colour in zip(same, colours, strict=True) if colour}
    return [names.get(i) for i in range(len(measures))]


def _colours(labs: list) -> list[str | None]:
    """Name the cluster of each CIELAB colour by its most frequent colour name. Clusters of one name are merged."""
    known = [i for i, lab in enumerate(labs) if lab]
    if not known:
        return [None] * len(labs)
    near = traits.colour_distances(np.array([labs[i] for i in known], float)) <= traits.SAME_COLOUR
    labels = dict(zip(known, clusters(near).tolist(), strict=True))
    called = defaultdict(Counter)
    for i, label in labels.items():
        called[label][traits.colour_name(labs[i])] += 1
    return [called[labels[i]].most_common(1)[0][0] if i in labels else None for i in range(len(labs))]


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
        near &= ~(traits.colour_distances(colours) > traits.SAME_COLOUR)
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
