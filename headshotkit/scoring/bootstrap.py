"""Estimate differences with intervals, for stages that compare two ways to draw the same headshots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Rise:
    """Median rise of identity from base to LoRA, unitless, with its 95 % bootstrap interval over `pairs` pairs."""

    median: float
    low: float
    high: float
    pairs: int


def rise_of(before: list[float | None], after: list[float | None], seed: int = 0) -> Rise:
    """Return the median paired difference with a 95 % percentile-bootstrap interval; pairs without a face don't count.

    Source: Efron 1979.

    >>> rise_of([0.0, 0.1, None, 0.2], [0.5, 0.6, 0.9, 0.7])
    Rise(median=0.5, low=0.5, high=0.5, pairs=3)
    """
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not pairs:
        return Rise(0.0, -1.0, 1.0, 0)
    rises = np.array([a - b for b, a in pairs])
    draws = np.random.default_rng(seed).integers(0, len(rises), (BOOTSTRAPS, len(rises)))
    medians = np.median(rises[draws], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Rise(round(float(np.median(rises)), 4), round(float(low), 4), round(float(high), 4), len(pairs))
