"""Show a training as it goes on. An onlooker is called after each step and changes nothing."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

from headshotkit.core import runtime
from headshotkit.planning.schedule import Pacing
from headshotkit.training.state import TrainState

Onlooker = Callable[[TrainState], None]
"""It sees the state after a step: `step` is the number of steps done, `losses` their losses."""
TIMED_STEPS = 20
"""Steps after which the remaining time is estimated."""


def on_progress_bar(bar, pacing: Pacing) -> Onlooker:
    """Return an onlooker that shows step, loss and GiB on a progress bar of `runtime.progress`."""

    def show(state: TrainState) -> None:
        memory = {f"{place}_gib": size for place, size in runtime.peak_memory_gib().items()}
        steps = pacing.at(state.step).steps
        if bar.total != steps:
            bar.reset(steps)  # a notebook's bar does not follow its `total`
            bar.initial = state.step
        bar.n = state.step
        bar.set_postfix(loss=f"{state.recent_loss(20):.3f}", **memory)

    return show


def tell_time_left(pacing: Pacing) -> Onlooker:
    """Return an onlooker that tells the time at which the training ends, once, from the duration of its first steps."""
    marks = [time.monotonic()]

    def tell(state: TrainState) -> None:
        marks.append(time.monotonic())
        done, steps = state.step, pacing.at(state.step).steps
        if len(marks) != TIMED_STEPS + 1 or done == steps:
            return
        seconds = statistics.median(b - a for a, b in itertools.pairwise(marks))
        here = pacing.px_at(done - 1)
        left = sum((pacing.px_at(step) / here) ** 2 for step in range(done, steps))
        minutes = left * seconds / 60
        runtime.tell(
            f"A step takes {seconds:.2f} s: the other {steps - done} steps take about {minutes:.1f} minutes, "
            f"until {runtime.clock_in(minutes)}."
        )

    return tell
