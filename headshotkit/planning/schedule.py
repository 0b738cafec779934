"""What each step of a training is made with: sizes one after the other, and settings that change on the way.

A change is noted in the manifest with the step from which it holds. So any step can be made again exactly, whatever
was changed after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from headshotkit.config import TrainConfig
from headshotkit.core.errors import BadConfig

MAY_CHANGE = ("schedule", "steps", "batch", "checkpointing")
"""Settings of TrainConfig that may change while a training runs."""

Schedule = tuple[tuple[int, int], ...]
"""(side of the square picture px, steps) one after another."""


def px_at(schedule: Schedule, step: int) -> int:
    """The size of a step (from 0) in px; beyond the schedule the last one.

    >>> [px_at(((768, 700), (1024, 300)), step) for step in (0, 699, 700, 5000)]
    [768, 768, 1024, 1024]
    """
    for px, steps in schedule:
        if step < steps:
            return px
        step -= steps
    return px


class Planned(Protocol):
    """A plan as far as a training needs it: `training` has the settings of MAY_CHANGE."""

    training: dict


class Controller(Protocol):
    """Who decides the settings of a training while it runs; `deadline.DeadlineController` does.

    `plan` is the plan that holds, `why` says why it was made, `sizes_px` are all sizes that one may come to want.
    """

    plan: Planned
    why: str
    sizes_px: set[int]

    def start_training(self, settings: dict, steps_done: int) -> None:
        """The next step is the first of this process; `settings` are those of MAY_CHANGE that it has."""

    def time_step(self) -> Planned:
        """A step is done; the plan that holds from now on."""

    def out_of_memory(self, stage: str, steps_done: int) -> Planned:
        """A step ran out of memory; a plan that needs less, or NotEnoughMemory is raised."""


class Pacing:
    """The settings of each step: the config's, and from some step on those that took their place.

    Args:
        config: what the training was begun with.
        size_px: side of the dataset's pictures, the size of all steps where the config has no schedule.
        changes: as a manifest has them; `change` adds to this list.
    Raises:
        BadConfig: the schedule has a size that is larger than the dataset's pictures.
    """

    def __init__(self, config: TrainConfig, size_px: int, changes: list[dict]) -> None:
        self.changes, self.size_px = changes, size_px
        self.begun = replace(config, schedule=config.schedule or ((size_px, config.steps),))
        self._demand_sizes(self.begun.schedule)

    def at(self, step: int) -> TrainConfig:
        """The settings that a step (from 0) is made with; its schedule is never empty."""
        settings = self.begun
        for change in self.changes:
            if change["step"] <= step:
                settings = replace(self.begun, **_settings(change))
        return settings

    def px_at(self, step: int) -> int:
        """The size of a step's pictures, px."""
        return px_at(self.at(step).schedule, step)

    def sizes_px(self, controller: Controller | None = None) -> set[int]:
        """All sizes that steps are or may be made at, px; a controller's only where the pictures are large enough."""
        schedules = [self.begun.schedule, *(change["schedule"] for change in self.changes)]
        certain = {px for schedule in schedules for px, _ in schedule}
        return certain | {px for px in (controller.sizes_px if controller else ()) if px <= self.size_px}

    def pictures_before(self, step: int) -> int:
        """How many pictures the steps before one have drawn: the sampler's place."""
        starts = [0, *(min(change["step"], step) for change in self.changes), step]
        batches = [self.begun.batch, *(change["batch"] for change in self.changes)]
        return sum(batch * (b - a) for batch, a, b in zip(batches, starts, starts[1:], strict=False))

    def change(self, step: int, settings: dict, why: str) -> None:
        """From a step on other settings hold; changes noted for later steps are void.

        Args:
            settings: those of MAY_CHANGE.
            why: goes to the manifest with it.
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
                f"Lower TrainConfig.schedule, or prepare with DatasetConfig.size_px {largest}.",
            )


def changing(settings: TrainConfig) -> dict:
    """Those settings of a config that may change on the way."""
    return {name: getattr(settings, name) for name in MAY_CHANGE}


def _settings(change: dict) -> dict:
    """A noted change as settings of TrainConfig, whether it came from JSON or not."""
    settings = {name: change[name] for name in MAY_CHANGE}
    return settings | {"schedule": tuple(tuple(part) for part in change["schedule"])}
