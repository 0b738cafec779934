"""What to try next: pure functions of what was tried before and of a seed, so that an interrupted run goes on alike.

Without a clock every prompt gets a first attempt, then the refused ones a second, and so on. Under a clock every prompt
gets one attempt, and from then on attempts are spent where they pass: Thompson sampling over prompts and LoRA scales.
Where not even two tries a prompt fit, nothing can be learnt of each: then a prompt that passed is tried again at once.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PRIOR_TRIES = 1.0
"""So many tries of the average prompt stand behind a prompt's own ones; 2 accept 1 to 3 % fewer in simulations, 4 up
to 7 % fewer (tests/generation/test_policy.py has such, 2026-11-20)."""
REPEAT_WORTH = 0.9
"""What another headshot of a prompt that has one is worth, so that prompts without are tried where the chances are
about equal."""
SHORT = 2.0
"""With fewer tries than so many a prompt the time is short."""
SHORT_WORTH, SHORT_MOST = 0.8, 5
"""What another headshot of a prompt is worth when the time is short, and how many accepted ones of it at most."""
DOUBT = 2.0
"""So many expected headshots must come or fail to come before it is believed that prompts are all alike after all."""
MARGIN = 1.25
"""So much longer than at the slowest rate so far the next batch may take."""
RESERVE = 0.02
"""Share of the minutes kept for what follows the last picture."""


@dataclass(frozen=True)
class Try:
    """One picture to make: the prompt's number, the attempt (from 1), the LoRA's strength."""

    number: int
    attempt: int
    scale: float


@dataclass(frozen=True)
class Tried:
    """What became of a try."""

    number: int
    scale: float
    accepted: bool


def next_of_round(tried: Sequence[Tried], prompts: int, scale: float, max_attempts: int) -> list[Try]:
    """The rest of the round that is under way: prompts that nothing has passed for, at their next attempt, in order.

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
    """The most promising tries; none when `count` headshots are accepted and every prompt has one of them.

    When there are enough, only prompts without one are tried further, so that one takes the place of a repeat.

    First each prompt once, in order, at the first scale. Then each pick draws a chance to pass for every prompt and
    scale from what is believed of it, a Beta distribution, and takes the highest. What the average prompt reaches
    stands behind each belief, and a scale's success with all prompts behind its success with one. Where the time is
    short it goes by `_next_when_short`.

    Args:
        tried: everything so far, in order.
        scales: strengths of the LoRA to choose from; the first is the usual one.
        picks: how many to choose.
        left: how many tries still fit, about.
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
    """The tries most likely to pass, one after the other: nothing is tried in order to learn of it.

    A prompt that passed most likely passes again: it is worth more than an unknown one, where prompts differ. Whether
    they do is seen in these very repeats: as they come less often than expected, they are believed less.

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
    """Tries and accepted ones, float64, each of shape (prompts, scales)."""
    tries, passed = np.zeros((2, prompts, len(scales)))
    for one in tried:
        if one.scale in scales:
            tries[one.number, scales.index(one.scale)] += 1
            passed[one.number, scales.index(one.scale)] += one.accepted
    return tries, passed


def _behind(tries: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Accepted ones among the PRIOR_TRIES that stand behind each prompt and scale, shape (prompts, scales)."""
    average = (passed.sum() + 0.5) / (tries.sum() + 1)
    of_prompt = (passed.sum(1) + PRIOR_TRIES * average) / (tries.sum(1) + PRIOR_TRIES)
    of_scale = (passed.sum(0) + PRIOR_TRIES * average) / (tries.sum(0) + PRIOR_TRIES)
    other = of_prompt[:, None] if tries.shape[1] > 1 else average  # a prompt's only scale counts its own tries already
    return PRIOR_TRIES * np.clip(other * of_scale / average, 0.01, 0.99)


class OutOfTime(Exception):
    """The time is up in the middle of a batch."""


class Deadline:
    """How much a run may still begin so that it ends in time.

    Args:
        minutes: until the end; 0 is no end.
        clock: seconds that never go back.
        spent_s: seconds that an interrupted run has used of them.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic, spent_s: float = 0.0) -> None:
        self.clock, self.slowest_s, self.step_s, self.last = clock, 0.0, 0.0, clock()
        self.end = self.last + minutes * 60 * (1 - RESERVE) - spent_s if minutes else math.inf

    def check(self) -> None:
        """Breaks a batch off; to be called after every step of it.

        Raises:
            OutOfTime: another step as long as the longest so far would end too late.
        """
        now = self.clock()
        self.step_s, self.last = max(self.step_s, now - self.last), now
        if now + self.step_s > self.end:
            raise OutOfTime

    def note(self, pictures: int, seconds: float) -> None:
        """So many pictures took so long."""
        self.slowest_s = max(self.slowest_s, seconds / pictures)

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the end from when the clock was last looked at; without limit, infinity."""
        return max(self.end - self.last, 0.0)

    @property
    def tries_left(self) -> float:
        """How many tries about still fit, at the slowest rate so far; without end where none was timed yet."""
        return max(self.end - self.last, 0.0) / self.slowest_s if self.slowest_s else math.inf

    def room_for(self, pictures: int) -> int:
        """How many of the next pictures fit, at the slowest rate so far with a margin; all where none was timed yet."""
        self.last = self.clock()
        left, one = self.end - self.last, MARGIN * self.slowest_s
        if left <= 0:
            return 0
        return pictures if one * pictures <= left else int(left / one)
