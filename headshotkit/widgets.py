"""Widgets for upload and review in a notebook, thin over the verbs; where nobody looks they wait and do nothing.

They work with ipywidgets 7, which Colab has, and with 8.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path, PureWindowsPath

from headshotkit import runtime
from headshotkit.photos import find_photos
from headshotkit.run import Run, write_atomic

UPLOADS = "uploads"
ALL, KEPT = "all photos", "kept"


def uploaded_files(value) -> list[tuple[str, bytes]]:
    """What `FileUpload().value` holds, as (name, bytes); names have no folders in them.

    Args:
        value: a dict of name -> file in ipywidgets 7, a tuple of files in 8.

    >>> uploaded_files({"me.jpg": {"metadata": {"name": "me.jpg"}, "content": b"1"}})
    [('me.jpg', b'1')]
    >>> uploaded_files(({"name": "../me.jpg", "content": memoryview(b"1")},))
    [('me.jpg', b'1')]
    """
    named = value.items() if isinstance(value, dict) else [(file["name"], file) for file in value]
    files = [(PureWindowsPath(name).name, bytes(file["content"])) for name, file in named]
    return [(name, content) for name, content in files if name not in ("", ".", "..")]


def save_uploads(value, folder: Path) -> list[Path]:
    """Writes uploaded files into a folder, each whole or not at all; a file of the same name is replaced.

    Raises:
        DiskFull, RunFolderError: a file can't be written.
    """
    paths = [folder / name for name, _ in uploaded_files(value)]
    for path, (_, content) in zip(paths, uploaded_files(value), strict=True):
        write_atomic(path, content)
    return paths


def photo_folder(photos: str, run: Run) -> tuple[Path, str]:
    """Where the person's photos are, and why there: named, else uploaded, else the run's, else the sample person's."""
    if photos:
        return Path(photos), "the folder that was asked for"
    uploads = run.folder / UPLOADS
    if uploads.is_dir() and any(uploads.iterdir()):
        return uploads, f"the {len(find_photos(uploads))} uploaded photos"
    begun = run.peek("photos").get("folder")
    if begun:
        return Path(begun), "the folder that the run was begun with"
    return runtime.sample_person(), "the sample person, for no photos were given"


def upload_photos(run: Run):
    """A button that takes photos into the run's `uploads/`, and a line that says what is there."""
    import ipywidgets

    button = ipywidgets.FileUpload(accept="image/*", multiple=True, description="Add photos")
    line = ipywidgets.HTML("Nothing was uploaded yet.")

    def take(change) -> None:
        saved = save_uploads(change["new"], run.folder / UPLOADS)
        if saved:
            there = sum(1 for _ in (run.folder / UPLOADS).iterdir())
            line.value = f"Took {len(saved)}; {there} are in {html.escape(str(run.folder / UPLOADS))}."

    button.observe(take, names="value")
    return ipywidgets.VBox([button, line])


def review_verdicts(run: Run):
    """A list of verdicts to choose from, and the photos that got the chosen one with their reasons in words.

    Raises:
        StageMissing: the photos have not been judged.
    """
    import ipywidgets

    verdicts = run.manifest("photos")["verdicts"]
    thumbs = run.path("photos") / "thumbs"
    cards = [(_code(v), _card(v, thumbs / f"{number:03d}.jpg")) for number, v in enumerate(verdicts)]
    codes = [KEPT, *sorted({code for code, _ in cards} - {KEPT})]
    options = [(f"{ALL} ({len(cards)})", ALL)]
    options += [(f"{code} ({sum(c == code for c, _ in cards)})", code) for code in codes]
    choice = ipywidgets.Dropdown(options=options, value=ALL, description="Show")
    page = ipywidgets.HTML()

    def show(_=None) -> None:
        shown = [card for code, card in cards if choice.value in (ALL, code)]
        page.value = f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(shown)}</div>'

    choice.observe(show, names="value")
    show()
    return ipywidgets.VBox([choice, page])


def _code(verdict: dict) -> str:
    """What a verdict is listed under: kept, or its first reason."""
    return KEPT if verdict["kept"] else verdict["reasons"][0]["code"]


def _card(verdict: dict, thumb: Path) -> str:
    """One photo with its verdict, as HTML that loads nothing from elsewhere."""
    source = f"data:image/jpeg;base64,{base64.b64encode(thumb.read_bytes()).decode()}" if thumb.exists() else ""
    picture = f'<img src="{source}" style="width:100%" alt="">' if source else ""
    colour = "#2a7f3f" if verdict["kept"] else "#b3382c"
    reasons = "<br>".join(html.escape(reason["text"]) for reason in verdict["reasons"]) or "kept"
    return (
        f'<div style="width:160px;line-height:1.3;border-top:4px solid {colour}">{picture}'
        f"<b>{html.escape(verdict['photo'])}</b><br>{reasons}</div>"
    )
