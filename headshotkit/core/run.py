"""The run folder: one folder a stage, a manifest in each, files that appear complete or not at all.

A stage gets its folder from `Run.begin`: either a finished stage (nothing to do), a started one with the same settings
and inputs (continue from its files), or an empty one. Earlier results with other settings or inputs are moved to
`earlier/`, never deleted.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import hashlib
import itertools
import json
import os
import shlex
import shutil
import stat
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from headshotkit.core import __version__, locks, runtime
from headshotkit.core.errors import BadCaption, DamagedRun, DiskFull, RunFolderError, StageMissing
from headshotkit.core.records import is_inside, typed
from headshotkit.core.results import shape_of

STAGES = ("photos", "dataset", "lora", "headshots", "restored", "report", "gallery")
COMMANDS = dict(zip(STAGES, ("check", "prepare", "train", "generate", "restore", "evaluate", "gallery"), strict=True))
COMMANDS["picked"] = "pick"  # an optional stage
WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
FILES = ("prompts", "weights")
"""Settings that name a person's own file."""
DATA = "$HEADSHOTKIT_DATA"
"""Stands for the folder of the project's own data in a manifest."""
BANKS = "prompts"
"""The folder of a run that holds a person's own prompt banks, as used."""
CHECK_SUM = "headshotkit.sha256"
LEFT_S = 24 * 3600
"""Age from which a half-written file of an unknown process is abandoned."""
MAX_JSON_BYTES, MAX_DEPTH, MAX_CAPTION_BYTES = 64 * 2**20, 24, 16 * 2**10
PASSING = {".txt", ".pt", ".part", ".damaged"}
"""Suffixes of files that a person may edit, and of files that are deleted when the stage is done."""


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, open to their owner alone, because they hold a face."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir(0o700)
    folder.mkdir(exist_ok=True)  # a file in its place is an error


def half_written(path: Path) -> Path:
    """Return the path that this process writes a file to before it renames it into place."""
    return path.with_name(f".{path.name[:40]}.{locks.machine()}-{os.getpid()}.part")


def clear_half_written(path: Path) -> None:
    """Delete the half-written versions of a file that killed processes left; keep those of living ones.

    A process of another machine, or of this one before its last start, can't be checked: its files go after a day.

    Raises:
        OSError: it can't be deleted.
    """
    for half in path.parent.glob(f".{glob.escape(path.name[:40])}.*.part"):
        machine, _, pid = half.name.split(".")[-2].partition("-")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            of_here = machine == locks.machine() and pid.isdigit()
            if not locks.is_alive(int(pid)) if of_here else time.time() - half.lstat().st_mtime > LEFT_S:
                discard(half)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file next to its place and rename it into place, so a kill leaves the old file or the new one.

    It is open to its owner alone, as are the folders created for it.

    Raises:
        DiskFull: no space is left; the earlier file is untouched.
        RunFolderError: the place can't be written, or the run folder was removed during the work.
    """
    locks.demand_there(path)
    data = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    half = half_written(path)
    try:
        make_folder(path.parent)
        clear_half_written(path)
        with open(os.open(half, WRITE_NEW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError as error:
        raise _explained(error, path, half, len(data)) from error
    with contextlib.suppress(OSError):  # the name too should survive a power cut, if a folder can be flushed
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append_private(path: Path, data: bytes) -> None:
    """Append bytes to a file that only its owner can open; create the file and its folder if missing.

    Raises:
        DiskFull, RunFolderError: as `write_atomic`; the file is deleted then.
    """
    locks.demand_there(path)
    try:
        make_folder(path.parent)
        with open(os.open(path, WRITE_NEW & ~os.O_TRUNC | os.O_APPEND, 0o600), "ab") as file:
            file.write(data)
    except OSError as error:
        raise _explained(error, path, path, len(data)) from error


def discard(path: Path) -> None:
    """Delete a file or a folder so that its space is free at once; do nothing if it does not exist.

    A file is emptied first: Google Drive keeps deleted files for 30 days and counts them against the quota. Before
    that it is renamed, so that a kill leaves no half file under its name. A link is only removed; its target, and a
    file with other names, are never emptied.

    Raises:
        OSError: it can't be deleted.
    """
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(facts.st_mode):
        for inside in path.iterdir():
            discard(inside)
        return path.rmdir()
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_size:
        gone = path if path.suffix == ".part" else half_written(path)
        os.replace(path, gone)
        os.truncate(path := gone, 0)
    path.unlink()


DRIVE = "On Google Drive, empty the bin as well: deleted files count against the quota for 30 days."
WRITE_ERRORS: dict[int, tuple[str, str]] = {
    errno.EIO: (
        "The disk or the connection to it failed. A mounted Google Drive fails this way when it is full or "
        "disconnected.",
        f"Mount it again, check that it has free space, and give the same command again: it resumes. {DRIVE}",
    ),
    errno.EROFS: ("The disk is mounted read-only.", "Choose another --out, or mount the disk for writing."),
    errno.EACCES: ("The folder belongs to somebody else, or its permissions forbid it.",
                   "Choose another --out, or change the folder's permissions."),
    errno.ENAMETOOLONG: ("The disk does not allow such a long name.", "Choose a shorter --out."),
    errno.ENOTDIR: ("There is a file where a folder must be.", "Choose another --out, or move that file away."),
}  # fmt: skip
"""Error number -> why a file can't be written, and what to do."""
WRITE_ERRORS |= {
    errno.EPERM: WRITE_ERRORS[errno.EACCES],
    errno.EEXIST: WRITE_ERRORS[errno.ENOTDIR],
    errno.EISDIR: ("There is a folder where a file must be.", "Choose another --out, or move that folder away."),
    errno.ENOTCONN: WRITE_ERRORS[errno.EIO],
    errno.ESTALE: WRITE_ERRORS[errno.EIO],
}


