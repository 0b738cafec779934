"""Receive photos from a browser into a run's `uploads/`, in pieces; keep only whole files, and count them.

A file in that folder records how many were chosen and how many arrived, so that nothing goes on with too few.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from headshotkit.core.errors import HeadshotError, UploadIncomplete
from headshotkit.core.run import append_private, discard, make_folder, read_json, sha256_of, write_atomic, write_json
from headshotkit.photos.decoding import MAX_FILE_BYTES
from headshotkit.photos.files import plain_name

UPLOADS = "uploads"
RECORD = ".chosen.json"
"""The file of `uploads/` that records how many photos were chosen last, and how many of them arrived."""
PIECE_BYTES = 2**20
"""Jupyter's server drops messages above 10 MiB."""
SHAPE = {"chosen": int, "arrived": int, "lost": tuple[str, ...]}
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Arrival:
    """The outcome of the last upload.

    chosen: number of chosen photos; 0 is unknown · arrived: how many of them are in the folder · lost: those that
    failed, each with its reason.
    """

    chosen: int
    arrived: int = 0
    lost: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Return whether all chosen photos have arrived."""
        return 0 < self.chosen == self.arrived

    @property
    def words(self) -> str:
        """Return how many arrived, and what is lost."""
        of = f" of {self.chosen}" if self.chosen else ""
        lost = f" Not arrived: {'; '.join(self.lost[:3])}{'; and more' * (len(self.lost) > 3)}." if self.lost else ""
        return f"{self.arrived}{of} photos arrived.{lost}"


def last_arrival(folder: Path) -> Arrival | None:
    """Return the outcome of the last upload; None if there was none.

    Raises:
        DamagedRun: the record can't be used.
    """
    found = read_json(folder / RECORD, SHAPE)
    return Arrival(found["chosen"], found["arrived"], tuple(found["lost"])) if found else None


def demand_all(folder: Path) -> None:
    """Raise UploadIncomplete if fewer photos arrived than were chosen."""
    arrival = last_arrival(folder)
    if arrival and not arrival.complete:
        raise UploadIncomplete(
            arrival.words,
            "The upload broke off, or is still on its way.",
            "Wait until the line under the button says that all arrived, or choose the missing photos again; then run "
            f"this cell again. To continue with the photos that arrived, set PHOTOS = {str(folder)!r}.",
        )


def safe_name(name: str) -> str:
    r"""Return the name that an uploaded file gets: no folder in it, not hidden, and valid on every system.

    >>> safe_name("C:\\photos\\me.jpg"), safe_name("../.me?.jpg"), safe_name("CON.jpg"), safe_name("..")
    ('me.jpg', 'me_.jpg', '_CON.jpg', 'photo')
    """
    name = plain_name(re.sub(r'[<>:"|?*]', "_", PureWindowsPath(name).name)).replace("\\", "_").strip(". ")
    return f"_{name}" if RESERVED.fullmatch(name) else name or "photo"


def keep_file(part: Path, name: str) -> Path:
    """Rename a complete file to its name among the uploads, and return its path.

    Another file of that name stays, and this one gets a number; an identical file is not kept twice.
    """
    folder, wanted = part.parent, Path(safe_name(name))
    there = {file.name.casefold(): file for file in folder.iterdir()}
    for number in itertools.count(1):
        free = f"{wanted.stem}{f'-{number}' if number > 1 else ''}{wanted.suffix}"
        taken = there.get(free.casefold())
        if taken is None:
            os.replace(part, folder / free)
            return folder / free
        if taken.is_file() and taken.stat().st_size == part.stat().st_size and sha256_of(taken) == sha256_of(part):
            discard(part)
            return taken


def keep_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write whole files into the uploads and return their paths.

    Args:
        files: name and content of each.
    Raises:
        DiskFull, RunFolderError: a file can't be written.
    """
    kept = []
    for name, content in files:
        part = folder / f".{uuid.uuid4().hex}.part"
        write_atomic(part, content)
        kept.append(keep_file(part, name))
    return kept


