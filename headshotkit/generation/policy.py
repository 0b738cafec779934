"""Choose what to try next: pure functions of earlier tries and a seed, so that an interrupted run resumes the same.

Without a clock every prompt gets a first attempt, then the rejected ones a second, and so on. Under a clock every
prompt gets one attempt; further attempts go where they pass: Thompson sampling over prompts and LoRA scales. If not
even two tries a prompt fit, single prompts can't be learnt: then a prompt that passed is tried again at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headshotkit.core.budget import TimeBudget

PRIOR_TRIES = 1.0
"""Prior strength in pseudo-attempts at the average pass rate; in simulations 2 accept 1 to 3 % fewer, 4 up to 7 % fewer
(tests/generation/test_policy.py simulates it)."""
REPEAT_WORTH = 0.9
"""Value of another headshot of a prompt that has one, so that at about equal chances prompts without one are tried."""
SHORT = 2.0
"""Tries per prompt below which the time is short."""
SHORT_WORTH, SHORT_MOST = 0.8, 5
"""Value of another headshot of a prompt when the time is short, and the most accepted ones of it."""
DOUBT = 2.0
"""Pseudo-count against concluding that all prompts have the same pass rate."""
MARGIN = 1.25
"""Factor on the slowest time so far that the next batch may take."""
RESERVE = 0.02
"""Share of the minutes reserved for what follows the last picture."""


@dataclass(frozen=True)
class Try:
    """One picture to make: the prompt's number, the attempt (from 1), the LoRA scale."""

    number: int
    attempt: int
    scale: float


@dataclass(frozen=True)
class Tried:
    """The outcome of a try."""

    number: int
    scale: float
    accepted: bool


def next_of_round(tried: Sequence[Tried], prompts: int, scale: float, max_attempts: int) -> list[Try]:
    """Return the rest of the current round: prompts without an accepted headshot, at their next attempt, in order.

    >>> [t.number for t in next_of_round([Tried(0, 1.0, True), Tried(1, 1.0, False)], 3, 1.0, 2)]
    [2]
    """
    made = Counter(t.number for t in tried)
    passed = {t.number for t in tried if t.accepted}
    pending = [n for n in range(prompts) if n not in passed and made[n] < max_attempts]
    attempt = min((made[n] for n in pending), default=0)
    return [Try(n, attempt + 1, scale) for n in pending if made[n] == attempt]


def next_by_chance(
    tried: Sequence[Tried], prompts: int, scales: Sequence[float], count: int, seed: int, picks: int,
    left: float = math.inf,
) -> list[Try]:  # fmt: skip
    """Return the most promising tries; none when `count` headshots are accepted and every prompt has one of them.

    When there are enough, only prompts without one are tried further, so that one replaces a repeat.

    First each prompt once, in order, at the first scale. Then each pick samples a pass rate for every prompt and scale
    from its Beta posterior, and takes the highest. The prior is the average prompt's pass rate, adjusted by the
    prompt's and the scale's own. If the time is short, `_next_when_short` decides.

    Args:
        tried: everything so far, in order.
        scales: LoRA scales to choose from; the first is the usual one.
        picks: number of tries to choose.
        left: approximate number of tries that still fit.
    Source: Thompson 1933; Chapelle and Li 2011, An empirical evaluation of Thompson sampling.

    >>> next_by_chance([], 3, (1.0,), count=3, seed=0, picks=2)
    [Try(number=0, attempt=1, scale=1.0), Try(number=1, attempt=1, scale=1.0)]
    """
    made = Counter(t.number for t in tried)
    fresh = [n for n in range(prompts) if not made[n]][:picks]
    if len(tried) + left < SHORT * prompts and sum(t.accepted for t in tried) < count:
        return _next_when_short(tried, prompts, scales[0], picks)
    if fresh:
        return [Try(n, 1, scales[0]) for n in fresh]
    tries, passed = _tables(tried, prompts, scales)
    enough = sum(t.accepted for t in tried) >= count
    if enough and passed.any(1).all():
        return []
    rng = np.random.default_rng([seed, len(tried)])
    expected, behind = passed.sum(1), _behind(tries, passed)
    chosen: list[Try] = []
    for _ in range(picks):
        chances = rng.beta(behind + passed, PRIOR_TRIES - behind + tries - passed)
        worth = 1 - (1 - REPEAT_WORTH) * np.minimum(expected, 1)[:, None]
        worth = np.where(passed.any(1)[:, None], 0, worth) if enough else worth
        number, place = np.unravel_index(np.argmax(chances * worth), chances.shape)
        made[int(number)] += 1
        chosen.append(Try(int(number), made[int(number)], scales[place]))
        expected = expected + np.eye(prompts)[number] * chances[number, place]
    return chosen