def _explained(error: OSError, path: Path, half: Path, size: int) -> DiskFull | RunFolderError:
    """Return an OSError from writing as an error with a next step; delete the half-written file."""
    with contextlib.suppress(OSError):
        discard(half)
    needs, go_on = f"it needs {size / 2**20:.1f} MiB", "then give the same command again: it resumes."
    if error.errno == errno.EDQUOT:
        return DiskFull(
            f"the disk quota has no room for {path}: {needs}.",
            "This account may not store more on the disk; finished work is untouched.",
            f"Free some space or choose another --out, {go_on} {DRIVE}",
        )
    if error.errno == errno.ENOSPC:
        folder = next(p for p in path.parents if p.exists())
        free = shutil.disk_usage(folder).free
        return DiskFull(
            f"no space left for {path}: {needs}, {free / 2**20:.1f} MiB are free.",
            f"The disk that holds {folder} is full; finished work is untouched.",
            f"Free some space or choose another --out, {go_on}",
        )
    unknown = (f"The system reports {errno.errorcode.get(error.errno, type(error).__name__)}.", "Choose another --out.")
    return RunFolderError(f"can't write {path}: {error.strerror or error}.", *WRITE_ERRORS.get(error.errno, unknown))


def write_json(path: Path, value: dict) -> None:
    """Write a dict as readable JSON, atomically; bytes of a path that are no character are escaped.

    A check sum is added, which lets `read_json` detect damage and changes.
    """
    text = json.dumps(value | {CHECK_SUM: _check_sum(value)}, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode(errors="backslashreplace"))


