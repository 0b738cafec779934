"""The deadline: re-plan the rest of a run by the measured times of its stages and steps, and its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from headshotkit.core import runtime
from headshotkit.core.budget import TimeBudget
from headshotkit.core.errors import BadConfig
from headshotkit.families.costs import gpu_named
from headshotkit.planning.ladder import FIXED, STAGES, headshot_seconds, stages_of, step_seconds
from headshotkit.planning.plan import Plan, plan_rest, plan_run

TIMED_STEPS = 20
"""Steps that are timed before the rest is planned again."""
LEAST_MINUTES = 0.5
"""Minutes always reserved for generation, without loading."""
LESS_MEMORY = 0.99
"""Memory of the next plan, at most, relative to the one that ran out."""


def plan_here(
    base: str, count: int, minutes: float, steps: int = 0, stages: tuple[str, ...] = STAGES, **training
) -> Plan:
    """Plan a run on this machine.

    Args:
        base, count, minutes: as for `plan_run`; the embedded base is planned at a CPU's rates on any machine, another
            one on Apple's GPU at a T4's, its memory unchecked.
        steps: of the training, if the user set them; 0: the plan decides.
        stages: those to do, of `ladder.STAGES`.
        **training: `method`, `batch`, `checkpointing`, `prior`, `class_images`, `worded` and `steps_done`, as `Task`
            has them.
    Raises:
        BadConfig: no rate is known for that base here, or it can't be trained by that method.
        TooFewMinutes, NotEnoughMemory: not even the cheapest plan fits.
    """
    known = training | {"steps": steps, "done": tuple(name for name in STAGES if name not in stages)}
    gpu = runtime.gpu_memory()
    if gpu is None and base != "mini" and runtime.choose_device()[0] == "mps":
        return plan_run("t4", count, minutes, base, memory_gib=0.0, **known)  # until steps have been timed
    if gpu is None or base == "mini":
        return plan_run("cpu", count, minutes, base, **known)
    return plan_run(gpu_named(gpu[0])[0], count, minutes, base, memory_gib=gpu[1], **known)


class DeadlineController:
    """Controller that keeps a run within its minutes by re-planning the rest. `plan` is the current plan.

    Args:
        plan: of the whole run, which starts now.
        clock: seconds that never go back, of the run's `budget`.
        tell: is called with a line whenever the plan changes.

    `why` is the reason for the current plan; empty for the first one. `stages` has for each stage that began the
    minutes planned at first, expected when it began (for training: after its timed steps), and taken.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic, tell: Callable[[str], None] = print):
        self.plan, self.clock, self.tell = plan, clock, tell
        self.budget = TimeBudget(clock() + plan.task.minutes * 60, clock)
        self.marks: list[float] = []
        self.why = ""
        self.first, self.stages, self.began = plan, [], self.clock()

    @property
    def sizes_px(self) -> set[int]:
        """Return the sides of all training pictures that any plan may use, px."""
        return {px for choice in self.plan.task.ladder for px, _ in choice.schedule}

    @property
    def minutes_left(self) -> float:
        """Return the minutes until the deadline; negative beyond it."""
        return self.budget.minutes_left

    @property
    def rendering(self) -> dict:
        """Return the GenerateConfig settings that the plan decides, and the minutes that the later stages leave."""
        return self.plan.rendering | {"minutes": round(self.share("generate").minutes_left, 2)}

    def share(self, stage: str) -> TimeBudget:
        """Return a stage's share of the run's time: what the stages after it leave, at worst.

        Generation always gets its least minutes.
        """
        after = STAGES[STAGES.index(stage) + 1 :]
        share = self.budget.without(sum(later.pessimistic for later in self.plan.stages if later.name in after))
        if stage != "generate":
            return share
        least = TimeBudget(self.clock() + self.least_minutes * 60, self.clock)
        return max(share, least, key=lambda budget: budget.end_s)

    @property
    def least_minutes(self) -> float:
        """Return the minutes that generation always gets, loading included."""
        return LEAST_MINUTES + FIXED[self.plan.task.kind]["load"][1]

    @property
    def evaluating(self) -> dict:
        """Return the most pairs that evaluation may draw, and its time, with the gallery's reserved."""
        return {"pairs": self.plan.choice.pairs, "budget": self.share("evaluate")}

    def begin(self, stage: str) -> None:
        """Note that a stage begins, and its expected minutes.

        Generation is expected to use all its minutes, as it tries again until every prompt has a headshot.
        """
        self.began = self.clock()
        expected = self._minutes_of(self.plan, stage)
        if stage == "generate":
            expected = self.rendering["minutes"]
        if stage == "evaluate":
            expected = min(expected, max(self.share("evaluate").minutes_left, 0.0))
        planned = round(self._minutes_of(self.first, stage), 3)
        self.stages.append({"stage": stage, "planned": planned, "expected": round(expected, 3), "minutes": None})

    def _minutes_of(self, plan: Plan, stage: str) -> float:
        """Return the minutes of a stage in a plan; the download counts in the stage that first loads the weights."""
        brings = "prepare" if self.plan.task.class_images else "train"
        names = (stage, "download") if stage == brings else (stage,)
        return sum(one.minutes for one in plan.stages if one.name in names)

    def finish(self, stage: str, picture_s: float = 0.0) -> Plan:
        """Note that a stage and all before it are done, and plan the rest with the minutes left.

        Args:
            stage: one of `ladder.STAGES`.
            picture_s: seconds that drawing and judging a picture took in it; 0: it drew none.
        Raises:
            BadConfig: no stage has that name.
        """
        if stage not in STAGES:
            raise BadConfig(
                f"no stage is called {stage!r}.", f"The stages are: {', '.join(STAGES)}.", "Correct the name."
            )
        if self.stages and self.stages[-1]["stage"] == stage:
            self.stages[-1]["minutes"] = round((self.clock() - self.began) / 60, 3)
        task = self.plan.task
        known = {"done": (*task.done, *STAGES[: STAGES.index(stage) + 1]), "begun": False}
        if stage == "prepare" and task.class_images:
            known |= {"done": (*known["done"], "download"), "class_images": 0}
        if picture_s:
            planned = headshot_seconds(replace(task, slower=0.0, drawing_slower=0.0), self.plan.choice)[0]
            known["drawing_slower"] = picture_s / planned
        return self._plan_again(f"after {stage}", **known)

    def record(self) -> dict:
        """Return the first plan, the record of each stage, and the minutes left."""
        return {"plan": self.first.to_dict(), "stages": self.stages, "minutes_left": round(self.minutes_left, 3)}

    def start_training(self, settings: dict, steps_done: int) -> None:
        """Note that the training's first step comes next: everything before it is done.

        Args:
            settings: the training's actual ones, as `Plan.training` names them; it may have begun under another plan.
            steps_done: the step to resume at.
        Raises:
            BadConfig: the cost of one of the sizes is not known.
        """
        before = STAGES[: STAGES.index("train")]
        task = replace(self.plan.task, steps_done=steps_done, done=(*before, *self.plan.task.done), begun=True)
        choice = replace(self.plan.choice, schedule=settings["schedule"], batch=settings["batch"])
        stages = stages_of(task, choice, settings["checkpointing"])
        self.plan = replace(self.plan, task=task, choice=choice, checkpointing=settings["checkpointing"], stages=stages)
        self.marks = []

    def time_step(self) -> Plan:
        """Note that a training step is done; the first is untimed. After 20 timed ones, plan the rest by their median.

        If that changes the steps, 20 of the new ones are timed as well.
        """
        task, choice = self.plan.task, self.plan.choice
        self.marks.append(self.clock())
        self.plan = replace(self.plan, task=replace(task, steps_done=task.steps_done + 1))
        if len(self.marks) != TIMED_STEPS + 1:
            return self.plan
        seconds = statistics.median(b - a for a, b in zip(self.marks, self.marks[1:], strict=False))
        px = choice.px_at(task.steps_done)
        central, _ = step_seconds(replace(task, slower=0.0), choice, px, self.plan.checkpointing)
        before = self.plan.training
        after = self._plan_again(f"a step takes {seconds:.2f} s, planned {central:.2f}", slower=seconds / central)
        if after.training != before:
            self.marks = []
        if self.stages and self.stages[-1]["stage"] == "train":
            spent = (self.clock() - self.began) / 60
            self.stages[-1]["expected"] = round(spent + self._minutes_of(after, "train"), 3)
        return after

    def out_of_memory(self, stage: str = "train", steps_done: int | None = None) -> Plan:
        """Return the next plan that needs less memory for the stage that ran out.

        Args:
            stage: where it happened.
            steps_done: of the checkpoint that the training resumes from; None: as counted so far.
        Raises:
            NotEnoughMemory: there is none.
        """
        needed = next((s.peak_gib for s in self.plan.stages if s.name == stage), self.plan.peak_gib)
        self.marks = []
        known = {"train_gib" if stage == "train" else "memory_gib": needed * LESS_MEMORY}
        if steps_done is not None:
            known["steps_done"] = steps_done
        return self._plan_again(f"out of memory in {stage}, planned {needed:.1f} GiB", **known)

    def _plan_again(self, why: str, **known) -> Plan:
        before, self.why = self.plan, why
        task = replace(before.task, minutes=self.minutes_left, **known)
        self.plan = plan_rest(task, must_fit=False)
        if _work(before, self.plan) != _work(self.plan, self.plan):
            self.tell(f"planned again, {why}:\n{self.plan.explain()}")
        if self.plan.pessimistic > task.minutes:
            late = self.plan.pessimistic - task.minutes
            self.tell(f"{why}: {task.minutes:.0f} minutes are left, the cheapest plan may end {late:.0f} minutes late")
        return self.plan


def _work(plan: Plan, rest: Plan) -> tuple:
    """Return a plan's settings for the stages that another plan still has to do."""
    choice, settings = plan.choice, ()
    if rest.doing("train"):
        settings += (choice.schedule, choice.batch, plan.checkpointing)
    if rest.doing("generate"):
        settings += (choice.sampler_steps, choice.guidance_share)
    if rest.doing("evaluate"):
        settings += (choice.pairs,)
    return settings
