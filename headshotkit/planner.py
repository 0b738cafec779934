"""The planner: what a run will take on a machine, before anything is downloaded, and what to do without to fit.

It goes down a ladder of choices, best first, and takes the first one whose pessimistic time fits into the minutes
and whose memory fits into the GPU. `DeadlineController` plans the rest again as the run goes on.

Two things that a plan may hold can't be executed yet (2026-11-20): `train` trains at one size, so not at 768 px first
and 1024 px then; `render` guides every sampler step, so not a share of them. `Plan.not_built` names them, and
`Plan.minutes_today` says what the same plan takes with each of them done in full.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from headshotkit.bases import find_base
from headshotkit.costs import GPUS
from headshotkit.errors import BadConfig, NotEnoughMemory, TooFewMinutes, UnknownGpu
from headshotkit.ladder import ATTEMPTS, LADDERS, STAGES, Choice, Stage, Task, stages_of, step_seconds

RESERVE = 0.05
"""Share of the minutes left unplanned."""
TIMED_STEPS = 20
"""Steps that are timed before the rest is planned again."""
UNMEASURED = "minutes and GiB: counted and estimated, nothing was measured with this base"
LESS_GIB = 0.1
"""So much less, at least, the next plan takes after one that ran out of memory."""


@dataclass(frozen=True)
class Plan:
    """How a run will be done, how long it takes and why it is not done better."""

    task: Task
    choice: Choice
    checkpointing: bool
    stages: tuple[Stage, ...]
    given_up: tuple[str, ...]

    @property
    def minutes(self) -> float:
        return sum(stage.minutes for stage in self.stages)

    @property
    def pessimistic(self) -> float:
        return sum(stage.pessimistic for stage in self.stages)

    @property
    def peak_gib(self) -> float:
        return max((stage.peak_gib for stage in self.stages), default=0.0)

    @property
    def fits(self) -> bool:
        """Whether the pessimistic time fits, with the reserve."""
        return self.pessimistic <= self.task.minutes * (1 - RESERVE)

    def doing(self, stage: str) -> bool:
        """Whether that stage is still to do."""
        return any(one.name == stage for one in self.stages)

    @property
    def not_built(self) -> tuple[str, ...]:
        """What the plan holds that today's code can't do."""
        lines = []
        if self.doing("train") and len(self.choice.schedule) > 1:
            lines.append("train trains at one size: a change of size within a training is not built")
        if self.doing("generate") and self.choice.guidance_share < 1:
            lines.append("generate guides every step: guidance in a share of them is not built")
        return tuple(lines)

    @property
    def minutes_today(self) -> tuple[float, float]:
        """Minutes, central and pessimistic, with the code as it is: the largest size and guidance throughout."""
        largest = max(px for px, _ in self.choice.schedule)
        choice = replace(self.choice, schedule=((largest, self.choice.steps),), guidance_share=1.0)
        stages = stages_of(self.task, choice, self.checkpointing)
        return sum(s.minutes for s in stages), sum(s.pessimistic for s in stages)

    def explain(self) -> str:
        """The choice, what was given up and why, and what today's code can't do; a line each."""
        caution = find_base(self.task.base).caution
        lines = [f"{self.task.base}, {caution}", UNMEASURED] if caution else []
        if self.doing("train"):
            sizes = ", then ".join(f"{steps} at {px} px" for px, steps in self.choice.schedule)
            memory = f"checkpointing {'on' if self.checkpointing else 'off'}"
            lines.append(f"train {sizes}; batch {self.choice.batch}; {memory}")
        if self.doing("generate"):
            lines.append(
                f"generate {self.task.count} headshots, {ATTEMPTS[self.task.kind]:g} tries each; "
                f"{self.choice.sampler_steps} sampler steps, guidance in the first {self.choice.guidance_share:.0%}"
            )
        lines.append(f"rates of {self.task.rates.name}: {self.task.rates.source}")
        if self.peak_gib:
            lines.append(f"memory: at most {self.peak_gib:.1f} of {self.task.memory_gib:.1f} GiB, slack included")
        lines += [f"gave up {line}" for line in self.given_up]
        lines += [f"not yet: {line}" for line in self.not_built]
        if self.not_built:
            lines.append("today's code takes {:.0f} minutes, at worst {:.0f}".format(*self.minutes_today))
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """For JSON: settings, stages, sums, reasons."""
        choice = {name: value for name, value in asdict(self.choice).items() if name not in ("gave_up", "stage")}
        return {
            "gpu": self.task.rates.name, "base": self.task.base, "count": self.task.count,
            "minutes_given": self.task.minutes, "fits": self.fits, **choice, "checkpointing": self.checkpointing,
            "stages": [asdict(stage) for stage in self.stages], "minutes": self.minutes,
            "pessimistic": self.pessimistic, "peak_gib": self.peak_gib, "memory_gib": self.task.memory_gib,
            "given_up": list(self.given_up), "not_built": list(self.not_built), "minutes_today": self.minutes_today,
            "source": self.task.rates.source,
        }  # fmt: skip


def plan_table(plan: Plan) -> str:
    """A line a stage and the sums."""
    lines = [f"{'stage':<10}{'minutes':>9}{'at worst':>10}{'GiB':>7}"]
    total = Stage("all", plan.minutes, plan.pessimistic, plan.peak_gib)
    for stage in (*plan.stages, total):
        gib = f"{stage.peak_gib:>7.1f}" if stage.peak_gib else f"{'-':>7}"
        lines.append(f"{stage.name:<10}{stage.minutes:>9.1f}{stage.pessimistic:>10.1f}{gib}")
    return "\n".join(lines)


def plan_run(gpu: str = "t4", count: int = 50, minutes: float = 60.0, base: str | None = None) -> Plan:
    """Plans a whole run.

    Args:
        gpu: one of `costs.GPUS`.
        count: headshots to deliver, at least 1.
        minutes: what the run may take at worst, finite.
        base: one of `bases.BASES`; None is mini on "cpu", else sdxl.
    Raises:
        UnknownGpu, UnknownBase: no rates of that GPU; no such base.
        BadConfig: count or minutes are too small, or no rate is known for that base on that GPU.
        TooFewMinutes, NotEnoughMemory: not even the cheapest plan fits; the error says the least possible.

    >>> plan = plan_run("t4", count=50, minutes=60)
    >>> plan.choice.schedule, plan.checkpointing
    (((768, 700), (1024, 300)), False)
    """
    if gpu not in GPUS:
        known = ", ".join(GPUS)
        raise UnknownGpu(f"no rates of {gpu!r} are known.", f"Known are: {known}.", "Name the nearest slower of them.")
    base = find_base(base or ("mini" if gpu == "cpu" else "sdxl")).name
    if count < 1 or not 0 < minutes < math.inf:
        wrong = f"count is {count}." if count < 1 else f"minutes is {minutes:g}."
        raise BadConfig(wrong, "A run makes at least 1 headshot and takes some minutes.", "Correct it.")
    if (gpu == "cpu") != (base == "mini"):
        why = "The embedded base was timed on cpu alone, and a larger one would take hours there."
        raise BadConfig(
            f"base is {base!r}, gpu is {gpu!r}.", why, "Plan --gpu cpu --base mini or --gpu t4 --base sdxl."
        )
    return plan_rest(Task(GPUS[gpu], base, count, float(minutes), GPUS[gpu].memory_gib))


def plan_rest(task: Task, must_fit: bool = True) -> Plan:
    """The first choice of the ladder that fits; without `must_fit` the cheapest one where none does.

    Raises:
        TooFewMinutes: none fits into the minutes (with `must_fit`).
        NotEnoughMemory: none fits into the memory.
    """
    given_up: list[str] = []
    refused, cheapest, least_gib = "", None, 0.0
    for choice in LADDERS[task.kind]:
        if choice.gave_up and choice.stage not in task.done:
            given_up.append(f"{choice.gave_up}: {refused}")
        plan, too_large = _with_room(task, choice, tuple(given_up))
        if plan is None:
            refused, least_gib = too_large
            continue
        if plan.fits:
            return plan
        refused = f"with it {plan.pessimistic:.0f} minutes at worst, of {task.minutes:.0f} less {RESERVE:.0%}"
        cheapest = min(cheapest or plan, plan, key=lambda p: p.pessimistic)
    if cheapest is None:
        raise NotEnoughMemory(
            f"the cheapest plan needs {least_gib:.1f} GiB of the GPU, which is more than there is.",
            f"The weights of {task.base} and one step's activations have to be there together.",
            f"Use a larger GPU; known are: {', '.join(GPUS)}.",
        )
    if must_fit:
        raise _too_few_minutes(cheapest)
    return cheapest


def _with_room(task: Task, choice: Choice, given_up: tuple[str, ...]) -> tuple[Plan | None, tuple[str, float]]:
    """A choice's plan, with checkpointing where it needs it; None where that isn't enough: (plan, (reason, GiB))."""
    too_large = ("", 0.0)
    for checkpointing in (False, True):
        plan = Plan(task, choice, checkpointing, stages_of(task, choice, checkpointing), given_up)
        over = [stage for stage in plan.stages if stage.peak_gib > task.room_gib(stage.name)]
        if not over:
            lost = (f"training without checkpointing: {too_large[0]}",) if checkpointing else ()
            return replace(plan, given_up=given_up + lost), too_large
        room = task.room_gib(over[0].name)
        too_large = (f"{over[0].name} needs {over[0].peak_gib:.1f} GiB of {room:.1f}", over[0].peak_gib)
    return None, too_large


def _too_few_minutes(cheapest: Plan) -> TooFewMinutes:
    """The error, with the least minutes that would do."""
    task, least = cheapest.task, math.ceil(cheapest.pessimistic / (1 - RESERVE))
    untried = find_base(task.base).experimental
    return TooFewMinutes(
        f"{task.count} headshots in {task.minutes:g} minutes can't be done on {task.rates.name}.",
        f"The cheapest plan takes {cheapest.minutes:.0f} minutes, {cheapest.pessimistic:.0f} at worst; it needs "
        f"{cheapest.peak_gib:.1f} of {task.memory_gib:.1f} GiB" + (f"; {UNMEASURED}." if untried else "."),
        f"Give at least {least} minutes, ask for fewer headshots, or use a faster GPU.",
    )


class DeadlineController:
    """Keeps a run within its minutes: plans the rest again when it knows more. `plan` is the plan that holds.

    Args:
        plan: of the whole run, which starts now.
        clock: seconds that never go back.
        tell: is given a line whenever the plan changes.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic, tell: Callable[[str], None] = print):
        self.plan, self.clock, self.tell = plan, clock, tell
        self.end = clock() + plan.task.minutes * 60
        self.marks: list[float] = []

    @property
    def minutes_left(self) -> float:
        """Until the deadline; negative beyond it."""
        return (self.end - self.clock()) / 60

    def finish(self, stage: str) -> Plan:
        """A stage is done: plans the rest with the time that is left.

        Raises:
            BadConfig: no stage has that name.
        """
        if stage not in STAGES:
            raise BadConfig(f"no stage is called {stage!r}.", f"Stages are: {', '.join(STAGES)}.", "Correct the name.")
        return self._plan_again(f"after {stage}", done=(*self.plan.task.done, stage))

    def time_step(self) -> Plan:
        """A training step is done; the first is not timed. After 20 timed ones the rest is planned by their median."""
        task, choice = self.plan.task, self.plan.choice
        self.marks.append(self.clock())
        self.plan = replace(self.plan, task=replace(task, steps_done=task.steps_done + 1))
        if len(self.marks) != TIMED_STEPS + 1:
            return self.plan
        seconds = statistics.median(b - a for a, b in zip(self.marks, self.marks[1:], strict=False))
        px = choice.px_at(task.steps_done)
        central, _ = step_seconds(replace(task, slower=0.0), choice, px, self.plan.checkpointing)
        return self._plan_again(f"a step takes {seconds:.2f} s, planned {central:.2f}", slower=seconds / central)

    def out_of_memory(self, stage: str = "train", steps_done: int | None = None) -> Plan:
        """The stage ran out of memory: the next plan that needs less for it.

        Args:
            stage: where it happened.
            steps_done: of the checkpoint that the training goes on from; None is as many as were told.
        Raises:
            NotEnoughMemory: there is none.
        """
        needed = next((s.peak_gib for s in self.plan.stages if s.name == stage), self.plan.peak_gib)
        self.marks = []
        known = {"train_gib" if stage == "train" else "memory_gib": needed - LESS_GIB}
        if steps_done is not None:
            known["steps_done"] = steps_done
        return self._plan_again(f"out of memory in {stage}, planned {needed:.1f} GiB", **known)

    def _plan_again(self, why: str, **known) -> Plan:
        before = self.plan
        task = replace(before.task, minutes=self.minutes_left, **known)
        self.plan = plan_rest(task, must_fit=False)
        if _work(before, self.plan) != _work(self.plan, self.plan):
            self.tell(f"planned again, {why}:\n{self.plan.explain()}")
        if self.plan.pessimistic > task.minutes:
            late = self.plan.pessimistic - task.minutes
            self.tell(f"{why}: {task.minutes:.0f} minutes are left, the cheapest plan may end {late:.0f} minutes late")
        return self.plan


def _work(plan: Plan, rest: Plan) -> tuple:
    """A plan's settings of those stages that another plan still has to do."""
    choice, settings = plan.choice, ()
    if rest.doing("train"):
        settings += (choice.schedule, choice.batch, plan.checkpointing)
    if rest.doing("generate"):
        settings += (choice.sampler_steps, choice.guidance_share)
    return settings
