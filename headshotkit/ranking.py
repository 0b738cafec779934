"""Which headshots are delivered, and in which order: identity first, then quality and the prompt; no twins in front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.records import Headshot

FIRST = 10
"""So many of the first must not be near-twins of each other."""
LOOK_PX = 32
TWINS = 0.95
"""From this correlation of two small grey pictures on they are near-twins; 828 pairs of different prompts on the
embedded base, of one person each, had at most 0.948 (2026-11-20)."""
QUALITY_WEIGHT = 0.25
"""What the face's quality counts beside its likeness, both about 0 to 1."""
OBEYED_WEIGHT = 0.15
"""What the share of the prompt that is shown counts beside them; what asks nothing that can be told has all of it."""


def best_of_each(headshots: Sequence[Headshot]) -> list[Headshot]:
    """The best attempt of each prompt: an accepted one before any other, then the better one; best first."""
    best: dict[str, Headshot] = {}
    for shot in headshots:
        if shot.prompt_id not in best or merit(shot) > merit(best[shot.prompt_id]):
            best[shot.prompt_id] = shot
    return sorted(best.values(), key=merit, reverse=True)


def choose_headshots(headshots: Sequence[Headshot], count: int) -> list[Headshot]:
    """At most `count`: an accepted one of each prompt, then further accepted ones, then the best of what did not pass.

    >>> a, b, c = (Headshot(f, f[0], "", "", 0, 1, 1.0, i, i > 0.5) for f, i in (("a1", 0.6), ("a2", 0.7), ("b1", 0.1)))
    >>> [h.file for h in choose_headshots([a, b, c], 2)]
    ['a2', 'a1']
    """
    best = best_of_each(headshots)
    chosen = {h.file for h in best}
    further = sorted((h for h in headshots if h.accepted and h.file not in chosen), key=merit, reverse=True)
    return [*(h for h in best if h.accepted), *further, *(h for h in best if not h.accepted)][:count]


def merit(shot: Headshot) -> tuple[bool, float]:
    """By what headshots are ordered: accepted ones before others, then likeness, a little of quality and of obedience.

    Likeness beyond that of the own photos' median counts no more: it is then as alike as a photo.
    """
    if shot.identity is None:
        return shot.accepted, -2.0
    likeness = shot.identity if shot.likeness is None else min(shot.likeness, 1.0)
    obeyed = 1.0 if shot.obeyed is None else shot.obeyed
    return shot.accepted, likeness + QUALITY_WEIGHT * (shot.quality or 0.0) + OBEYED_WEIGHT * obeyed


def rank_headshots(headshots: Sequence[Headshot], folder: Path) -> list[Headshot]:
    """Best first, without near-twins among the first FIRST accepted ones as far as there are others.

    Args:
        folder: where their pictures are.
    """
    ordered = sorted(headshots, key=merit, reverse=True)
    accepted = [h for h in ordered if h.accepted]
    looks = {h.file: small_look(folder / h.file) for h in accepted}
    first: list[Headshot] = []
    while len(first) < min(FIRST, len(accepted)):
        left = [h for h in accepted if h not in first]
        alike = [max((float((looks[h.file] * looks[f.file]).mean()) for f in first), default=-1.0) for h in left]
        single = [h for h, value in zip(left, alike, strict=True) if value < TWINS]
        first.append(single[0] if single else left[int(np.argmin(alike))])
    return [*first, *(h for h in ordered if h not in first)]


def small_look(path: Path) -> np.ndarray:
    """A picture in small, grey, of mean 0 and standard deviation 1, float32, shape (LOOK_PX, LOOK_PX).

    The mean product of two is their correlation.
    """
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L").resize((LOOK_PX, LOOK_PX), Image.Resampling.BOX), np.float32)
    return (grey - grey.mean()) / max(float(grey.std()), 1e-6)