def _next_when_short(tried: Sequence[Tried], prompts: int, scale: float, picks: int) -> list[Try]:
    """Return the tries most likely to pass, one after the other: nothing is tried only to learn from it.

    A prompt that passed most likely passes again: it is worth more than an unknown one, if prompts differ. These
    repeats show whether they do: the fewer pass, the less the difference counts.

    Source: with many arms and few pulls greedy choice is enough, Bayati et al. 2020, arXiv:2002.10121.
    """
    tries, passed = np.zeros((2, prompts))
    expected = came = 0.0

    def belief() -> np.ndarray:
        average = (passed.sum() + 0.5) / (tries.sum() + 1)
        return (passed + PRIOR_TRIES * average) / (tries + PRIOR_TRIES)

    for one in tried:
        if passed[one.number]:
            expected, came = expected + belief()[one.number], came + one.accepted
        tries[one.number] += 1
        passed[one.number] += one.accepted
    repeat_worth = SHORT_WORTH * (came + DOUBT) / (expected + DOUBT)
    chosen: list[Try] = []
    for _ in range(picks):
        worth = np.where(passed > 0, repeat_worth, 1.0) * belief() * (passed < SHORT_MOST)
        number = int(np.argmax(worth + 1e-9 * (tries == 0)))
        tries[number] += 1
        chosen.append(Try(number, int(tries[number]), scale))
    return chosen


def _tables(tried: Sequence[Tried], prompts: int, scales: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return attempts and accepted ones, float64, each of shape (prompts, scales)."""
    tries, passed = np.zeros((2, prompts, len(scales)))
    for one in tried:
        if one.scale in scales:
            tries[one.number, scales.index(one.scale)] += 1
            passed[one.number, scales.index(one.scale)] += one.accepted
    return tries, passed


def _behind(tries: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Return the accepted ones among the PRIOR_TRIES of each prompt and scale, shape (prompts, scales)."""
    average = (passed.sum() + 0.5) / (tries.sum() + 1)
    of_prompt = (passed.sum(1) + PRIOR_TRIES * average) / (tries.sum(1) + PRIOR_TRIES)
    of_scale = (passed.sum(0) + PRIOR_TRIES * average) / (tries.sum(0) + PRIOR_TRIES)
    other = of_prompt[:, None] if tries.shape[1] > 1 else average  # a prompt's only scale already counts its tries
    return PRIOR_TRIES * np.clip(other * of_scale / average, 0.01, 0.99)


class OutOfTime(Exception):
    """The time is up in the middle of a batch."""


class Deadline:
    """Track how much a run may still begin so that it ends in time.

    Args:
        budget: the time until which the work must end, less RESERVE.
    """

    def __init__(self, budget: TimeBudget) -> None:
        self.clock, self.slowest_s, self.step_s, self.last = budget.clock, 0.0, 0.0, budget.clock()
        self.end = self.last + (budget.end_s - self.last) * (1 - RESERVE)

    def check(self) -> None:
        """Abort a batch if it would end too late; call it after every step.

        Raises:
            OutOfTime: another step as long as the longest so far would end too late.
        """
        now = self.clock()
        self.step_s, self.last = max(self.step_s, now - self.last), now
        if now + self.step_s > self.end:
            raise OutOfTime

    def note(self, pictures: int, seconds: float) -> None:
        """Record the seconds that a number of pictures took."""
        self.slowest_s = max(self.slowest_s, seconds / pictures)

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the end as of the clock's last reading; infinity without a limit."""
        return max(self.end - self.last, 0.0)

    @property
    def tries_left(self) -> float:
        """Return about how many tries still fit, at the slowest rate so far; infinity if none was timed yet."""
        return max(self.end - self.last, 0.0) / self.slowest_s if self.slowest_s else math.inf

    def room_for(self, pictures: int) -> int:
        """Return how many of the next pictures fit, at the slowest rate with a margin; all if none was timed yet."""
        self.last = self.clock()
        left, one = self.end - self.last, MARGIN * self.slowest_s
        if left <= 0:
            return 0
        return pictures if one * pictures <= left else int(left / one)
