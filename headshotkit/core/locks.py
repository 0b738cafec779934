"""The lock of a run folder: one command at a time writes in it, and any other gets an error that names it.

The operating system holds the lock if it can, and releases it when the process dies. If it can't, as on some mounts of
Google Drive, a lease replaces it: a file that is renewed regularly and expires without renewal.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headshotkit.core.errors import RunBusy, RunFolderError

LOCK, HOLDER = ".lock", ".lock.json"
"""The file that the operating system locks; the file with the lock's holder and the lease."""
BEAT_S, STALE_S = 15.0, 60.0
"""Seconds between two renewals of a lease; seconds without renewal until it expires."""
HOLDER_BYTES = 4096
NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EIO}
"""Error numbers of file systems without locks."""
CANT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS}
"""In a read-only folder nothing can be mixed up: no lock is taken, and the first write raises the error."""


@dataclass
class Held:
    """A lock that this process holds. `system` is the operating system's lock, None if a lease replaces it."""

    folder: Path
    thread: int
    token: str
    system: object | None = None
    made: list[Path] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def mark(self) -> Path:
        """Return the file that exists as long as the lock is held and the run folder exists."""
        return self.folder / (LOCK if self.system else HOLDER)


_held: dict[str, Held] = {}
_registry = threading.Lock()