def read_json(
    path: Path, shape: dict[str, object] | type | Callable[[dict], dict[str, object]], command: str = ""
) -> dict | None:
    """Return what `write_json` wrote; None if the file does not exist.

    Args:
        shape: required name -> its type, as in `records.typed`; a function that returns this for what was read; or the
            type of all values.
        command: the command that makes the file anew, for the error.
    Raises:
        DamagedRun: the file exists but differs from what was written.
    """
    try:
        value = _parsed(path)
        if isinstance(shape, type):
            shape = dict.fromkeys(value, shape)
        elif callable(shape):
            shape = shape(value)
        for name, kind in shape.items():
            if name not in value:
                raise ValueError(f"it lacks {name}")
            typed(kind, value[name])
    except (OSError, ValueError, RecursionError) as error:
        gone = isinstance(error, (FileNotFoundError, NotADirectoryError)) and not path.is_symlink()
        if gone or getattr(error, "errno", 0) == errno.ENAMETOOLONG:  # no disk holds such a long name
            return None
        what = getattr(error, "strerror", None) or str(error).splitlines()[0][:160]
        others = [f for f in path.parent.iterdir() if f != path and f.is_file()] if path.parent.is_dir() else []
        raise DamagedRun(
            f"{path} can't be used: {what}.",
            f"It was truncated, edited or replaced. The {len(others)} other files in its folder are unchanged.",
            "Restore it from a copy; or move "
            + (f"{path.parent} away, then run: {command}" if command else "it away."),
        ) from error
    return value


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Read a regular file of at most `most_bytes`; refuse a pipe without waiting for it.

    Raises:
        OSError, ValueError: it can't be read, is not a regular file, or is larger.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is a folder, a pipe or a device")
        if found.st_size > most_bytes:
            raise ValueError(f"it holds {found.st_size >> 10} KiB, at most {most_bytes >> 10} are read")
        return file.read()


def _parsed(path: Path) -> dict:
    """Return a regular file's JSON object without its check sum.

    Raises:
        FileNotFoundError: it does not exist.
        OSError, ValueError, RecursionError: it can't be used.
    """
    value = json.loads(read_regular(path, MAX_JSON_BYTES).decode())
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}, not an object")
    if _is_deep(value):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    noted = value.pop(CHECK_SUM, None)
    if noted is not None and noted != _check_sum(value):
        raise ValueError(f"its check sum differs; if you edited it yourself, delete its line {CHECK_SUM!r}")
    return value


