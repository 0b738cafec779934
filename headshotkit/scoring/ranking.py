"""Choose and order the headshots to deliver: identity first, then quality and prompt adherence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headshotkit.config import GenerateConfig
from headshotkit.core.records import Headshot
from headshotkit.core.results import HeadshotsResult, RestoredFace

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


def after_restoring(generated: HeadshotsResult, faces: Sequence[RestoredFace]) -> list[Headshot]:
    """Return the delivered headshots as they are after restoring, best first.

    A restored face has another identity and sharpness. If it was refused for these alone, and now reaches both limits,
    it is accepted. For all else restoring has kept no face that got worse.
    """
    restored = {face.file: face for face in faces if face.kept == "restored"}
    made = [
        _restored(shot, restored[shot.file], generated) if shot.file in restored else shot for shot in generated.best
    ]
    return sorted(made, key=merit, reverse=True)


def _restored(shot: Headshot, face: RestoredFace, generated: HeadshotsResult) -> Headshot:
    """Return a headshot with the measures of its restored face."""
    sharpness = next((one.sharpness for one in face.tried if not one.harm), shot.sharpness)
    mended = {
        "other_person": face.identity_after >= generated.threshold.value,
        "soft_face": (sharpness or 0.0) >= GenerateConfig.from_dict(generated.config).min_sharpness,
    }
    reasons = tuple(code for code in shot.reasons if not mended.get(code))
    likeness = face.identity_after / max(generated.threshold.own_median, 1e-6)
    return replace(
        shot, identity=face.identity_after, likeness=round(likeness, 4), sharpness=sharpness, reasons=reasons,
        accepted=not reasons,
    )  # fmt: skip


def merit(shot: Headshot) -> tuple[bool, float]:
    """Return a sort key: accepted before not accepted, then likeness with a little quality and prompt adherence.

    Likeness above the own photos' median counts no more: it is then as similar as a photo.
    """
    if shot.identity is None:
        return shot.accepted, -2.0
    likeness = shot.identity if shot.likeness is None else min(shot.likeness, 1.0)
    adherence = 1.0 if shot.adherence is None else shot.adherence
    return shot.accepted, likeness + QUALITY_WEIGHT * (shot.quality or 0.0) + ADHERENCE_WEIGHT * adherence
