"""Use a distilled few-step LoRA only if identity does not drop.

Identity is compared on first attempts: the same prompts and noise, with the distilled LoRA next to the person's and
without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from headshotkit.config import GenerateConfig
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.scoring.bootstrap import rise_of

PAIRS = 8
"""Number of first attempts drawn both ways."""
MOST_LOST = 0.05
"""Largest accepted drop of identity: the lower end of the change's 95 % interval must be above minus this."""


def drawn_in_few(config: GenerateConfig) -> GenerateConfig:
    """Return the settings with the distilled LoRA's steps, sampler and guidance, without base-model guidance."""
    few = FEW_STEPS[config.distilled_lora]
    return config.replace(
        sampler_steps=few.steps, sampler=few.sampler, guidance=few.guidance, guidance_share=1.0, base_guidance=1.0
    )


def compare_few(
    draw: Callable[[GenerateConfig], list[float | None]], use_few: Callable[[], None], config: GenerateConfig
) -> dict:
    """Compare identity with the usual steps and with the distilled LoRA: the change, and whether it `held`.

    Args:
        draw: returns the identities of the same first attempts, by settings; None without exactly one face.
        use_few: loads the distilled LoRA into the base.
    Returns: median, low and high of the change, its pairs, held, and `words` for the user.
    """
    before = draw(config)
    use_few()
    after = draw(drawn_in_few(config))
    change = rise_of(before, after)
    lost_faces = sum(a is None for a in after) - sum(b is None for b in before)
    held = change.pairs > 0 and change.low >= -MOST_LOST and lost_faces <= 0
    words = (
        f"{config.distilled_lora}: identity changes by {change.median:+.3f}, 95 % interval {change.low:+.3f} to "
        f"{change.high:+.3f}, over {change.pairs} first attempts; {'used' if held else 'not used'} "
        f"(at most {MOST_LOST} may be lost)"
    )
    return asdict(change) | {"held": bool(held), "words": words}
