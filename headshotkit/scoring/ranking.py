"""Which headshots are delivered, and in which order: identity first, then quality and the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from headshotkit.core.records import Headshot

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

    In the order of delivery: the accepted ones first, the best of them in front, whichever prompts they are of.

    >>> a, b, c = (Headshot(f, f[0], "", "", 0, 1, 1.0, i, i > 0.5) for f, i in (("a1", 0.6), ("a2", 0.7), ("b1", 0.1)))
    >>> [h.file for h in choose_headshots([a, b, c], 2)]
    ['a2', 'a1']
    """
    best = best_of_each(headshots)
    chosen = {h.file for h in best}
    further = sorted((h for h in headshots if h.accepted and h.file not in chosen), key=merit, reverse=True)
    choice = [*(h for h in best if h.accepted), *further, *(h for h in best if not h.accepted)][:count]
    return sorted(choice, key=merit, reverse=True)


def merit(shot: Headshot) -> tuple[bool, float]:
    """By what headshots are ordered: accepted ones before others, then likeness, a little of quality and of obedience.

    Likeness beyond that of the own photos' median counts no more: it is then as alike as a photo.
    """
    if shot.identity is None:
        return shot.accepted, -2.0
    likeness = shot.identity if shot.likeness is None else min(shot.likeness, 1.0)
    obeyed = 1.0 if shot.obeyed is None else shot.obeyed
    return shot.accepted, likeness + QUALITY_WEIGHT * (shot.quality or 0.0) + OBEYED_WEIGHT * obeyed
