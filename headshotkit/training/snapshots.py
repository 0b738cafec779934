"""Save snapshots of the LoRA during its training, to see how it learns the person.

Each is a separate LoRA file in `lora/previews/`, which diffusers loads; they stay when checkpoints are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headshotkit.config import TrainConfig
from headshotkit.training.state import TrainState

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

    def __init__(self, stage_folder: Path, config: TrainConfig, write: Callable) -> None:
        self.folder, self.write, self.count = stage_folder, write, config.snapshots
        self.facts = {"base": config.base, "rank": config.rank, "alpha": config.alpha}

    def follow(self, state: TrainState, steps: int) -> None:
        """Write a snapshot if one is due now: of the LoRA's average if there is one.

        Args:
            steps: of the whole training, as planned now.
        Raises:
            DiskFull, RunFolderError: it can't be written.
        """
        if state.step not in snapshot_steps(steps, self.count):
            return
        facts = {f"headshotkit.{name}": str(value) for name, value in (self.facts | {"steps": state.step}).items()}
        with state.averaged():
            data = state.family.lora_file(facts)
        self.write(snapshot_file(self.folder, state.step), data)
