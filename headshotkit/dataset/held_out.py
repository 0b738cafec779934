"""Choose the photos that are kept out of training, so that headshots can be compared with photos the LoRA never saw.

Pure functions over the check's measurements; no picture is opened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

import numpy as np

from headshotkit.core.records import Verdict
from headshotkit.photos.coverage import FIXED, quality, shown_by
from headshotkit.photos.selection import WEIGHTS

LEAST_KEPT = 8
"""Fewest kept photos of which any is held out: training needs every one of a smaller set."""
MANY_KEPT = 15
"""Number of kept photos from which three are held out, not two: a fifth at most."""
TYPICAL = 0.25
"""Quantile of identity and of quality below which a photo is not typical of the person."""
LEAST_LEFT = 2
"""Number of training photos that must still show each pose, expression, light and framing of a photo held out."""
DAY_WEIGHT = 0.7
"""Value of another day, next to the weights of the other traits in `selection.WEIGHTS`."""


def number_held_out(kept: int, wanted: int | str = "auto") -> int:
    """Return how many of the kept photos are held out.

    >>> [number_held_out(kept) for kept in (7, 8, 14, 15)], number_held_out(7, 2), number_held_out(20, 1)
    ([0, 2, 2, 3], 0, 1)
    """
    if kept < LEAST_KEPT:
        return 0
    return (3 if kept >= MANY_KEPT else 2) if wanted == "auto" else int(wanted)


def hold_out(kept: list[Verdict], count: int, needed: Collection[str] = ()) -> list[str]:
    """Choose up to `count` photos: typical ones that differ from each other, and that the training misses least.

    Each time the photo is taken for which the value of the held-out photos rises most above what the rest loses. The
    value of a set is the sum over all values c of all traits of the trait's weight * sqrt(number of photos that show
    c), as in `selection.choose_photos`, with the day of the photo as one more trait. So a pose that many photos show is
    taken before one that few show, and a second photo with the same light, background, clothes or day after others.

    Never taken: a photo that shares its scene with another one, which is nearly the same picture; one whose identity or
    quality is in the lowest quarter; one without which fewer than LEAST_LEFT photos show its pose, expression, light or
    framing, such as the only profile or smile; those that are needed.

    Args:
        kept: verdicts on all kept photos.
        needed: names of photos that have to be trained on.
    Returns: their names, fewer if fewer qualify. Equal photos are taken by name.
    """
    kept = sorted(kept, key=lambda verdict: verdict.photo)
    shown = [traits | {"day": _day(v)} for v, traits in zip(kept, shown_by(kept), strict=True)]
    free = [index for index, fits in enumerate(_typical(kept)) if fits and kept[index].photo not in needed]
    trained, held = Counter(), Counter()
    for traits in shown:
        trained.update(traits.items())
    chosen: list[int] = []
    while len(chosen) < count:
        able = [i for i in free if all(trained[p] > LEAST_LEFT for p in shown[i].items() if p[0] in FIXED and p[1])]
        if not able:
            break
        best = max(able, key=lambda i: (round(_gain(shown[i], held) - _loss(shown[i], trained), 9), -i))
        trained.subtract(shown[best].items())
        held.update(shown[best].items())
        free.remove(best)
        chosen.append(best)
    return [kept[index].photo for index in sorted(chosen)]


def _typical(kept: list[Verdict]) -> list[bool]:
    """Return which photos are the only one of their scene and not in the lowest quarter of identity or quality."""
    scenes = Counter(v.measures.get("moment") for v in kept)
    alone = np.array([v.measures.get("moment") is None or scenes[v.measures["moment"]] == 1 for v in kept], bool)
    for values in ([v.measures.get("identity") for v in kept], [quality(v.measures) for v in kept]):
        there = [value for value in values if value is not None]
        if there:
            limit = np.quantile(there, TYPICAL)
            alone &= np.array([value is not None and value >= limit for value in values])
    return alone.tolist()


def _day(verdict: Verdict) -> str | None:
    """Return the day on which a photo was taken; None if it is not known."""
    return (verdict.measures.get("taken_at") or "")[:10] or None


def _gain(traits: dict, held: Counter) -> float:
    """Return how much a photo adds to the value of the held-out photos."""
    known = [(axis, value) for axis, value in traits.items() if value]
    return sum(_weight(pair[0]) * (math.sqrt(held[pair] + 1) - math.sqrt(held[pair])) for pair in known)


def _loss(traits: dict, trained: Counter) -> float:
    """Return how much the training photos lose in value without a photo of theirs."""
    known = [(axis, value) for axis, value in traits.items() if value]
    return sum(_weight(pair[0]) * (math.sqrt(trained[pair]) - math.sqrt(trained[pair] - 1)) for pair in known)


def _weight(axis: str) -> float:
    """Return the weight of a trait; the choice of photos calls the pose a turn."""
    return DAY_WEIGHT if axis == "day" else WEIGHTS["turn" if axis == "pose" else axis]
