"""Pack the accepted headshots as one zip, to download."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from headshotkit.core.errors import NothingToShow
from headshotkit.core.results import HeadshotsResult
from headshotkit.core.run import Run, write_atomic

ZIP = "headshots.zip"
WHEN = (1980, 1, 1, 0, 0, 0)
"""Time of every file in a zip, so that the same headshots make the same zip."""


def accepted_headshots(run: Run) -> dict[str, Path]:
    """Return the accepted headshots, best first: name to save it under -> file, restored if it was restored.

    Raises:
        StageMissing: no headshots were generated, or photos or LoRA have changed since.
    """
    shots = [shot for shot in HeadshotsResult.load(run).best if shot.accepted]
    folder = run.path("restored" if run.has("restored") else "headshots")
    return {f"{n:02d}_{s.prompt_id}{Path(s.file).suffix}": folder / s.file for n, s in enumerate(shots, 1)}


def pack_headshots(run: Run) -> Path:
    """Write headshots.zip into the run folder and return its path; it holds only accepted headshots, best first.

    Raises:
        StageMissing: as `accepted_headshots`.
        NothingToShow: none was accepted.
        DiskFull, RunFolderError: the zip can't be written.
    """
    accepted = accepted_headshots(run)
    if not accepted:
        raise nothing_accepted(run)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # PNGs get no smaller
        for name, file in accepted.items():
            archive.writestr(zipfile.ZipInfo(name, WHEN), file.read_bytes())
    write_atomic(run.folder / ZIP, packed.getvalue())
    return run.folder / ZIP


def nothing_accepted(run: Run) -> NothingToShow:
    """Return the error that says why there is no headshot to download."""
    generated = HeadshotsResult.load(run)
    rough = " The embedded base makes small, rough pictures; with a GPU, use SDXL."
    return NothingToShow(
        f"0 of {len(generated.delivered)} headshots are accepted.",
        f"None reached the identity threshold {generated.threshold.value:.2f} without another fault."
        + (rough if generated.config.get("base") == "mini" else ""),
        "Train for more steps, add more varied photos, or allow more attempts.",
    )
