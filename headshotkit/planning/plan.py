"""The planner: a run's time and memory on a machine, before any download, and what to cut to fit.

It goes down a ladder of choices, best first, and takes the first one whose pessimistic time fits into the minutes
and whose memory fits into the GPU. `deadline` plans the rest again during the run.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from headshotkit.config import GenerateConfig, PlanConfig
from headshotkit.config.bases import find_base
from headshotkit.core.errors import BadConfig, NotEnoughMemory, TooFewMinutes, UnknownGpu
from headshotkit.families.costs import GPUS
from headshotkit.planning.ladder import ATTEMPTS, METHOD_LADDERS, Choice, Stage, Task, stages_of

RESERVE = 0.05
"""Share of the minutes left unplanned."""
UNMEASURED = "minutes and GiB: counted and estimated, nothing was measured with this base"


@dataclass(frozen=True)
class Plan:
    """The settings of a run, its time, and why no better ones fit."""

    task: Task
    choice: Choice
    checkpointing: bool
    stages: tuple[Stage, ...]
    sacrifices: tuple[str, ...]

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
        """Return whether the pessimistic time fits, with the reserve."""
        return self.pessimistic <= self.task.minutes * (1 - RESERVE)

    @property
    def training(self) -> dict:
        """Return the TrainConfig settings that the plan decides."""
        choice = self.choice
        return {"schedule": choice.schedule, "steps": choice.steps, "batch": choice.batch,
                "checkpointing": self.checkpointing}  # fmt: skip

    @property
    def rendering(self) -> dict:
        """Return the GenerateConfig settings that the plan decides."""
        return {"sampler_steps": self.choice.sampler_steps, "guidance_share": self.choice.guidance_share}

    def doing(self, stage: str) -> bool:
        """Return whether that stage is still to do."""
        return any(one.name == stage for one in self.stages)

    def explain(self) -> str:
        """Return the choice, what it sacrifices and why; a line each."""
        caution = find_base(self.task.base).caution
        lines = [f"{self.task.base}, {caution}", UNMEASURED] if caution else []
        if self.doing("train"):
            sizes = ", then ".join(f"{steps} at {px} px" for px, steps in self.choice.schedule)
            memory = f"checkpointing {'on' if self.checkpointing else 'off'}"
            how = "" if self.task.method == "lora" else f"by {self.task.method}: "
            class_images = ", and as many class images" if self.task.prior else ""
            lines.append(f"train {how}{sizes}; batch {self.choice.batch}{class_images}; {memory}")
        if self.doing("pick"):
            lines.append(f"pick by {self.task.pick} pictures")
        if self.doing("generate"):
            guided = GenerateConfig.for_base(self.task.base).guidance > 1
            lines.append(
                f"generate {self.task.count} headshots, {ATTEMPTS[self.task.kind]:g} attempts each; "
                f"{self.choice.sampler_steps} sampler steps"
                + (f", guidance in the first {self.choice.guidance_share:.0%}" if guided else "")
            )
        if self.doing("evaluate"):
            pairs = min(self.choice.pairs, self.task.count)
            lines.append(f"evaluate: {pairs} first attempts generated again without the LoRA")
        lines.append(f"speed of {self.task.rates.name}: {self.task.rates.source}")
        if self.peak_gib and self.task.memory_gib:
            lines.append(f"memory: at most {self.peak_gib:.1f} of {self.task.memory_gib:.1f} GiB, margin included")
        lines += [f"sacrificed {line}" for line in self.sacrifices]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return the plan for JSON: settings, stages, sums, reasons."""
        choice = {name: value for name, value in asdict(self.choice).items() if name not in ("sacrificed", "stage")}
        return {
            "gpu": self.task.rates.name, "base": self.task.base, "method": self.task.method, "count": self.task.count,
            "minutes_given": self.task.minutes, "fits": self.fits, **choice, "checkpointing": self.checkpointing,
            "stages": [asdict(stage) for stage in self.stages], "minutes": self.minutes,
            "pessimistic": self.pessimistic, "peak_gib": self.peak_gib, "memory_gib": self.task.memory_gib,
            "given_up": list(self.sacrifices), "source": self.task.rates.source,
        }  # fmt: skip


