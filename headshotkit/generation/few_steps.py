"""Drawing in a few steps, only where the person stays the person.

Whether identity holds with a few-step LoRA beside the person's own is seen in first attempts, the same prompts and
noise with and without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from headshotkit.config import RenderConfig
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.scoring.bootstrap import rise_of

PAIRS = 8
"""First attempts that are drawn both ways."""
MOST_LOST = 0.05
"""Identity that may be lost: the lower end of the change's 95 % interval may lie so far below 0."""


def drawn_in_few(config: RenderConfig) -> RenderConfig:
    """The settings with steps, sampler and guidance of the few-step LoRA that they name, and no guidance by words."""
    few = FEW_STEPS[config.few_steps]
    return replace(
        config, steps=few.steps, sampler=few.sampler, guidance=few.guidance, guidance_share=1.0, word_guidance=1.0
    )


def compare_few(
    draw: Callable[[RenderConfig], list[float | None]], use_few: Callable[[], None], config: RenderConfig
) -> dict:
    """Whether identity holds: the change from the usual steps to the few ones, and `held`.

    Args:
        draw: identities of the same first attempts, drawn by settings; None without a single face.
        use_few: puts the few-step LoRA into the base.
    Returns: median, low and high of the change, its pairs, held, and `words` for people.
    """
    before = draw(config)
    use_few()
    after = draw(drawn_in_few(config))
    change = rise_of(before, after)
    lost_faces = sum(a is None for a in after) - sum(b is None for b in before)
    held = change.pairs > 0 and change.low >= -MOST_LOST and lost_faces <= 0
    words = (
        f"{config.few_steps}: identity {change.median:+.3f} [{change.low:+.3f}, {change.high:+.3f}] over {change.pairs}"
        f" first attempts, {'used' if held else 'so not used'} (at most {MOST_LOST} may be lost)"
    )
    return asdict(change) | {"held": bool(held), "words": words}
