"""Choose and order the headshots to deliver: identity first, then quality and prompt adherence."""

from __future__ import annotations

from collections.abc import Sequence

from headshotkit.core.records import Headshot

QUALITY_WEIGHT = 0.25
"""Weight of face quality relative to likeness, both about 0 to 1."""
ADHERENCE_WEIGHT = 0.15
"""Weight of prompt adherence relative to likeness; a prompt without a measurable request counts as fully met."""


def best_of_each(headshots: Sequence[Headshot]) -> list[Headshot]:
    """Return the best attempt of each prompt: an accepted one before any other, then the better one; best first."""
    best: dict[str, Headshot] = {}
    for shot in headshots:
        if shot.prompt_id not in best or merit(shot) > merit(best[shot.prompt_id]):
            best[shot.prompt_id] = shot
    return sorted(best.values(), key=merit, reverse=True)


def choose_headshots(headshots: Sequence[Headshot], count: int) -> list[Headshot]:
    """Return up to `count`: an accepted one per prompt, then more accepted ones, then the best that did not pass.

    They are in the order of delivery: accepted ones first, best first, whatever their prompts.

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
    """Return a sort key: accepted before not accepted, then likeness with a little quality and prompt adherence.

    Likeness above the own photos' median counts no more: it is then as similar as a photo.
    """
    if shot.identity is None:
        return shot.accepted, -2.0
    likeness = shot.identity if shot.likeness is None else min(shot.likeness, 1.0)
    adherence = 1.0 if shot.adherence is None else shot.adherence
    return shot.accepted, likeness + QUALITY_WEIGHT * (shot.quality or 0.0) + ADHERENCE_WEIGHT * adherence
