"""Override verdicts: a person keeps a refused photo, or leaves out a kept one; the decision is saved."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from headshotkit.config import CheckConfig
from headshotkit.core import locks
from headshotkit.core.errors import CannotKeep, NoPhotos, StageMissing
from headshotkit.core.records import Verdict
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import Run, discard, facts_of, fingerprint, write_json
from headshotkit.photos.check import OVERRIDES, advice_on, outcome_of, overrides_input, read_overrides, write_kept
from headshotkit.photos.files import digest_of, find_photos, plain_name
from headshotkit.photos.page import write_photo_page


@locks.writes("override_verdict")
def override_verdict(run: Run, photo: str, kept: bool, folder: Path | None = None) -> Verdict:
    """Keep a refused photo, or leave out a kept one, by a person's decision; save it in `overruled.json`.

    It stays valid for that file when the photos are judged again, and later stages must be redone. The opposite
    decision cancels it.

    Args:
        photo: its name in the verdicts.
        folder: the photos' folder; None: where they were when they were judged.
    Raises:
        StageMissing: the photos have not been judged, or this photo is not among them.
        CannotKeep: the photo can't be read or shows no face to crop, or it is missing.
    """
    judged = PhotosResult.load(run)
    names = [verdict.photo for verdict in judged.verdicts]
    if photo not in names:
        raise StageMissing(
            f"no photo {photo!r} was judged.", f"The judged photos are: {', '.join(names[:20])}.", "Choose one of them."
        )
    index = names.index(photo)
    verdict, digest = judged.verdicts[index], judged.photos[index].sha256
    if kept and "face_box_px" not in verdict.measures:
        why = "; ".join(reason.text for reason in verdict.reasons)
        raise CannotKeep(
            f"{photo} can't be kept: {why}.", "A training picture is cropped around a face.", "Leave it out."
        )
    source = _file_of(run, judged, photo, digest, folder) if kept else None
    note = {"sha256": digest, "kept": kept, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    said = read_overrides(run) | {photo: note}
    verdict = replace(verdict, kept=kept, overridden=kept == bool(verdict.reasons))
    if not verdict.overridden:
        del said[photo]
    copy = run.path("photos") / "kept" / photo
    if source and not write_kept(source, digest, copy):
        raise CannotKeep(f"{photo} can't be read any more.", "It was moved or changed.", "Judge the photos again.")
    files = {name: facts for name, facts in judged.files.items() if name != f"kept/{photo}"}
    files |= {f"kept/{photo}": facts_of(copy)} if kept else {}
    verdicts = [*judged.verdicts[:index], verdict, *judged.verdicts[index + 1 :]]
    write_json(run.folder / OVERRIDES, said)
    inputs = {k: v for k, v in judged.inputs.items() if k != OVERRIDES} | overrides_input(run)
    manifest = run.manifest("photos") | advice_on(verdicts, CheckConfig.from_dict(judged.config))
    manifest |= {
        "files": files,
        "verdicts": [one.to_dict() for one in verdicts],
        "inputs": inputs,
        "outcome": outcome_of(verdicts, judged.left_out),
        "fingerprint": fingerprint(judged.config, inputs),  # as a new check would have
    }
    write_json(run.path("photos") / "manifest.json", write_photo_page(run.path("photos"), manifest))
    if not kept:
        discard(copy)
    return verdict


def _file_of(run: Run, judged: PhotosResult, photo: str, digest: str, folder: Path | None) -> Path:
    """Return the path of the photo in its folder, unchanged since it was judged."""
    folder = folder or run.placed(judged.folder)
    with contextlib.suppress(NoPhotos):
        for file in find_photos(folder) if folder else ():
            if plain_name(file) == photo and digest_of(file) == digest:
                return file
    why = "The run copies it from there when it is kept."
    place = folder or "the photo folder"
    raise CannotKeep(f"{photo} is no longer in {place}.", why, "Restore it, or judge the photos again.")