def _check_sum(value: dict) -> str:
    """Return the hex sha256 of a dict as JSON text."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _is_deep(value: dict) -> bool:
    """Return whether objects and lists are nested more than MAX_DEPTH levels."""
    level: list = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def settings_of(config) -> dict:
    """Return settings, or a dict, as JSON types; of a file that it names, only the name.

    Folders are private, and a run may be given away. The file's content is among the inputs.
    """
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    named = {name: os.path.basename(plain[name]) for name in FILES if isinstance(plain.get(name), str)}
    return json.loads(json.dumps(plain | named, default=str))


def fingerprint(config: dict, inputs: dict[str, str]) -> str:
    """Compute the hash of settings and inputs' sha256 that decides whether a stage's work can be reused."""
    return hashlib.sha256(json.dumps([config, inputs], sort_keys=True).encode()).hexdigest()


def caption_in(path: Path) -> str:
    """Return the caption in a .txt file, on one line; empty if there is none.

    Reads UTF-8, and UTF-16 with a byte order mark, as Windows writes it.

    Raises:
        BadCaption: it is another kind of file, or not text.
    """
    try:
        data = read_regular(path, MAX_CAPTION_BYTES)
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        odd = next((c for c in text if unicodedata.category(c) == "Cc" and not c.isspace()), "")
        if odd:
            raise ValueError(f"it holds the control character {ord(odd):#04x}")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise BadCaption(
            f"the caption in {path} can't be read: {error}.",
            "A caption is text in UTF-8.",
            "Save it again as UTF-8, or delete the file: then the caption that headshotkit wrote is used.",
        ) from error
    return " ".join(text.split())


def edited_captions(folder: Path, photos: list[dict]) -> dict[str, str]:
    """Return the captions that a person edited: picture -> caption. If a .txt is missing or empty, the last one counts.

    Args:
        folder: of the dataset.
        photos: its pictures, as in the manifest.
    """
    edited = {}
    for photo in photos:
        text = caption_in((folder / photo["file"]).with_suffix(".txt")) or photo["caption"]
        if text != (photo.get("written") or photo["caption"]):
            edited[photo["file"]] = text
    return edited


@dataclass
class Stage:
    """One stage's folder during its work. `done` means that its manifest is complete: use it.

    The manifest's `writer` identifies this beginning of the stage. `spoilt` are files of the stage that are missing or
    changed now.
    """

    folder: Path
    manifest: dict
    spoilt: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> bool:
        return self.manifest["status"] == "done"

    def finish(self, outcome: str, **facts) -> dict:
        """Complete the manifest with the outcome in words and the stage's own facts, and return it.

        `files` then holds size and sha256 of every file of the stage except captions, which may be edited.

        Raises:
            RunFolderError: the stage was removed or restarted since it began here.
        """
        self._demand_own()
        seconds = self.manifest.get("seconds", 0.0) + time.monotonic() - self.started_s
        found = (file for file in self.folder.rglob("*") if file.is_file() and file.suffix not in PASSING)
        names = sorted(file.relative_to(self.folder).as_posix() for file in found)
        permanent = [name for name in names if name != "manifest.json" and not name.startswith(".")]  # as Jupyter's
        self.manifest |= facts
        self.manifest |= {
            "files": {name: facts_of(self.folder / name) for name in permanent},
            "status": "done",
            "outcome": outcome,
            "seconds": round(seconds, 2),
            "peak_memory_gib": runtime.peak_memory_gib(),
            "finished": _now(),
        }
        write_json(self.folder / "manifest.json", self.manifest)
        return self.manifest

    def note_seconds(self) -> None:
        """Add the elapsed seconds to the manifest, so that a resumed stage counts all of its time.

        Raises:
            RunFolderError: as `finish`.
        """
        self._demand_own()
        now = time.monotonic()
        self.manifest["seconds"] = round(self.manifest.get("seconds", 0.0) + now - self.started_s, 2)
        self.started_s = now
        write_json(self.folder / "manifest.json", self.manifest)

    def _demand_own(self) -> None:
        """Refuse to overwrite what another command began here, or to write into a removed folder."""
        there = Run(self.folder.parent).peek(self.folder.name)
        if there.get("writer") == self.manifest.get("writer"):
            return
        raise RunFolderError(
            f"stopped, because another command {'restarted' if there else 'removed'} {self.folder} meanwhile.",
            "This command's results belong to the run folder's earlier state.",
            "Give the same command again when no other command uses the run folder.",
        )


def facts_of(path: Path) -> dict:
    """Return a file's facts for a manifest: size and sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _clear(folder: Path) -> None:
    """Remove half-written files of a killed process from a stage's folder, and close the folder to others."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
        for half in [*folder.rglob(".*.part"), *folder.parent.glob(".*.part")]:
            if half.is_file() and not half.name.startswith(locks.HOLDER):
                discard(half)


def _is_same(before: dict, settings: dict, inputs: dict) -> bool:
    """Return whether a stage was begun with these settings and inputs.

    Earlier versions stored a number as it was typed, so 1 and 1.0 had different fingerprints.
    """
    if before.get("fingerprint") == fingerprint(settings, inputs):
        return True
    return bool(before) and before["config"] == settings and before["inputs"] == inputs


def _is_grown(before: dict, settings: dict, inputs: dict, grows: tuple[str, ...]) -> bool:
    """Return whether a stage's new settings only extend those that it was begun with."""
    if not before or before["inputs"] != inputs:
        return False
    config = before["config"]
    others = [{name: value for name, value in one.items() if name not in grows} for one in (config, settings)]
    return others[0] == others[1] and all(settings[name] >= config[name] for name in grows)


