"""Estimate with intervals: paired differences, means, and statistics of whole sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


Bounds = tuple[float | None, float | None]
"""A 95 % interval; (None, None) where the values can't tell one."""


def mean_interval(values: np.ndarray, seed: int = 0) -> Bounds:
    """Return the 95 % interval of a mean, by the studentised bootstrap; (None, None) if all values are the same.

    The percentile bootstrap is too narrow for few values: tests/benchmarks/README.md has both coverages.

    Source: Efron and Tibshirani 1993, chapter 12.

    >>> low, high = mean_interval(np.arange(50.0))
    >>> bool(19 < low < 21 and 28 < high < 30), mean_interval(np.ones(9))
    (True, (None, None))
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2 or np.ptp(values) <= 1e-9 * max(abs(values).max(), 1e-300):
        return None, None
    drawn = values[np.random.default_rng(seed).integers(0, count, (BOOTSTRAPS, count))]
    errors = drawn.std(1, ddof=1)
    some = errors > 1e-9 * values.std()
    studentised = (drawn.mean(1)[some] - values.mean()) / errors[some]
    low, high = np.quantile(studentised, [0.025, 0.975])
    error = values.std(ddof=1)
    return float(values.mean() - high * error), float(values.mean() - low * error)


def sets_interval(statistic: Callable[..., float], sizes: Sequence[int]) -> Bounds:
    """Return the 95 % interval of what is measured on whole sets, by the jackknife with Student's t.

    A bootstrap does not fit: it draws a picture twice, and distances between sets take the pair for one that is
    exactly alike. The interval is about the statistic at this number of pictures; a bias at that number stays.

    Args:
        statistic: takes the indices of the members that are in, an array for each set.
        sizes: of the sets, each at least 3.
    Source: Efron and Stein 1981.
    """
    whole = [np.arange(size) for size in sizes]
    variance = 0.0
    for place, size in enumerate(sizes):
        without = [statistic(*whole[:place], np.delete(whole[place], one), *whole[place + 1 :]) for one in range(size)]
        variance += (size - 1) ** 2 / size * float(np.var(without, ddof=1))
    reach = student_t(min(sizes) - 1) * float(np.sqrt(variance))
    value = statistic(*whole)
    return (value - reach, value + reach) if reach > 0 else (None, None)


def student_t(freedom: int) -> float:
    """Return the 97.5th percentile of Student's t, to 0.1 % from 3 degrees of freedom.

    Source: Cornish and Fisher 1937, the expansion around the normal distribution.

    >>> [round(student_t(freedom), 2) for freedom in (2, 9, 19, 49)]
    [4.3, 2.26, 2.09, 2.01]
    """
    exact = {1: 12.7062, 2: 4.3027}
    if freedom in exact:
        return exact[freedom]
    z, f = 1.959964, float(freedom)
    return (
        z + (z**3 + z) / (4 * f) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * f**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * f**4)
    )  # fmt: skip