def upload_on_colab(folder: Path) -> list[Path]:
    """Show Colab's own upload button, wait for it, and return the paths of what arrived; none if it was cancelled.

    Raises:
        UploadIncomplete: the upload broke off.
        DiskFull, RunFolderError: a file can't be written.
    """
    from google.colab import files

    make_folder(folder)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):  # Colab also leaves a copy in the cwd
        try:
            arrived = files.upload()
        except Exception as error:
            write_json(folder / RECORD, {"chosen": 0, "arrived": 0, "lost": [f"{type(error).__name__}: {error}"[:200]]})
            demand_all(folder)
    if arrived:
        kept = keep_files(folder, arrived.items())
        write_json(folder / RECORD, {"chosen": len(arrived), "arrived": len(kept), "lost": []})
        return kept
    return []


class Inbox:
    """Receive the pieces of chosen files, one file after the other, and count the complete files.

    A piece is written when it arrives. Messages may come twice or get lost: the answer has how much of a file is there.

    Args:
        folder: the run's `uploads/`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, ""
        self.arrival: Arrival | None = None
        self._files: list[tuple[str, int]] = []
        self._have: dict[int, int] = {}
        self._lock = threading.Lock()  # JupyterLab may deliver messages in a separate thread

    def answer(self, message: dict, pieces: list) -> dict:
        """Handle a message of `upload.js`, and return the answer.

        Args:
            message: its kind (chosen, piece, lost or where), the upload's id, its number n, and its data.
            pieces: the bytes of a piece.
        """
        with self._lock:
            reply = {"id": message["id"], "n": message["n"], "next": 0, "failed": ""}
            try:
                if message["what"] == "chosen":
                    self._begin(message["id"], [(file["name"], int(file["bytes"])) for file in message["files"]])
                    return reply
                if message["id"] != self.id:
                    return reply | {"failed": "Another selection of photos replaced this one."}
                number = int(message["file"])
                if message["what"] == "piece":
                    self._take(number, int(message["at"]), bytes(pieces[0]) if pieces else b"")
                elif message["what"] == "lost":
                    self._lose(number, str(message["why"]))
                return reply | {"next": self._have.get(number, 0)}
            except (HeadshotError, OSError) as error:
                why = error.happened if isinstance(error, HeadshotError) else str(error)
                with contextlib.suppress(HeadshotError):  # a full disk can't hold this either
                    before = self.arrival or Arrival(0)
                    self._note(replace(before, lost=(*before.lost, why)))
                return reply | {"failed": why}

    def _note(self, arrival: Arrival) -> None:
        self.arrival = arrival
        noted = {"chosen": arrival.chosen, "arrived": arrival.arrived, "lost": list(arrival.lost)}
        write_json(self.folder / RECORD, noted)

    def _part(self, number: int) -> Path:
        return self.folder / f".{number}.part"

    def _begin(self, name: str, files: list[tuple[str, int]]) -> None:
        if name == self.id:  # the message came twice
            return
        make_folder(self.folder)
        for half in self.folder.glob(".*.part"):
            discard(half)
        self.id, self._files, self._have = name, files, {}
        self._note(Arrival(len(files)))

    def _take(self, number: int, at: int, data: bytes) -> None:
        name, size = self._files[number]
        have = self._have.get(number)
        if at != (have or 0) or (have is not None and have >= size):  # it is a repeat, or an earlier one is missing
            return
        if size > MAX_FILE_BYTES:
            return self._lose(number, f"it holds {size >> 20} MiB, at most {MAX_FILE_BYTES >> 20} are read")
        append_private(self._part(number), data)
        self._have[number] = at + len(data)
        if self._have[number] >= size:
            keep_file(self._part(number), name)
            self._note(replace(self.arrival, arrived=self.arrival.arrived + 1))

    def _lose(self, number: int, why: str) -> None:
        name, size = self._files[number]
        if self._have.get(number, 0) < size or number not in self._have:
            self._have[number] = size
            discard(self._part(number))
            self._note(replace(self.arrival, lost=(*self.arrival.lost, f"{safe_name(name)} ({why})")))
