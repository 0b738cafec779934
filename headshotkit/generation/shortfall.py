"""Explain why few headshots passed, and what to do next. Pure functions of a run's records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from headshotkit.config import CheckConfig, GenerateConfig, TrainConfig
from headshotkit.core.records import Headshot, Lora, Record
from headshotkit.core.results import PhotosResult

FEW_PASSED = 0.5
"""Share of the wanted prompts with an accepted headshot below which the causes are named."""
SHORT = 0.75
"""Share of the base's usual steps below which a training or a sampler counts as short."""
LEAST_SCENES = 5
"""Fewest scenes in the kept photos from which a face is learned rather than one scene."""
NEARLY = 0.8
"""Share of the identity threshold from which further attempts are likely to pass."""
OFFERED = 0.5
"""Share of the identity threshold below which a headshot is not offered."""
ON_A_GPU = "Use a machine with a GPU, for example Colab, and the base sdxl (--base sdxl)."
"""Next step if the embedded base is the cause."""
BAD_FACE = ("no_face", "many_faces", "small_face", "unclear_face", "soft_face", "eyes_closed", "artefact")
"""Reasons about the picture, not about whom it shows."""


@dataclass(frozen=True)
class Cause(Record):
    """One cause of few accepted headshots: its code, the numbers that show it, and the next step."""

    code: str
    why: str
    next_step: str


def is_offered(shot: Headshot, threshold: float) -> bool:
    """Return whether a headshot is worth showing: accepted, or at half of the identity threshold or more."""
    return shot.accepted or (shot.identity is not None and shot.identity >= OFFERED * threshold)


def causes_of(
    headshots: Sequence[Headshot],
    threshold: float,
    lora: Lora,
    photos: PhotosResult,
    config: GenerateConfig,
    picked: bool = False,
) -> tuple[Cause, ...]:
    """Return the causes of few accepted headshots, the one to mend first in front; empty if enough passed.

    Args:
        threshold: identity that a headshot must reach.
        photos: the result of the check.
        config: what the headshots were drawn with.
        picked: whether checkpoint and LoRA scale were picked by trying them.
    """
    passed = len({h.prompt_id for h in headshots if h.accepted})
    if passed >= FEW_PASSED * config.count:
        return ()
    refused = [h for h in headshots if not h.accepted]
    counts = Counter(code for shot in refused for code in shot.reasons)
    found = []
    if len(headshots) < config.count and config.minutes:
        why = (
            f"{config.minutes:g} minutes were enough for {len(headshots)} attempts, {config.count} headshots are wanted"
        )
        found.append(Cause("out_of_time", why, "Give more minutes (--minutes), or ask for fewer headshots (--count)."))
    by_kind = {
        "unlike": counts["other_person"], "copies": counts["copy_of_photo"], "near_duplicates": counts["near_twin"],
        "faces": sum(any(code in BAD_FACE for code in shot.reasons) for shot in refused),
    }  # fmt: skip
    for kind, count in sorted(by_kind.items(), key=lambda item: -item[1]):
        share = f"{count} of {len(refused)} refused attempts"
        if 3 * count < len(refused) or not count:
            continue
        if kind == "unlike":
            found += _unlike(refused, threshold, lora, photos, config, picked, share)
        elif kind == "copies":
            step = "Pick an earlier checkpoint or a lower scale: headshotkit pick --out RUN. Or add more varied photos."
            found.append(Cause("overfitted", f"{share} are almost copies of a photo", step))
        elif kind == "near_duplicates":
            step = "Choose more prompt packs (--packs), or ask for fewer headshots (--count)."
            found.append(Cause("same_picture", f"{share} are almost the same picture as one that passed", step))
        else:
            found.append(_bad_faces(counts, config, share))
    return tuple(found)


def _unlike(
    refused: list[Headshot],
    threshold: float,
    lora: Lora,
    photos: PhotosResult,
    config: GenerateConfig,
    picked: bool,
    share: str,
) -> list[Cause]:
    """Return why the attempts do not look like the person."""
    median = statistics.median(h.identity for h in refused if "other_person" in h.reasons)
    seen = f"{share} are not similar enough (median {median:.2f}, threshold {threshold:.2f})"
    usual = TrainConfig.for_base(lora.base, method=lora.method).steps
    kept = len(photos.kept)
    scenes, needed = photos.scenes, CheckConfig().min_photos
    found = []
    if lora.step < SHORT * usual:
        why = f"{seen}; {lora.step} training steps were used, {usual} are usual"
        found.append(Cause("short_training", why, f"Train for {usual} steps (--steps {usual})."))
    if kept < needed or scenes < LEAST_SCENES:
        why = f"{seen}; {kept} photos of {scenes} scenes were trained on, {needed} of {LEAST_SCENES} or more are needed"
        found.append(Cause("few_photos", why, photos.advice))
    if median >= NEARLY * threshold:
        step = "Allow more attempts: raise the minutes (--minutes) or --max-attempts."
        found.append(Cause("nearly", f"{seen}; many are close", step))
    if config.base == "mini":
        found.append(Cause("embedded_base", f"{seen}; the embedded base is made for trying the workflow", ON_A_GPU))
    if not found and not picked:
        step = "Try other checkpoints and scales: headshotkit pick --out RUN, then generate again."
        found.append(Cause("strength", f"{seen} at lora_scale {config.lora_scale:g}", step))
    if not found:
        step = photos.advice if photos.requests else "Add photos of other days, in other clothes and light."
        found.append(Cause("weak_likeness", seen, step))
    return found


def _bad_faces(counts: Counter, config: GenerateConfig, share: str) -> Cause:
    """Return why faces can't be judged: too few sampler steps, or the base."""
    code, _ = max(((c, n) for c, n in counts.items() if c in BAD_FACE), key=lambda item: item[1])
    why, usual = f"{share} show no good face, most often {code}", GenerateConfig.for_base(config.base).sampler_steps
    if config.sampler_steps < SHORT * usual and not config.distilled_lora:
        return Cause("few_sampler_steps", f"{why}; {config.sampler_steps} sampler steps, {usual} are usual",
                     f"Generate with {usual} sampler steps.")  # fmt: skip
    if config.base == "mini":
        return Cause("embedded_base", f"{why}; the embedded base draws small, rough pictures",
                     ON_A_GPU)  # fmt: skip
    return Cause("bad_faces", why, "Try other prompts (--packs) or a lower scale (--lora-scale).")
