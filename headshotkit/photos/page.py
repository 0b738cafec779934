"""The page of a check: each photo with its verdict and every reason, and what to add to the set."""

from __future__ import annotations

from pathlib import Path

from headshotkit.core.pages import PAGE, data_uri, template
from headshotkit.core.records import Verdict
from headshotkit.core.run import facts_of, write_atomic

THUMBS = "thumbs"
"""Folder of the thumbnails, in the order of the verdicts."""


def write_photo_page(folder: Path, judged: dict) -> dict:
    """Write the page of a check into its stage's folder, and return its manifest with the page recorded.

    Args:
        judged: the manifest, or its available parts: verdicts, outcome, requests and advice.
    Raises:
        DiskFull, RunFolderError: it can't be written.
    """
    verdicts = [Verdict.from_dict(v) for v in judged["verdicts"]]
    thumbs = [folder / THUMBS / f"{number:03d}.jpg" for number in range(len(verdicts))]
    pictures = [data_uri(thumb.read_bytes(), "jpeg") if thumb.is_file() else "" for thumb in thumbs]
    cards = sorted(zip(verdicts, pictures, strict=True), key=lambda card: [reason.code for reason in card[0].reasons])
    kept, refused = ([card for card in cards if card[0].kept is wanted] for wanted in (True, False))
    write_atomic(folder / PAGE, template("photos.html").render(judged, kept=kept, refused=refused))
    files = {"files": judged["files"] | {PAGE: facts_of(folder / PAGE)}} if "files" in judged else {}
    return judged | files
