"""The policy on simulated prompts: chances to pass are known, the clock is moved by hand."""

import numpy as np
import pytest

from headshotkit.core.budget import TimeBudget
from headshotkit.generation.policy import Deadline, OutOfTime, Tried, next_by_chance, next_of_round

PROMPTS, COUNT, BATCH, STEPS = 50, 1000, 4, 10
SECONDS = 6.0
"""Of a picture at the usual speed; 15 minutes are 150 of them."""
CHANCES = {
    "a half passes": lambda rng: np.where(np.arange(PROMPTS) % 2, 0.7, 0.05),
    "few pass": lambda rng: rng.beta(0.5, 1.5, PROMPTS),
    "all alike": lambda rng: np.full(PROMPTS, 0.3),
    "all alike and good": lambda rng: np.full(PROMPTS, 0.8),
    "nearly alike": lambda rng: rng.beta(4, 6, PROMPTS),
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def draws_of(kind, seed):
    """Whether each prompt's attempts pass, bool, shape (prompts, attempts): the same for every policy."""
    rng = np.random.default_rng([seed, 7])
    return rng.random((PROMPTS, 600)) < CHANCES[kind](rng)[:, None]


def draw(batch, deadline, clock, slower):
    """A batch of simulated pictures: the clock moves on step by step."""
    start = clock.now
    for _ in range(STEPS):
        clock.now += SECONDS * len(batch) * slower() / STEPS
        deadline.check()
    deadline.note(len(batch), clock.now - start)


def by_chance(draws, minutes, slower, seed=0, count=COUNT):
    """What `Session` does, on a simulated sampler: (tried, seconds)."""
    clock, tried = Clock(), []
    deadline = Deadline(TimeBudget.of(minutes, clock))
    try:
        while batch := next_by_chance(tried, PROMPTS, (1.0,), count, seed, BATCH, deadline.tries_left):
            batch = batch[: deadline.room_for(BATCH)]
            if not batch:
                break
            draw(batch, deadline, clock, slower)
            tried += [Tried(t.number, t.scale, bool(draws[t.number, t.attempt - 1])) for t in batch]
    except OutOfTime:
        pass
    return tried, clock.now


def plain_loop(draws, tries, count=COUNT):
    """Accepted headshots of a loop over the prompts, again and again."""
    passed = np.cumsum([draws[n % PROMPTS, n // PROMPTS] for n in range(tries)])
    return min(int(passed[-1]), count) if tries else 0


def accepted(tried):
    return sum(t.accepted for t in tried)


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0, 4.0])
def test_it_ends_in_time_however_slow_the_sampler_is(slower):
    """At any speed, and with a sampler that gets four times slower, or faster, on the way."""
    for minutes in (0.2, 1, 3, 15):
        for changed in (slower, 0.5, 4.0):
            calls = iter(range(10**9))
            tried, seconds = by_chance(
                draws_of("few pass", 0), minutes, lambda calls=calls, to=changed: slower if next(calls) < 85 else to
            )
            assert seconds <= minutes * 60
            if changed == slower and minutes >= 1:  # the reserve, the margin and one started batch is what it leaves
                fits = int(minutes * 60 / (SECONDS * slower))
                assert len(tried) >= 0.9 * fits - 1.25 * BATCH


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", CHANCES)
def test_it_accepts_no_fewer_than_a_plain_loop_of_as_many_tries(kind, slower):
    """In the mean of 24 draws, and 1.3 times as many where prompts differ, at any speed: 37 to 300 tries of 50 prompts.

    Of one draw each may be luckier, where all prompts are alike or the tries are few.
    """
    pairs = []
    for seed in range(24):
        draws = draws_of(kind, seed)
        tried, _ = by_chance(draws, 15, lambda: slower, seed)
        pairs.append((accepted(tried), plain_loop(draws, len(tried))))
    ours, plain = np.mean(pairs, axis=0)
    print(f"{kind}, {slower} times slower: {ours:.1f} accepted, {plain:.1f} by a plain loop")
    assert ours >= 0.98 * plain
    if kind in ("a half passes", "few pass"):
        assert ours >= 1.3 * plain
        assert slower > 1 or all(a >= b for a, b in pairs)


def test_every_prompt_is_tried_once_before_any_is_tried_again():
    tried, _ = by_chance(draws_of("few pass", 1), 15, lambda: 1.0)
    assert [t.number for t in tried[:PROMPTS]] == list(range(PROMPTS))
    assert len({t.number for t in tried[PROMPTS:]}) < PROMPTS


def test_when_time_is_short_no_prompt_is_repeated_without_end_and_alike_ones_are_hardly_repeated():
    """At a quarter of the speed 37 tries fit. Without repeats 8, 11 and 28 different prompts would be accepted."""
    for kind, different, most in (("few pass", 4.5, 5), ("all alike", 7, 5), ("all alike and good", 18, 5)):
        prompts = []
        for seed in range(24):
            tried, _ = by_chance(draws_of(kind, seed), 15, lambda: 4.0, seed)
            passed = [t.number for t in tried if t.accepted]
            prompts.append(len(set(passed)))
            assert max(map(passed.count, passed), default=0) <= most + BATCH - 1
        assert np.mean(prompts) >= different


def test_with_enough_it_goes_on_with_prompts_that_have_none_alone():
    tried, seconds = by_chance(draws_of("all alike and good", 2), 15, lambda: 1.0, count=50)
    assert len({t.number for t in tried if t.accepted}) == PROMPTS and seconds < 0.75 * 15 * 60
    draws = draws_of("a half passes", 2)
    tried, _ = by_chance(draws, 15, lambda: 1.0, count=50)
    enough = int(np.argmax(np.cumsum([t.accepted for t in tried]) >= 50)) + BATCH
    done = {t.number for t in tried[:enough] if t.accepted}
    assert enough < len(tried) and not done & {t.number for t in tried[enough:]}


def test_it_goes_on_alike_from_any_place():
    draws = draws_of("few pass", 3)
    tried, _ = by_chance(draws, 15, lambda: 1.0, seed=5)
    for place in (0, 50, 102):
        following = next_by_chance(tried[:place], PROMPTS, (1.0,), COUNT, 5, BATCH)
        assert [t.number for t in following] == [t.number for t in tried[place : place + BATCH]]


def test_a_scale_that_passes_more_is_used_more():
    rng, tried, chance = np.random.default_rng(0), [], {1.0: 0.1, 0.8: 0.6}
    while len(tried) < 200:
        for one in next_by_chance(tried, 20, (1.0, 0.8), COUNT, 0, 4):
            tried.append(Tried(one.number, one.scale, rng.random() < chance[one.scale]))
    late = tried[100:]
    assert sum(t.scale == 0.8 for t in late) > 0.8 * len(late)


def test_without_a_clock_refused_prompts_get_another_round():
    tried = [Tried(n, 1.0, n == 1) for n in range(3)]
    assert [(t.number, t.attempt) for t in next_of_round(tried, 3, 1.0, 2)] == [(0, 2), (2, 2)]
    tried.append(Tried(0, 1.0, False))
    assert [(t.number, t.attempt) for t in next_of_round(tried, 3, 1.0, 2)] == [(2, 2)]
    assert next_of_round([*tried, Tried(2, 1.0, False)], 3, 1.0, 2) == []


def test_work_ends_by_its_budget_less_a_reserve():
    deadline = Deadline(TimeBudget.of(10, Clock()).without(8))
    deadline.note(1, 10)
    assert deadline.room_for(20) == 9  # 98 % of 120 seconds, 12.5 for a picture
    assert Deadline(TimeBudget(clock=Clock())).room_for(20) == 20
    assert Deadline(TimeBudget.of(10, Clock()).without(11)).room_for(20) == 0
