"""What keeps a training's steps: checkpoints that appear whole, and signals that wait for the end of a step.

A checkpoint is what `torch.save` writes: a zip file, whose check sums tell whether it came back undamaged.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import signal
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np

from headshotkit.core import runtime
from headshotkit.core.errors import DiskFull
from headshotkit.core.run import discard, write_atomic

CHECKPOINTS = "checkpoints"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C and a notebook's stop button; what Colab and clusters send before they kill."""
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, NotImplementedError, struct.error,
          zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)  # fmt: skip
"""What reading a cut or altered file can end in."""


def to_bytes(state: dict) -> bytes:
    """Tensors and plain values as `read_checked` reads them."""
    import torch  # not above: `check` and `gallery` ask for the newest step's number alone, and need no torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_checked(path: Path, needed: tuple[str, ...] = (), **same: object) -> dict:
    """What `to_bytes` gave, on the CPU, if no bit of it has changed; torch itself leaves the check sums alone.

    Args:
        needed: what it must hold.
        same: name -> value of what must be as it is here, where the file says anything of it.
    Raises:
        one of DAMAGE: the file is cut, altered, holds something else or can't be read.
        MemoryError: it is whole as far as it was read, but memory gave out.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()
        if spoilt:
            raise zipfile.BadZipFile(f"the check sum of {spoilt} is wrong")
        state = torch.load(path, weights_only=True, map_location="cpu")
    except DAMAGE as error:
        if said := runtime.out_of_memory(error):
            raise MemoryError(said) from error
        raise
    missing = [name for name in needed if not isinstance(state, dict) or name not in state]
    if missing:
        raise ValueError(f"it holds no {', '.join(missing)}")
    other = [name for name, value in same.items() if state.get(name, value) != value]
    if other:
        raise ValueError(f"it belongs to another training: its {', '.join(other)} differs")
    return state


def newest_step(stage_folder: Path) -> int:
    """The step of a training's newest checkpoint, by the files' names; 0 where there is none."""
    return _step(Checkpoints(stage_folder, 1).files())


class Checkpoints:
    """The checkpoints of one training: `checkpoints/000350.pt` after 350 steps, the newest few of them.

    Args:
        stage_folder: folder that holds `checkpoints/`.
        keep: how many are kept, at least 1.
    """

    def __init__(self, stage_folder: Path, keep: int) -> None:
        self.folder, self.keep = stage_folder / CHECKPOINTS, keep

    def files(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("[0-9]*.pt"))

    def save(self, step: int, state: dict) -> None:
        """Writes a checkpoint, then drops the oldest beyond `keep`.

        Raises:
            DiskFull, RunFolderError: as `write`.
        """
        path = self.folder / f"{step:06d}.pt"
        self.write(path, to_bytes(state))
        for old in [file for file in self.files() if file != path][: -self.keep + 1 or None]:
            discard(old)

    def write(self, path: Path, data: bytes) -> None:
        """Writes a file atomically; where the disk is full, all checkpoints but the newest give way to it.

        The one of step 0 gives way too: it holds nothing that beginning anew would not give.

        Raises:
            DiskFull: there is no room even so; the newest checkpoint stays, and the error names it.
            RunFolderError: the place can't be written.
        """
        try:
            return write_atomic(path, data)
        except DiskFull:
            files = self.files()
            for old in files[:-1] if _step(files) else files:
                with contextlib.suppress(OSError):
                    discard(old)
        try:
            write_atomic(path, data)
        except DiskFull as error:
            kept = self.files()
            good = f"the last good checkpoint, {kept[-1]}, stays" if kept else "there is no checkpoint yet"
            raise DiskFull(
                error.happened,
                f"The disk is full, even without older checkpoints; {good}.",
                f"Free some space, then give the same command again: it goes on from step {_step(kept)}.",
            ) from error

    def newest(self, needed: tuple[str, ...] = (), **same: object) -> tuple[dict | None, list[str]]:
        """The newest checkpoint that is undamaged, and what was wrong with newer ones: (state, problems).

        A damaged file is renamed to end in `.damaged`. The state is None where there is no good one.

        Args:
            needed, same: as `read_checked`.
        """
        for half_written in self.folder.glob(".*.part"):  # a kill left it
            discard(half_written)
        problems = []
        for file in reversed(self.files()):
            try:
                return read_checked(file, needed, **same), problems
            except DAMAGE as error:
                problems.append(f"{file.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                with contextlib.suppress(OSError):
                    file.rename(file.with_suffix(".damaged"))
        return None, problems

    def clear(self) -> None:
        """Removes all of them."""
        with contextlib.suppress(OSError):
            discard(self.folder)


def _step(files: list[Path]) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return int(files[-1].stem) if files else 0


def random_states() -> dict:
    """Where the random generators of Python, numpy and torch stand, as tensors and plain values."""
    import torch

    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict) -> None:
    """Puts the random generators where `random_states` found them; states of GPUs that are not here are left out."""
    import torch

    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)


class Interruption:
    """Notes Ctrl-C and SIGTERM, so that a step ends and is saved before they take effect; a second one doesn't wait.

    Outside the main thread, where Python allows no handlers, nothing changes; nor for a signal that is ignored.
    `signal` is the number of the one that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.earlier: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        while self.earlier:
            signal.signal(*self.earlier.popitem())

    def _note(self, number: int, _frame) -> None:
        if self.signal is not None:
            self.pass_on()
        self.signal = number

    def pass_on(self) -> None:
        """Gives the signal to the handler that was there before, and ends the training in any case.

        Raises:
            KeyboardInterrupt: the handler before did not end the process.
        """
        self.__exit__()
        signal.raise_signal(self.signal)
        raise KeyboardInterrupt
