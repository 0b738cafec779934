"""Save snapshots of the LoRA during its training, to see how it learns the person.

Each is a separate LoRA file in `lora/previews/`, which diffusers loads; they stay when checkpoints are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from headshotkit.config import TrainConfig
from headshotkit.families import Family

PREVIEWS = "previews"


def snapshot_steps(steps: int, count: int) -> tuple[int, ...]:
    """Return the steps of a training after which `count` snapshots are taken: evenly spread, the last one at the end.

    >>> snapshot_steps(700, 3)
    (233, 467, 700)
    """
    return tuple(round(steps * n / count) for n in range(1, count + 1))


def snapshot_file(folder: Path, step: int) -> Path:
    """Return a snapshot's path in the stage's folder."""
    return folder / PREVIEWS / f"{step:06d}.safetensors"


def snapshots_in(folder: Path) -> tuple[int, ...]:
    """Return the steps after which a training took snapshots, by the files in the stage's folder, in order."""
    return tuple(sorted(int(file.stem) for file in (folder / PREVIEWS).glob("[0-9]*.safetensors")))


class Snapshots:
    """Take the snapshots of one training.

    Args:
        stage_folder: folder that holds `previews/`.
        write: function that writes a file atomically: (path, bytes).
    """

    def __init__(self, stage_folder: Path, config: TrainConfig, family: Family, write: Callable) -> None:
        self.folder, self.family, self.write = stage_folder, family, write
        self.count = config.snapshots
        self.facts = {"base": config.base, "rank": config.rank, "alpha": config.alpha}

    def follow(self, done: int, steps: int, parameters: list, average: list) -> None:
        """Write a snapshot if one is due after `done` steps: of the LoRA's average if there is one.

        Args:
            steps: of the whole training, as planned now.
        Raises:
            DiskFull, RunFolderError: it can't be written.
        """
        if done not in snapshot_steps(steps, self.count):
            return
        facts = {f"headshotkit.{name}": str(value) for name, value in (self.facts | {"steps": done}).items()}
        with _holding(parameters, average):
            data = self.family.lora_file(facts)
        self.write(snapshot_file(self.folder, done), data)


@contextmanager
def _holding(parameters: list, average: list):
    """Put the average into the LoRA temporarily; do nothing if there is none."""
    own = [p.detach().clone() for p in parameters] if average else []
    try:
        _copy(average, parameters)
        yield
    finally:
        _copy(own, parameters)


@torch.no_grad()
def _copy(values: list, parameters: list) -> None:
    for parameter, value in zip(parameters, values, strict=False):
        parameter.copy_(value)
