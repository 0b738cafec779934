"""Show headshots before and after restoring, split by a slider; a thin wrapper of the run's files.

It works with ipywidgets 7, which Colab has, and with 8; without a notebook it waits and does nothing.
"""

from __future__ import annotations

import io

from PIL import Image

from headshotkit.core.results import RestoredResult
from headshotkit.core.run import Run

SHOWN_PX = 512


def compare_restored(run: Run):
    """Show a headshot, as drawn on the left of the slider and restored on the right; another one is chosen by name.

    Raises:
        StageMissing: the headshots have not been restored.
    """
    import ipywidgets as w

    faces = sorted(RestoredResult.load(run).faces, key=lambda face: face.kept != "restored")
    names = [face.file for face in faces]
    chosen = w.Dropdown(options=names, description="headshot")
    split = w.IntSlider(value=50, min=0, max=100, description="before", readout=False)
    shown, line = w.Image(format="jpeg", width=SHOWN_PX), w.HTML()
    known = {face.file: face for face in faces}

    def draw(_=None) -> None:
        face = known[chosen.value]
        shown.value = split_picture(run, chosen.value, split.value / 100)
        line.value = face.kept if face.fidelity is None else f"{face.kept}, fidelity {face.fidelity:g}"

    for control in (chosen, split):
        control.observe(draw, "value")
    draw()
    return w.VBox([chosen, shown, split, line])


def split_picture(run: Run, file: str, share: float) -> bytes:
    """Return a JPEG whose left share is the headshot as drawn and whose right is the one in `restored/`.

    Args:
        share: of the width, in [0, 1].
    """
    size = (SHOWN_PX, SHOWN_PX)
    with Image.open(run.path("headshots") / file, formats=("PNG",)) as picture:
        before = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    with Image.open(run.path("restored") / file, formats=("PNG",)) as picture:
        after = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    width = round(share * SHOWN_PX)
    after.paste(before.crop((0, 0, width, SHOWN_PX)), (0, 0))
    if 0 < width < SHOWN_PX:
        after.paste((255, 255, 255), (width - 1, 0, width + 1, SHOWN_PX))
    buffer = io.BytesIO()
    after.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
