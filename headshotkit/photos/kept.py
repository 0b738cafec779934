"""Read the kept photos of a run, each with its face."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headshotkit.core import runtime
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import Run
from headshotkit.faces import recognition
from headshotkit.photos.files import read_photo


def kept_faces(run: Run, title: str) -> Iterator[tuple[np.ndarray, recognition.Face]]:
    """Yield every kept photo with the face that was judged in it.

    Args:
        title: purpose, for the progress bar.
    Raises:
        StageMissing: the photos have not been judged.
        DamagedRun: a kept photo is missing, or was edited since it was judged.
    """
    kept = PhotosResult.load(run).kept
    files = run.files("photos", [f"kept/{verdict.photo}" for verdict in kept], thorough=True)
    for verdict, file in runtime.progress(list(zip(kept, files, strict=True)), f"own photos, {title}"):
        box, points = (np.array(verdict.measures[name]) for name in ("face_box_px", "face_points_px"))
        yield read_photo(file), recognition.Face(box, 1.0, points)
