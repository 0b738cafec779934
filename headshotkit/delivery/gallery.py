"""Build the gallery: one self-contained HTML page and a contact sheet of the delivered headshots."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from headshotkit.core import locks
from headshotkit.core.pages import EMBED_BYTES, PAGE, embedded, template
from headshotkit.core.records import Headshot, Verdict
from headshotkit.core.results import HeadshotsResult, PhotosResult, ReportResult, RestoredResult
from headshotkit.core.run import Run, write_atomic
from headshotkit.generation.shortfall import OFFERED, is_offered
from headshotkit.scoring.metrics import gaps_in, in_words
from headshotkit.scoring.ranking import after_restoring
from headshotkit.scoring.reasons import WORDS

SHEET = "contact_sheet.png"
TILE_PX = 256
SHOWN_PX = 640
"""Width at which a large headshot is shown; its link has the full size."""


@locks.writes("gallery")
def build_gallery(run: Run) -> Path:
    """Write `gallery/`: index.html with its pictures embedded, contact_sheet.png, manifest.json.

    Returns: the page's path.
    Raises:
        StageMissing: the run has not been evaluated.
    """
    generated, verdicts = HeadshotsResult.load(run), PhotosResult.load(run).verdicts
    metrics = ReportResult.load(run).metrics
    shots = after_restoring(generated, RestoredResult.load(run).faces)
    delivered = [shot for shot in shots if is_offered(shot, generated.threshold.value)]
    files = run.files("restored", [shot.file for shot in delivered])
    stage = run.begin("gallery", {}, run.inputs_from("headshots", "restored", "report"))
    if stage.done:
        return stage.folder / PAGE
    write_atomic(stage.folder / SHEET, contact_sheet(files))
    write_atomic(stage.folder / PAGE, page(delivered, files, generated, verdicts, metrics))
    passed = sum(shot.accepted for shot in delivered)
    stage.finish(f"{len(delivered)} headshots in gallery/{PAGE}, {passed} of them at or above the identity threshold")
    return stage.folder / PAGE


def contact_sheet(files: list[Path], columns: int = 6) -> bytes:
    """Return all pictures in one PNG, each whole in a square tile of TILE_PX, row by row."""
    rows = max(1, math.ceil(len(files) / columns))
    sheet = Image.new("RGB", (columns * TILE_PX, rows * TILE_PX), "white")
    for number, file in enumerate(files):
        with Image.open(file, formats=("PNG",)) as picture:
            tile = ImageOps.pad(picture.convert("RGB"), (TILE_PX, TILE_PX), Image.Resampling.LANCZOS, color="white")
        sheet.paste(tile, (number % columns * TILE_PX, number // columns * TILE_PX))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def page(delivered: list[Headshot], files: list[Path], generated: HeadshotsResult, verdicts: Sequence[Verdict],
         metrics: dict) -> str:  # fmt: skip
    """Return the gallery as one HTML page; a headshot's link saves it at full size, from the page itself."""
    shots = []
    for number, (shot, file) in enumerate(zip(delivered, files, strict=True), 1):
        whole = embedded(file)
        kind = "png" if whole.startswith("data:image/png") else "jpg"
        shown = whole if len(whole) <= 2 * EMBED_BYTES else embedded(file, SHOWN_PX)
        saved = f"{number:02d}_{shot.prompt_id}.{kind}"
        against = [WORDS.get(code, code) for code in shot.reasons]
        shots.append(shot.to_dict() | {"whole": whole, "shown": shown, "saved": saved, "against": against})
    found = metrics.get("measured", {})
    measured = [
        {"title": one["title"], "better": one["better"], "caution": one["caution"]}
        | {kind: in_words(one["sets"][kind]) for kind in ("restored", "base", "own_photos")}
        for one in found.values()
        if "value" in one["sets"]["restored"]
    ]
    return template("gallery.html").render(
        shots=shots, generated=generated, verdicts=verdicts, metrics=metrics, offered=OFFERED, measured=measured,
        gaps=gaps_in(found),
    )  # fmt: skip