def _is_as_noted(path: Path, noted: object, finished: float, thorough: bool) -> bool:
    """Return whether a file has the noted size, and the noted sha256 if it was modified since or `thorough` is set."""
    try:
        noted = {"bytes": noted["bytes"], "sha256": noted["sha256"]}
        found = path.lstat() if path.is_symlink() else path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != noted["bytes"]:
            return False
        return not (thorough or found.st_mtime >= finished) or sha256_of(path) == noted["sha256"]
    except (OSError, KeyError, TypeError):
        return False


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _counted(names: list[str]) -> str:
    """Return a few names, and the number of further ones.

    >>> _counted(["a.png"]), _counted(["a.png", "b.png", "c.png", "d.png"])
    ('a.png is', 'a.png, b.png, c.png and 1 more are')
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _changed(run: Run, stage: str, names: list[str]) -> DamagedRun:
    """Return the error for files of a finished stage that are missing or changed."""
    photos = " PHOTOS" * (stage == "photos")
    again = f"Make them again: headshotkit {COMMANDS[stage]}{photos} --out {run.folder}"
    if stage == "lora":
        again = f"Restore them from a copy; or move {run.path(stage)} away and train again."
    if stage in ("photos", "dataset"):
        again += "\n  To leave out a photo, remove it from your photo folder and check again."
    return DamagedRun(
        f"in {run.path(stage)} {_counted(names)} missing or changed since {COMMANDS[stage]}.",
        "Results made from them would not match the run's records.",
        again,
    )


class Run:
    """A run folder. Creating the object touches nothing; folders appear when a stage begins.

    Args:
        folder: the run's folder; one person, one run.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = runtime.typed_path(folder)

    def place_of(self, folder: Path) -> str:
        """Return a manifest's name for a folder outside the run, without a user's name; `placed` resolves it.

        It is relative to the run folder, to ~ or to the project's own data; absolute only if none of these works. Empty
        if every form names a user.
        """
        folder, home, data = folder.resolve(), Path.home().resolve(), runtime.data_path().resolve()
        users = {home.name, os.environ.get("USER") or home.name, os.environ.get("USERNAME") or home.name}
        ways = [
            Path(name, folder.relative_to(root)) for root, name in ((home, "~"), (data, DATA)) if root in folder.parents
        ]
        with contextlib.suppress(ValueError):  # another drive
            there, here = Path(os.path.relpath(folder, self.folder.resolve())), self.folder.resolve()
            near = there.parts.count("..") < len(here.parts) - 1
            ways.insert(0 if near else len(ways), there)
        return next((way.as_posix() for way in ways if not users & set(way.parts)), "")

    def placed(self, place: str) -> Path | None:
        """Return the folder of a name from `place_of`; None if there is none."""
        if place.startswith(f"{DATA}/"):
            return runtime.data_path(*Path(place).parts[1:])
        return self.folder.resolve() / Path(place).expanduser() if place else None

    def path(self, stage: str) -> Path:
        """Return a stage's folder, which may not exist."""
        return self.folder / stage

    def begin(self, stage: str, config, inputs: dict[str, str], seed: int | None = None,
              grows: tuple[str, ...] = ()) -> Stage:  # fmt: skip
        """Open a stage's folder: finished, to be continued, or new.

        Args:
            stage: one of STAGES.
            config: the stage's config dataclass, or a dict of JSON types.
            inputs: what the stage reads, name -> sha256.
            seed: the seed of its randomness, for the manifest.
            grows: counts that can be raised without redoing finished work; the stage continues.
        Returns: the stage; not done if a file of a finished stage is missing or changed, so that it is redone.
        Raises:
            RunFolderError: the folder can't be created.
            DamagedRun: the manifest can't be used, or a trained file is missing or changed.
        """
        folder, settings = self.path(stage), settings_of(config)
        key = fingerprint(settings, inputs)
        before = self.peek(stage)
        _clear(folder)
        if _is_same(before, settings, inputs):
            spoilt = self.spoilt(stage, before)
            if spoilt and stage == "lora":
                raise _changed(self, stage, spoilt)
            if spoilt and before["status"] == "done":
                runtime.say(f"{COMMANDS[stage]:<10} {_counted(spoilt)} missing or changed; made again")
                before["status"] = "started"
            if before["status"] != "done":
                before["writer"] = uuid.uuid4().hex
                write_json(folder / "manifest.json", before)
            return Stage(folder, before, spoilt)
        if _is_grown(before, settings, inputs, grows):
            grown = before | {"config": settings, "fingerprint": key, "status": "started", "writer": uuid.uuid4().hex}
            write_json(folder / "manifest.json", grown)
            return Stage(folder, grown, self.spoilt(stage, before))
        if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
            self._set_aside(stage, _difference(before, settings, inputs))
        manifest = {
            "stage": stage,
            "status": "started",
            "headshotkit": __version__,
            "fingerprint": key,
            "config": settings,
            "inputs": inputs,
            "seed": seed,
            "versions": runtime.versions(),
            "started": _now(),
            "writer": uuid.uuid4().hex,
        }
        write_json(folder / "manifest.json", manifest)
        return Stage(folder, manifest)

    def is_begun(self, stage: str, config, inputs: dict[str, str]) -> bool:
        """Return whether a stage was begun with these settings and inputs, so that `begin` would continue it."""
        return _is_same(self.peek(stage), settings_of(config), inputs)

    def spoilt(self, stage: str, manifest: dict, names: Iterable[str] | None = None, thorough: bool = False) -> list:
        """Return the files of a finished stage that are missing or changed.

        Args:
            manifest: of the stage; an old one without noted files yields none.
            names: the files to check; None: all, or a training's final files.
            thorough: read all files; else only those of the noted size that were written to since.
        """
        noted = manifest.get("files")
        if noted is None:
            return []
        if names is None:
            names = manifest["lora"]["files"] if stage == "lora" else noted
        try:
            finished = datetime.fromisoformat(manifest["finished"]).timestamp()
        except ValueError:
            finished = 0.0
        place = self.path(stage)
        return [n for n in names if not (is_inside(n) and _is_as_noted(place / n, noted.get(n), finished, thorough))]

    def files(self, stage: str, names: Iterable[str], thorough: bool = False) -> list[Path]:
        """Return the paths of a finished stage's files after a check that they are unchanged.

        Args:
            names: relative to the stage's folder, as in its manifest.
            thorough: as `spoilt`.
        Raises:
            StageMissing: as `manifest`.
            DamagedRun: a file is missing or changed.
        """
        names = [str(name) for name in names]
        spoilt = self.spoilt(stage, self.manifest(stage), names, thorough)
        spoilt += [name for name in names if name not in spoilt and not (self.path(stage) / name).is_file()]
        if spoilt:
            raise _changed(self, stage, spoilt)
        return [self.path(stage) / name for name in names]

    def manifest(self, stage: str) -> dict:
        """Return a finished stage's manifest, if its inputs are still what the run holds.

        Raises:
            StageMissing: the stage is not finished, or an earlier one has been redone since.
        """
        manifest, problem = self._judged(stage)
        if problem:
            raise StageMissing(*problem, self._first(stage))
        return manifest

    def has(self, stage: str) -> bool:
        """Return whether a stage is finished and up to date."""
        return not self._judged(stage)[1]

    def _judged(self, stage: str) -> tuple[dict, tuple[str, ...]]:
        """Return a stage's manifest, and what is wrong with it and why; () if it is finished and up to date."""
        manifest = self.peek(stage)
        if manifest.get("status") != "done":
            why = "It was interrupted." if manifest else "It was never started."
            return manifest, (f"{self.path(stage)} holds no finished {stage} stage.", why)
        for name, made_from in manifest["inputs"].items():
            earlier = name.removesuffix("/manifest.json")
            if earlier in STAGES:
                before, problem = self._judged(earlier)
                if problem:
                    return manifest, problem
                if self._content(earlier, before) != made_from:
                    return manifest, (
                        f"{self.path(stage)} was made from another version of the {earlier} stage.",
                        f"The {earlier} stage was repeated since then, or its results were edited or overridden.",
                    )
        return manifest, ()

    def _first(self, stage: str) -> str:
        """Return the one command that completes the missing stages up to this one."""
        picked = stage == "picked"  # optional
        chain = STAGES[: STAGES.index("lora" if picked else stage) + 1]
        missing = [COMMANDS[one] for one in chain if not self.has(one)]
        folder = self.placed(self.peek("photos").get("folder", ""))
        photos = shlex.quote(str(folder.resolve())) if folder and folder.is_dir() else "PHOTOS"
        if len(missing) > 1:
            then = f", then: headshotkit pick --out {self.folder}" if picked else ""
            does = f"It does {', '.join(missing)} and the later stages."
            return f"Run first: headshotkit run {photos} --out {self.folder}{then}\n  {does}"
        command = missing[0] if missing else COMMANDS[stage]
        first = f" {photos}" if command == "check" else ""
        return f"Run first: headshotkit {command}{first} --out {self.folder}"

    def peek(self, stage: str) -> dict:
        """Return a stage's manifest as it is, finished or not, up to date or not; empty if there is none.

        Raises:
            DamagedRun: it exists but can't be used.
        """
        path, command = self.path(stage) / "manifest.json", f"headshotkit {COMMANDS.get(stage, stage)}"
        command = f"{command}{' PHOTOS' * (stage == 'photos')} --out {self.folder}"
        return read_json(path, lambda manifest: shape_of(manifest, stage), command) or {}

    def inputs_from(self, *stages: str) -> dict[str, str]:
        """Return the manifests of the given stages as inputs of the next: name -> sha256 of their content.

        A manifest also holds times, so the stage's fingerprint is used, not the file's bytes.
        """
        return {f"{s}/manifest.json": self.content_of(s) for s in stages}

    def content_of(self, stage: str) -> str:
        """Return the hash of a finished stage's content: its fingerprint and the captions edited since.

        Raises:
            StageMissing: as `manifest`.
        """
        return self._content(stage, self.manifest(stage))

    def _content(self, stage: str, manifest: dict) -> str:
        """Return the hash of a stage's content, by its manifest."""
        edits = edited_captions(self.path(stage), manifest.get("dataset", {}).get("photos", []))
        return fingerprint(edits, {"made": manifest["fingerprint"]}) if edits else manifest["fingerprint"]

    def earlier(self) -> list[Path]:
        """Return the folders that were moved aside when a stage was redone, oldest first."""
        place = self.folder / "earlier"
        return sorted(place.iterdir(), key=lambda path: path.stat().st_mtime) if os.path.isdir(place) else []

    def _set_aside(self, stage: str, why: str) -> None:
        """Move a stage's earlier result to earlier/<stage>-<n>, and print that."""
        earlier = self.folder / "earlier"
        folders = (earlier / f"{stage}-{number}" for number in itertools.count(1))
        place = next(place for place in folders if not place.exists())
        try:
            make_folder(earlier)
            os.replace(self.path(stage), place)
        except OSError as error:
            raise _explained(error, earlier / stage, earlier / f".{stage}.part", 0) from error
        command = COMMANDS.get(stage, stage)
        runtime.say(
            f"{command:<10} started over: {why}. The earlier result is now in {place}; to delete it: headshotkit clean "
            f"{self.folder}"
        )


