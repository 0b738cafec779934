"""Write and read checkpoints, which appear whole; delay signals until the end of a step.

A checkpoint is what `torch.save` writes: a zip file, whose checksums show damage.
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
"""Errors that reading a truncated or altered file can raise."""


def to_bytes(state: dict) -> bytes:
    """Return tensors and plain values as bytes that `read_checked` reads."""
    import torch  # not above: `check` and `gallery` only need the newest step's number, not torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_checked(path: Path, needed: tuple[str, ...] = (), **same: object) -> dict:
    """Return what `to_bytes` was given, on the CPU; check its checksums, which torch itself does not.

    Args:
        needed: keys that it must hold.
        same: name -> value that it must have, if the file has the name.
    Raises:
        one of DAMAGE: the file is truncated, altered, holds something else or can't be read.
        MemoryError: memory ran out; the file was undamaged up to there.
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
    """Return the step of a training's newest checkpoint, by the file names; 0 if there is none."""
    return _step(Checkpoints(stage_folder, 1).files())


class Checkpoints:
    """The newest few checkpoints of one training: `checkpoints/000350.pt` is the one after 350 steps.

    Args:
        stage_folder: folder that holds `checkpoints/`.
        keep: number of checkpoints kept, at least 1.
    """

    def __init__(self, stage_folder: Path, keep: int) -> None:
        self.folder, self.keep = stage_folder / CHECKPOINTS, keep

    def files(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(self.folder.glob("[0-9]*.pt"))

    def save(self, step: int, state: dict) -> None:
        """Write a checkpoint, then remove the oldest ones beyond `keep`.

        Raises:
            DiskFull, RunFolderError: as `write`.
        """
        path = self.folder / f"{step:06d}.pt"
        self.write(path, to_bytes(state))
        for old in [file for file in self.files() if file != path][: -self.keep + 1 or None]:
            discard(old)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file atomically; if the disk is full, remove all checkpoints but the newest to make room.

        The checkpoint of step 0 is removed too: starting again gives the same.

        Raises:
            DiskFull: there still is no room; the newest checkpoint stays, and the error names it.
            RunFolderError: the path can't be written.
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
                f"Free some space, then give the same command again: it resumes at step {_step(kept)}.",
            ) from error

    def newest(self, needed: tuple[str, ...] = (), **same: object) -> tuple[dict | None, list[str]]:
        """Return the newest undamaged checkpoint, and what was wrong with newer ones: (state, problems).

        A damaged file is renamed to end in `.damaged`. The state is None if there is no good one.

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
        """Remove all checkpoints."""
        with contextlib.suppress(OSError):
            discard(self.folder)


def _step(files: list[Path]) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    return int(files[-1].stem) if files else 0


def random_states() -> dict:
    """Return the states of the random generators of Python, numpy and torch, as tensors and plain values."""
    import torch

    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict) -> None:
    """Restore the states that `random_states` returned; states of GPUs that this machine lacks are skipped."""
    import torch

    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)


class Interruption:
    """Note Ctrl-C and SIGTERM, so that a step ends and is saved before they take effect; a second one doesn't wait.

    Nothing changes for an ignored signal, or outside the main thread, where Python allows no handlers.
    `signal` is the number of the signal received, or None.
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
        self.pass_on()
        self.signal = number

    def pass_on(self) -> None:
        """Pass the signal, if there was one, to the previous handler, and end the training in any case.

        Raises:
            KeyboardInterrupt: the previous handler did not end the process.
        """
        if self.signal is None:
            return
        self.__exit__()
        signal.raise_signal(self.signal)
        raise KeyboardInterrupt
