"""Failed downloads: tell the causes apart, retry if that can help, and say what to do."""

from __future__ import annotations

import errno
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from headshotkit.core import runtime

WAITS_S = (3.0, 15.0)
"""Pauses before the second and the third attempt."""
PATIENCE_S = 30.0
"""Time without an answer after which a download counts as broken off."""
CHUNK = 2**18
FULL, LOCKED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)
BROKEN_OFF = {"XetDownloadError", "IncompleteRead", "RemoteProtocolError", "NotWhole"}
Made = TypeVar("Made")


class NotThere(Exception):
    """The requested file or repository is not on the server."""


class NotWhole(Exception):
    """The downloaded bytes are fewer than, or differ from, what was announced."""


@dataclass(frozen=True)
class Trouble:
    """The cause of a failed download.

    code: the cause in a word · why, next_step: for people · passing: a retry may succeed.
    """

    code: str
    why: str
    next_step: str
    passing: bool = False


OFFLINE = Trouble(
    "offline",
    "HF_HUB_OFFLINE is set, so nothing is downloaded.",
    "Connect once, unset HF_HUB_OFFLINE and try again",
)
GATED = Trouble(
    "gated",
    "Its owner gives access only to accounts that accepted its licence.",
    "Accept its licence on huggingface.co/{source}, log in (hf auth login) and try again",
)
RATE_LIMIT = Trouble(
    "rate limit",
    "Too many requests came from this IP address (429); Colab's users share addresses.",
    "Wait a few minutes and try again; with an account (hf auth login) the limit is higher",
    passing=True,
)
NO_COMMIT = Trouble(
    "no such commit",
    "The commit that headshotkit is pinned to is gone from the repository.",
    "Update headshotkit",
)
NO_FILE = Trouble("no such file", "The repository does not hold that file.", "Update headshotkit")
NO_REPOSITORY = Trouble(
    "no such repository",
    "There is no such folder and no public repository of that name. It may have been renamed, removed or made private.",
    "Check the name or the folder, or log in (hf auth login) if it is private",
)
SERVER = Trouble("server", "The server reported an internal error.", "Try again in a few minutes", passing=True)
TRANSFER = Trouble(
    "transfer",
    "The connection broke off during the transfer.",
    "Try again: the download resumes; HF_HUB_DISABLE_XET=1 switches to plain HTTP",
    passing=True,
)
NETWORK = Trouble(
    "no network",
    "The server did not answer: there is no network, it is very slow, or a firewall blocks it.",
    "Connect and try again: the download resumes",
    passing=True,
)
DISK_FULL = Trouble(
    "disk full",
    "The disk that holds the download is full.",
    "Free some space, or set HF_HOME and HEADSHOTKIT_CACHE to folders on a larger disk, and try again",
)
READ_ONLY = Trouble(
    "not writable",
    "The folder for downloads can't be written to: it is read-only or belongs to somebody else.",
    "Set HF_HOME and HEADSHOTKIT_CACHE to folders of your own and try again",
)
UNKNOWN = Trouble("unknown", "The cause is unknown.", "Try again")


def trouble_of(error: BaseException) -> Trouble:
    """Name the cause of an error from huggingface_hub, hf_xet, httpx or urllib.

    The libraries wrap one another's errors, so the chained causes are checked too. Classes are compared by name,
    because httpx is another package in huggingface_hub 1 and 2.
    """
    errors = list(_behind(error))
    names = {kind.__name__ for one in errors for kind in type(one).__mro__}
    packages = {type(one).__module__.partition(".")[0] for one in errors}
    status = {_status(one) for one in errors}
    numbers = {one.errno for one in errors if isinstance(one, OSError)}
    said = " ".join(str(one) for one in errors)
    table = (
        (numbers.intersection(FULL) or "No space left on device" in said or "quota exceeded" in said, DISK_FULL),
        (numbers.intersection(LOCKED), READ_ONLY),
        ("OfflineModeIsEnabled" in names, OFFLINE),
        ("GatedRepoError" in names or 403 in status, GATED),
        (429 in status, RATE_LIMIT),
        (any(code >= 500 for code in status), SERVER),
        ("RevisionNotFoundError" in names, NO_COMMIT),
        (names & {"RemoteEntryNotFoundError", "NotThere"}, NO_FILE),
        (names & {"RepositoryNotFoundError", "HFValidationError"} or status & {401, 404}, NO_REPOSITORY),
        (names & BROKEN_OFF or "hf_xet" in packages, TRANSFER),
        (any(words in said for words in ("CAS service", "Data processing error", "Consistency check")), TRANSFER),
        (names & {"ConnectionError", "TimeoutError", "URLError", "TransportError", "gaierror"}, NETWORK),
        (packages & {"httpx", "httpx2", "requests"}, NETWORK),
    )
    return next((trouble for found, trouble in table if found), UNKNOWN)


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def size_in_words(size: int) -> str:
    """Return a number of bytes as people say it.

    >>> size_in_words(6_938_000_000), size_in_words(16_000_000)
    ('6.9 GB', '16 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 5e8 else f"{size / 1e6:.0f} MB"


def again(attempt: Callable[[Trouble | None], Made], title: str) -> Made:
    """Return the result of an attempt; after a trouble that may pass, wait and retry.

    Args:
        attempt: takes the trouble of the attempt before, None at first.
        title: name of the download in the message before a pause.
    Raises:
        the last attempt's error.
    """
    trouble = None
    for wait_s in WAITS_S:
        try:
            return attempt(trouble)
        except Exception as error:
            trouble = trouble_of(error)
            if not trouble.passing:
                raise
            runtime.say(f"{title}: {first_line(error)}. Trying again in {wait_s:g} s; the finished part is kept.")
        time.sleep(wait_s)
    return attempt(trouble)


def download(address: str, file: Path, title: str) -> None:
    """Download to a file; continue if it already holds the beginning.

    Raises:
        NotWhole: fewer bytes arrived than were announced; they are kept.
        OSError: from the network or the disk.
    """
    begun = file.stat().st_size if file.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE_S)
    except urllib.error.HTTPError as error:
        error.close()  # it is also an open response
        raise
    with answer:
        begun = begun if answer.status == 206 else 0
        length = int(answer.headers.get("Content-Length") or 0)
        total = begun + length
        runtime.say(f"downloading {title}, {size_in_words(total)}, once")
        with open(file, "ab" if begun else "wb") as target, runtime.progress((), title, total) as bar:
            bar.unit, bar.unit_scale = "B", True
            bar.update(begun)
            while chunk := answer.read(CHUNK):
                target.write(chunk)
                bar.update(len(chunk))
    arrived = file.stat().st_size
    if length and arrived != total:
        raise NotWhole(f"{arrived} of {total} bytes arrived")


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)  # urllib keeps the cause there
        error = error.__cause__ or (reason if isinstance(reason, BaseException) else None) or error.__context__


def _status(error: BaseException) -> int:
    """Return the HTTP status that an error carries; 0 without one."""
    code = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return code if isinstance(code, int) else 0