def plan_table(plan: Plan) -> str:
    """Return a line a stage and the sums."""
    lines = [f"{'stage':<10}{'minutes':>9}{'at worst':>10}{'GiB':>7}"]
    total = Stage("all", plan.minutes, plan.pessimistic, plan.peak_gib)
    for stage in (*plan.stages, total):
        gib = f"{stage.peak_gib:>7.1f}" if stage.peak_gib else f"{'-':>7}"
        lines.append(f"{stage.name:<10}{stage.minutes:>9.1f}{stage.pessimistic:>10.1f}{gib}")
    return "\n".join(lines)


def plan_run(gpu: str = "t4", count: int = 50, minutes: float = 60.0, base: str | None = None, **known) -> Plan:
    """Plan a whole run, or the rest of one.

    Args:
        gpu: one of `costs.GPUS`.
        count: headshots to deliver, at least 1.
        minutes: the run's limit in the pessimistic case, finite.
        base: as `bases.find_base` takes it; None is mini on "cpu", else sdxl.
        known: other fields of `Task`, such as `memory_gib`, `done`, `steps`, `class_images`, `pick`.
    Raises:
        UnknownGpu, UnknownBase: no rates of that GPU; no such base.
        BadConfig: count or minutes are too small, no rate is known for that base on that GPU, or the base can't be
            trained by that method.
        TooFewMinutes, NotEnoughMemory: not even the cheapest plan fits; the error has the least possible.

    >>> plan = plan_run("t4", count=50, minutes=60)
    >>> plan.choice.schedule, plan.checkpointing
    (((768, 700), (1024, 300)), False)
    """
    if gpu not in GPUS:
        known = ", ".join(GPUS)
        raise UnknownGpu(
            f"no speeds are known for GPU {gpu!r}.", f"The known GPUs are: {known}.", "Use the closest slower GPU."
        )
    found = find_base(base or ("mini" if gpu == "cpu" else "sdxl"))
    base = found.name
    PlanConfig(count=count, minutes=minutes, class_images=known.get("class_images", 0), pick=known.get("pick", 0))
    if (gpu == "cpu") != (base == "mini"):
        why = "The embedded base was timed on a CPU only, and a larger base would take hours there."
        raise BadConfig(
            f"base is {base!r}, gpu is {gpu!r}.", why, "Plan --gpu cpu --base mini or --gpu t4 --base sdxl."
        )
    if not found.counted:
        raise BadConfig(
            f"base is {base!r}: its time is not known.",
            "Costs were counted for SDXL's own sizes, and this denoiser has others."
            if found.spec.costs
            else f"No costs were counted for its family, {found.family}.",
            "Run without --minutes; the training prints its time after the first steps.",
        )
    task = replace(Task(GPUS[gpu], base, count, float(minutes), GPUS[gpu].memory_gib), **known)
    _demand_a_known_method(task)
    return plan_rest(task)


def _demand_a_known_method(task: Task) -> None:
    """Refuse an unknown method of the base, and class images for a method that does not train the denoiser."""
    if task.method != "lora" and (task.kind, task.method) not in METHOD_LADDERS:
        can = [name for kind, name in METHOD_LADDERS if kind == task.kind]
        raise BadConfig(
            f"method is {task.method!r}, base is {task.base!r}.",
            f"It can be trained by: {', '.join(['lora', *can])}.",
            "Choose one of these, for example --method lora, or another base: --base sdxl",
        )
    if task.method == "textual-inversion" and task.prior:
        raise BadConfig(
            "method is 'textual-inversion', and there are class images.",
            "They stabilise the denoiser, which this method does not train.",
            "Plan without them (--class-images 0), or with --method pivotal.",
        )


