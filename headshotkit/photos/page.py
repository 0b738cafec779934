"""The page of a check: each photo with its verdict and every reason, and what to add to the set."""

from __future__ import annotations

import html
from pathlib import Path

from headshotkit.core.pages import PAGE, data_uri, document
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
    write_atomic(folder / PAGE, photo_page(folder, judged))
    files = {"files": judged["files"] | {PAGE: facts_of(folder / PAGE)}} if "files" in judged else {}
    return judged | files


def photo_page(folder: Path, judged: dict) -> str:
    """Return a check's verdicts as one HTML page that loads nothing: kept photos first, then the refused ones."""
    verdicts = [Verdict.from_dict(v) for v in judged["verdicts"]]
    cards = {True: [], False: []}
    for number in sorted(range(len(verdicts)), key=lambda n: [r.code for r in verdicts[n].reasons]):
        thumb = folder / THUMBS / f"{number:03d}.jpg"
        cards[verdicts[number].kept].append(_card(verdicts[number], thumb))
    asked = "".join(f"<li>{html.escape(one['text'])} ({html.escape(one['why'])})</li>" for one in judged["requests"])
    parts = [
        f"<h1>Your photos</h1><p>{html.escape(judged['outcome'])}.</p>",
        "<h2>What to add</h2>" + (f"<ol>{asked}</ol>" if asked else f"<p>{html.escape(judged['advice'])}</p>"),
    ]
    for kept, title in ((True, "Kept"), (False, "Refused")):
        if cards[kept]:
            parts.append(f'<h2>{title}: {len(cards[kept])}</h2><div class="grid">{"".join(cards[kept])}</div>')
    return document("Your photos", parts)


def _card(verdict: Verdict, thumb: Path) -> str:
    """Return one photo with its name, its verdict and every reason."""
    name = html.escape(verdict.photo)
    words = "<br>".join(map(html.escape, verdict.lines))
    picture = f'<img src="{data_uri(thumb.read_bytes(), "jpeg")}" alt="{name}">' if thumb.is_file() else ""
    kind = "pass" if verdict.kept else "near"
    return f'<figure class="{kind}">{picture}<figcaption><b>{name}</b>{words}</figcaption></figure>'
