"""The settings of each training step: sizes one after the other, and settings that change during training.

A change is noted in the manifest with the step from which it applies. So any step can be repeated exactly, whatever
changed after it.
"""

from __future__ import annotations

from typing import Protocol

from headshotkit.config import TrainConfig
from headshotkit.core.errors import BadConfig

MAY_CHANGE = ("schedule", "steps", "batch", "checkpointing")
"""Settings of TrainConfig that may change while a training runs."""

Schedule = tuple[tuple[int, int], ...]
"""(side of the square picture px, steps) one after another."""


def px_at(schedule: Schedule, step: int) -> int:
    """Return the size of a step (from 0) in px; the last one beyond the schedule.

    >>> [px_at(((768, 700), (1024, 300)), step) for step in (0, 699, 700, 5000)]
    [768, 768, 1024, 1024]
    """
    for px, steps in schedule:
        if step < steps:
            return px
        step -= steps
    return px


class Planned(Protocol):
    """The part of a plan that a training uses: `training` has the settings of MAY_CHANGE."""

    training: dict


class Controller(Protocol):
    """The decider of a training's settings while it runs; `deadline.DeadlineController` is one.

    `plan` is the current plan, `why` its reason, `sizes_px` are all sizes that any plan may use.
    """

    plan: Planned
    why: str
    sizes_px: set[int]

    def start_training(self, settings: dict, steps_done: int) -> None:
        """Note that the next step is this process's first; `settings` are its values of MAY_CHANGE."""

    def time_step(self) -> Planned:
        """Note that a step is done; return the plan from now on."""

    def out_of_memory(self, stage: str, steps_done: int) -> Planned:
        """Return a plan that needs less memory after a step ran out; raise NotEnoughMemory if there is none."""


class Pacing:
    """The settings of each step: the config's, replaced by later ones from some step on.

    Args:
        config: the settings that the training began with.
        size_px: side of the dataset's pictures, the size of all steps if the config has no schedule.
        changes: as in a manifest; `change` appends to this list.
    Raises:
        BadConfig: the schedule has a size that is larger than the dataset's pictures.
    """

    def __init__(self, config: TrainConfig, size_px: int, changes: list[dict]) -> None:
        self.changes, self.size_px = changes, size_px
        self.begun = config.replace(schedule=config.schedule or ((size_px, config.steps),))
        self._demand_sizes(self.begun.schedule)

    def at(self, step: int) -> TrainConfig:
        """Return the settings of a step (from 0); its schedule is never empty."""
        settings = self.begun
        for change in self.changes:
            if change["step"] <= step:
                settings = self.begun.replace(**_settings(change))
        return settings

    def px_at(self, step: int) -> int:
        """Return the size of a step's pictures, px."""
        return px_at(self.at(step).schedule, step)

    def sizes_px(self, controller: Controller | None = None) -> set[int]:
        """Return all sizes of present or future steps, px; a controller's only if the pictures are large enough."""
        schedules = [self.begun.schedule, *(change["schedule"] for change in self.changes)]
        certain = {px for schedule in schedules for px, _ in schedule}
        return certain | {px for px in (controller.sizes_px if controller else ()) if px <= self.size_px}

    def pictures_before(self, step: int) -> int:
        """Return the number of pictures drawn by the steps before this one: the sampler's position."""
        starts = [0, *(min(change["step"], step) for change in self.changes), step]
        batches = [self.begun.batch, *(change["batch"] for change in self.changes)]
        return sum(batch * (b - a) for batch, a, b in zip(batches, starts, starts[1:], strict=False))

    def change(self, step: int, settings: dict, why: str) -> None:
        """Apply other settings from a step on; changes noted for later steps become void.

        Args:
            settings: those of MAY_CHANGE.
            why: is noted in the manifest.
        """
        self._demand_sizes(settings["schedule"])
        self.changes[:] = [change for change in self.changes if change["step"] < step]
        self.changes.append({"step": step, "why": why} | {name: settings[name] for name in MAY_CHANGE})

    def _demand_sizes(self, schedule: Schedule) -> None:
        largest = max(px for px, _ in schedule)
        if largest > self.size_px:
            raise BadConfig(
                f"schedule has {largest} px, the dataset's pictures have {self.size_px}.",
                "Enlarged pictures would teach blur.",
                f"Lower TrainConfig.schedule, or prepare with PrepareConfig.size_px {largest}.",
            )


def changing(settings: TrainConfig) -> dict:
    """Return the settings of a config that may change during training."""
    return {name: getattr(settings, name) for name in MAY_CHANGE}


def _settings(change: dict) -> dict:
    """Return a noted change as settings of TrainConfig, from JSON or not."""
    settings = {name: change[name] for name in MAY_CHANGE}
    return settings | {"schedule": tuple(tuple(part) for part in change["schedule"])}