def plan_rest(task: Task, must_fit: bool = True) -> Plan:
    """Return the first choice of the ladder that fits; without `must_fit` the cheapest one if none does.

    Raises:
        TooFewMinutes: none fits into the minutes (with `must_fit`).
        NotEnoughMemory: none fits into the memory.
    """
    sacrifices: list[str] = []
    refused, cheapest, least_gib = "", None, 0.0
    for choice in options_of(task):
        if choice.sacrificed and choice.stage not in task.done:
            sacrifices.append(f"{choice.sacrificed}: {refused}")
        plan, too_large = _with_room(task, choice, tuple(sacrifices))
        if plan is None:
            refused, least_gib = too_large[0], min(least_gib or math.inf, too_large[1])
            continue
        if plan.fits:
            return plan
        refused = f"with it {plan.pessimistic:.0f} minutes at worst, of {task.minutes:.0f} less {RESERVE:.0%}"
        cheapest = min(cheapest or plan, plan, key=lambda p: p.pessimistic)
    if cheapest is None:
        raise _not_enough_memory(task, least_gib)
    if must_fit:
        raise _too_few_minutes(cheapest)
    return cheapest


def options_of(task: Task) -> list[Choice]:
    """Return the ladder of a task with the user's training steps and batch; equal options come once."""
    options: list[Choice] = []
    for choice in task.ladder:
        made = choice.with_steps(task.steps)
        made = replace(made, batch=task.batch or made.batch)
        if not options or replace(made, sacrificed="", stage="") != replace(options[-1], sacrificed="", stage=""):
            options.append(made)
    return options


def _with_room(task: Task, choice: Choice, sacrifices: tuple[str, ...]) -> tuple[Plan | None, tuple[str, float]]:
    """Return a choice's plan, checkpointed if necessary; None if that isn't enough: (plan, (reason, GiB))."""
    too_large = ("", 0.0)
    for checkpointing in (False, True) if task.checkpointing is None else (task.checkpointing,):
        plan = Plan(task, choice, checkpointing, stages_of(task, choice, checkpointing), sacrifices)
        over = [stage for stage in plan.stages if stage.peak_gib > task.room_gib(stage.name)]
        if not over:
            lost = (f"training without checkpointing: {too_large[0]}",) if too_large[0] else ()
            return replace(plan, sacrifices=sacrifices + lost), too_large
        room = task.room_gib(over[0].name)
        too_large = (f"{over[0].name} needs {over[0].peak_gib:.1f} GiB of {room:.1f}", over[0].peak_gib)
    return None, too_large


def _not_enough_memory(task: Task, least_gib: float) -> NotEnoughMemory:
    """Return the error, with the memory needed and the alternatives."""
    held, by = "The weights", ""
    if task.method != "lora":
        by, held = f" by {task.method}", "What is trained, its gradients and the optimizer's state, the other weights"
    room = min(task.room_gib("train"), task.memory_gib or math.inf)
    other = "Train with --method lora, or use" if by else "Use"
    return NotEnoughMemory(
        f"the cheapest plan{by} needs {least_gib:.1f} GiB of the GPU, which is more than is available: {room:.1f}.",
        f"{held} of {task.base} and one step's activations must fit in memory together.",
        f"{other} a larger GPU; the known ones are: "
        + ", ".join(f"{name} ({gpu.memory_gib:.0f} GiB)" for name, gpu in GPUS.items() if gpu.memory_gib) + ".",
    )  # fmt: skip


def _too_few_minutes(cheapest: Plan) -> TooFewMinutes:
    """Return the error, with the least minutes that would be enough."""
    task, least = cheapest.task, math.ceil(cheapest.pessimistic / (1 - RESERVE))
    untried = find_base(task.base).experimental
    return TooFewMinutes(
        f"{task.count} headshots in {task.minutes:g} minutes can't be done on {task.rates.name}.",
        f"The cheapest plan takes {cheapest.minutes:.0f} minutes, {cheapest.pessimistic:.0f} at worst; it needs "
        f"{cheapest.peak_gib:.1f} of {task.memory_gib:.1f} GiB" + (f"; {UNMEASURED}." if untried else "."),
        f"Give at least {least} minutes, ask for fewer headshots, or use a faster GPU.",
    )