def _difference(before: dict, settings: dict, inputs: dict) -> str:
    """Return the differences from how a stage was begun, in a few words."""
    if not before:
        return "its folder held files but no manifest"
    config = before["config"]
    names = [name for name in {**config, **settings} if config.get(name) != settings.get(name)]
    if names:
        return ", ".join(f"{name} {config.get(name)} -> {settings.get(name)}"[:80] for name in names[:4])
    changed = [name for name in {**before["inputs"], **inputs} if before["inputs"].get(name) != inputs.get(name)]
    return f"{', '.join(name.removesuffix('/manifest.json') for name in changed[:4])} changed since"


@locks.writes("clean")
def clean_run(run: Run) -> int:
    """Delete what was moved aside in `earlier/` for good; return its size, bytes.

    Raises:
        RunFolderError: something can't be deleted.
    """
    size = sum(bytes_of(path) for path in run.earlier())
    for path in run.earlier():
        try:
            discard(path)
        except OSError as error:
            raise RunFolderError(
                f"can't delete {path}: {error.strerror or error}.", "", "Change the folder's permissions."
            ) from error
    with contextlib.suppress(OSError):
        (run.folder / "earlier").rmdir()
    return size


def bytes_of(folder: Path) -> int:
    """Return the size of a folder or a file, without links."""
    files = [one for one in (folder, *folder.rglob("*")) if one.is_file() and not one.is_symlink()]
    return sum(file.stat().st_size for file in files)