@contextlib.contextmanager
def working(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a run folder; nested calls of the same thread share it.

    Args:
        command: the work in progress, for the error of a refused command.
    Raises:
        RunBusy: another process or thread works in the folder.
        RunFolderError: the folder can't be created.
    """
    key = os.path.realpath(folder)
    with _registry:
        there = _held.get(key)
        if there and there.thread == threading.get_ident():
            held = None
        elif there:
            raise _busy(folder, _read(there.folder))
        else:
            held = _take(Path(os.path.abspath(folder)), command)
            if held:
                _held[key] = held
    try:
        yield
    finally:
        if held:
            with _registry:
                del _held[key]
            _let_go(held)


def writes(command: str) -> Callable[[Callable], Callable]:
    """Make a function hold the lock of its run: its argument `run`, its object's `run`, or the run folder `out`."""

    def decorate(verb: Callable) -> Callable:
        place = inspect.signature(verb)

        @functools.wraps(verb)
        def wrapped(*args, **options):
            given = place.bind(*args, **options).arguments
            run = given.get("run") or getattr(given.get("self"), "run", None)
            with working(run.folder if run else Path(given["out"]), command):
                return verb(*args, **options)

        return wrapped

    return decorate


def demand_there(path: Path) -> None:
    """Refuse to write into a run folder that was removed or taken over since this process locked it.

    Raises:
        RunFolderError: it was removed or taken over.
    """
    if not _held:
        return
    path = Path(os.path.abspath(path))
    for held in list(_held.values()):
        if not path.is_relative_to(held.folder) or path.name in (LOCK, HOLDER):
            continue
        if not held.mark.exists():
            raise RunFolderError(
                f"stopped, because the run folder {held.folder} was removed.",
                "It existed when this command started.",
                "Give the same command again to begin a new run there.",
            )
        if not held.system and _read(held.folder).get("token") != held.token:
            raise RunFolderError(
                f"stopped, because another command took over the run folder {held.folder}.",
                f"This command gave no sign of life for over {STALE_S:.0f} s, as when a machine sleeps.",
                "Wait until the other command ends, then give the same command again: it resumes.",
            )


def _take(folder: Path, command: str) -> Held | None:
    """Take the lock of a folder; return None if the folder can't be written."""
    from filelock import FileLock, Timeout

    held = Held(folder, threading.get_ident(), uuid.uuid4().hex)
    try:
        for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
            missing.mkdir(0o700)
            held.made.append(missing)
    except FileExistsError:
        pass  # another command made it just now, or it is a file, which the next lines detect
    except OSError as error:
        _remove_empty(held.made)
        if error.errno in CANT_WRITE:
            return None
        raise _cant_lock(folder, error) from error
    lock = FileLock(folder / LOCK, timeout=0, mode=0o600, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
        held.system = lock
    except Timeout:
        raise _busy(folder, _read(folder)) from None
    except OSError as error:
        if error.errno in CANT_WRITE:
            return None
        if error.errno not in NO_FLOCK:
            raise _cant_lock(folder, error) from error
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        _take_lease(held, command)
        return held
    with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder is unknown
        _note(held, command)
    return held


def _take_lease(held: Held, command: str) -> None:
    """Take the lease if no valid one exists, and renew it until it is released.

    Raises:
        RunBusy: another command holds a valid lease.
        RunFolderError: it can't be written.
    """
    place = held.folder / HOLDER
    try:
        if place.exists():
            if not _is_void(_read(held.folder)):
                raise _busy(held.folder, _read(held.folder))
            _note(held, command)
            time.sleep(0.3)  # if two commands take it over at once, the later one gets it
            if _read(held.folder).get("token") != held.token:
                raise _busy(held.folder, _read(held.folder))
        else:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            _note(held, command)
    except FileExistsError:
        raise _busy(held.folder, _read(held.folder)) from None
    except OSError as error:
        raise _cant_lock(held.folder, error) from error
    threading.Thread(target=_renew, args=(held, command), name="headshotkit-lease", daemon=True).start()


def _renew(held: Held, command: str) -> None:
    """Renew the lease until it is released or another command holds it."""
    while not held.stop.wait(BEAT_S):
        if _read(held.folder).get("token") != held.token:
            return
        with contextlib.suppress(OSError):
            _note(held, command)


def _is_void(lease: dict) -> bool:
    """Return whether a lease expired: no renewal for a minute, or its process on this machine has ended."""
    if lease.get("machine") == machine() and not is_alive(lease.get("pid")):
        return True
    beat = lease.get("beat")
    return not isinstance(beat, (int, float)) or abs(time.time() - beat) > STALE_S


def is_alive(pid: object) -> bool:
    """Return whether a process runs on this machine."""
    if not isinstance(pid, int) or pid <= 0 or os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@functools.cache
def machine() -> str:
    """Return an id of this machine until its next start, without its name; a container counts as a machine."""
    facts = [str(uuid.getnode())]
    with contextlib.suppress(OSError):
        facts = [Path("/proc/sys/kernel/random/boot_id").read_text(), str(os.stat("/proc/self/ns/pid").st_ino)]
    return hashlib.sha256("".join(facts).encode()).hexdigest()[:16]


def _note(held: Held, command: str) -> None:
    """Write the lock's holder."""
    before = _read(held.folder)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    since = before["since"] if before.get("token") == held.token else now
    facts = {"token": held.token, "pid": os.getpid(), "command": command, "since": since, "beat": time.time(),
             "machine": machine()}  # fmt: skip
    half = held.folder / f"{HOLDER}.{held.token}.part"
    handle = os.open(half, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(facts, file)
    os.replace(half, held.folder / HOLDER)


def _read(folder: Path) -> dict:
    """Return the lock's holder, as far as it can be read."""
    try:
        handle = os.open(folder / HOLDER, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            found = json.loads(file.read(HOLDER_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _busy(folder: Path, holder: dict) -> RunBusy:
    """Return the error for the second command."""
    pid, command, since = (holder.get(name) for name in ("pid", "command", "since"))
    who = f"headshotkit {command}, process {pid}, since {since}" if command else "another command"
    return RunBusy(
        f"{folder} is in use: {who}.",
        "Two commands in one run folder would mix their results.",
        "Wait until it ends, stop it, or choose another run folder: --out",
    )


def _cant_lock(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"can't write {folder / LOCK}: {error.strerror or error}.",
        "The disk is full, or there is a file where a folder must be.",
        "Choose another --out, or free some space.",
    )


def _let_go(held: Held) -> None:
    """Remove the lock's files, then release it; delete a run folder that was created for it and is empty."""
    held.stop.set()
    if held.system or _read(held.folder).get("token") == held.token:
        with contextlib.suppress(OSError):
            (held.folder / HOLDER).unlink(missing_ok=True)
    if held.system:
        if os.name != "nt":  # under the lock; a command that waits for this file sees that it is gone
            with contextlib.suppress(OSError):
                (held.folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            held.system.release()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                (held.folder / LOCK).unlink(missing_ok=True)
    _remove_empty(held.made)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()
