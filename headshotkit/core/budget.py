"""The time that work may take: made once, where a command begins, and handed on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeBudget:
    """A time by which work ends. `end_s`: by the clock, infinity without a limit. `clock`: seconds that never go back.

    >>> budget = TimeBudget.of(60, clock=lambda: 0.0)
    >>> budget.minutes_left, budget.without(15).minutes_left, TimeBudget.of(0).seconds_left
    (60.0, 45.0, inf)
    """

    end_s: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, minutes: float, clock: Callable[[], float] = time.monotonic) -> TimeBudget:
        """Return the budget of that many minutes from now; 0 is no limit."""
        return cls(clock() + minutes * 60 if minutes else math.inf, clock)

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the end; negative beyond it."""
        return self.end_s - self.clock()

    @property
    def minutes_left(self) -> float:
        """Return the minutes until the end; negative beyond it."""
        return self.seconds_left / 60

    def without(self, minutes: float) -> TimeBudget:
        """Return a budget that ends that many minutes earlier, which is the share of work that others follow."""
        return TimeBudget(self.end_s - minutes * 60, self.clock)
