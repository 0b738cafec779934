"""Intervals: on simulated sets with a known value a 95 % interval holds it in about 95 % of the draws."""

import numpy as np
import pytest
from scipy.stats import t as students

from headshotkit.scoring import bootstrap
from headshotkit.scoring.bootstrap import mean_interval, sets_interval, student_t
from headshotkit.scoring.metrics_arithmetic import mean_discrepancy, mean_of_pairs

DRAWS = 1000


def coverage(interval, value: float, draws: int = DRAWS) -> float:
    """Return the share of drawn intervals that hold the value."""
    bounds = [interval(seed) for seed in range(draws)]
    return sum(low <= value <= high for low, high in bounds) / draws


@pytest.mark.parametrize(
    ("draw", "mean", "count"),
    [
        (lambda rng, n: rng.normal(0.6, 0.1, n), 0.6, 50),
        (lambda rng, n: rng.beta(8, 3, n), 8 / 11, 12),
        (lambda rng, n: rng.binomial(3, 0.7, n) / 3, 0.7, 24),
    ],
    ids=["cosines of 50", "skewed shares of 12", "adherence of 24"],
)
def test_the_interval_of_a_mean_covers(draw, mean, count, monkeypatch):
    monkeypatch.setattr(bootstrap, "BOOTSTRAPS", 500)
    assert 0.93 <= coverage(lambda seed: mean_interval(draw(np.random.default_rng(seed), count)), mean) <= 0.97


def test_the_interval_of_a_mean_distance_covers():
    """Of pairs of 24 pictures whose features are normal, the mean squared distance is twice their variance."""
    spread = np.linspace(0.3, 1, 8)

    def interval(seed: int):
        rows = np.random.default_rng(seed).normal(size=(24, 8)) * spread
        distances = ((rows[:, None] - rows) ** 2).sum(-1)
        return sets_interval(lambda some: mean_of_pairs(distances[np.ix_(some, some)]), [24])

    assert 0.93 <= coverage(interval, float(2 * (spread**2).sum())) <= 0.97


def test_the_interval_of_a_discrepancy_covers():
    """Between normal sets of 50 and 20, with a Gaussian kernel whose expectation is known."""
    dims, shift, width = 8, 0.5, 16.0
    within = (1 + 2 / width) ** (-dims / 2)
    known = 2 * within * (1 - np.exp(-dims * shift**2 / (2 * (width + 2))))

    def interval(seed: int):
        rng = np.random.default_rng(seed)
        both = rng.normal(size=(70, dims))
        both[:50] += shift
        squares = (both**2).sum(1)
        kernel = np.exp(-(squares[:, None] + squares - 2 * both @ both.T) / (2 * width))

        def discrepancy(a, b):
            b = b + 50
            return mean_discrepancy(*(kernel[np.ix_(*pair)] for pair in ((a, a), (a, b), (b, b))))

        return sets_interval(discrepancy, [50, 20])

    assert 0.93 <= coverage(interval, known) <= 0.97


def test_values_that_are_all_the_same_have_no_interval():
    assert mean_interval(np.ones(50)) == mean_interval(np.ones(1)) == (None, None)
    assert sets_interval(lambda some: 1.0, [10]) == (None, None)


def test_students_t_is_scipys():
    for freedom in (1, 2, 3, 5, 10, 19, 49, 500):
        assert student_t(freedom) == pytest.approx(students.ppf(0.975, freedom), rel=2e-3)
