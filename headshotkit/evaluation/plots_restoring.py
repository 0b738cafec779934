"""Draw figures of restoring: what each fidelity does to a face, and what was kept. Returned, never shown."""

from __future__ import annotations

import textwrap
from collections import Counter

import numpy as np
from PIL import Image, ImageOps

from headshotkit.core.errors import NothingToShow
from headshotkit.core.results import RestoredResult
from headshotkit.core.run import Run
from headshotkit.evaluation.plots import Plot, Table, drawable, legend_below
from headshotkit.restoration.restore import sweep
from headshotkit.scoring.reasons import HARM

TILE_PX = 360


def plot_sweep(run: Run, file: str = "") -> Plot:
    """Restore one headshot with each fidelity, and draw the results next to the headshot as it was drawn.

    Below each stand identity by both recognisers, the eyes' lightness and colour in CIELAB, the skin's finest texture,
    and what was harmed; a red frame is around those that may not be kept.

    Args:
        file: the headshot's name; empty: the first that was restored.
    Without a restorer the figure says what is missing.

    Raises:
        StageMissing: the headshots have not been restored.
    """
    try:
        before, tried = sweep(run, file)
    except NothingToShow as error:
        return _words_alone(error.happened)
    figure = Plot(figsize=(2.4 * (len(tried) + 1), 3.9), layout="constrained")
    colours, columns = figure.colours, [("as drawn", before, "", ())]
    for one in tried:
        eyes = "not measured" if one.look.eyes is None else "/".join(f"{v:.0f}" for v in one.look.eyes)
        alike = " · ".join(f"{name} {value:.2f}" for name, value in one.look.identity.items())
        words = f"{alike}\neyes {eyes}\ntexture {one.look.texture['pores']:.2f} %"
        columns.append((f"fidelity {one.fidelity:g}", one.picture, words, one.harm))
    for place, (title, picture, words, harm) in enumerate(columns, 1):
        axes = figure.add_subplot(1, len(columns), place)
        axes.imshow(np.asarray(ImageOps.fit(Image.fromarray(picture), (TILE_PX, TILE_PX))))
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
        harmed = "\n".join(textwrap.fill(HARM[code], 26) for code in harm)
        axes.set_xlabel(f"{words}\n{harmed}".strip(), fontsize=8, parse_math=False)
        axes.spines[:].set(visible=bool(harm), color=colours.red, linewidth=2)
    return figure


def plot_restoring(run: Run) -> Plot:
    """Draw identity against sharpness: each headshot as drawn, at each fidelity that was tried, and as kept.

    Without a restorer the figure says what is missing.

    Raises:
        StageMissing: the headshots have not been restored.
    """
    result = RestoredResult.load(run)
    faces = [face for face in result.faces if face.tried]
    if not faces:
        return _words_alone(f"no face was restored: {(*result.missing, 'no headshot shows a face of the person')[0]}")
    figure = Plot(figsize=(7, 4.2), layout="constrained")
    colours, axes = figure.colours, figure.add_subplot()
    for face in faces:
        tried = sorted(face.tried, key=lambda one: -one.fidelity)
        line = [(face.sharpness_before, face.identity_before), *((one.sharpness, one.identity) for one in tried)]
        axes.plot(*zip(*line, strict=True), "-", color=colours.grey, lw=0.6, zorder=1)
    every = [one for face in faces for one in face.tried]
    kept = [one for face in faces for one in face.tried if face.kept == "restored" and one.fidelity == face.fidelity]
    groups = (
        ("as drawn", [(face.sharpness_before, face.identity_before) for face in faces], "x", colours.ink, 28),
        ("tried, harms the face", [(o.sharpness, o.identity) for o in every if o.harm], ".", colours.red, 22),
        ("tried, harms nothing", [(o.sharpness, o.identity) for o in every if not o.harm], ".", colours.green, 22),
        ("kept", [(one.sharpness, one.identity) for one in kept], "o", colours.blue, 60),
    )
    for name, points, marker, colour, size in groups:
        style = {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
        if points:
            axes.scatter(*zip(*points, strict=True), s=size, marker=marker, label=f"{name}: {len(points)}", **style)
    axes.set(xlabel="sharpness of the face (higher is sharper)", ylabel="identity (higher is more similar)")
    legend_below(axes)
    return figure


def _words_alone(words: str) -> Plot:
    """Return a figure that holds a sentence."""
    figure = Plot(figsize=(7, 0.6))
    figure.text(0, 0.5, textwrap.fill(drawable(words), 100), va="center", fontsize=9, parse_math=False)
    return figure


def table_restored(run: Run) -> Table:
    """Return how many faces were restored at which fidelity, what the refused ones harmed, and what is missing."""
    result = RestoredResult.load(run)
    kept = [face.kept for face in result.faces]
    rows = [(f"{kind} headshots", str(kept.count(kind))) for kind in ("restored", "unrestored")]
    used = Counter(face.fidelity for face in result.faces if face.fidelity is not None)
    rows += [(f"restored at fidelity {fidelity:g}", str(used[fidelity])) for fidelity in sorted(used)]
    harm = Counter(code for face in result.faces for one in face.tried for code in one.harm)
    rows += [(f"refused at some fidelity: {HARM[code]}", str(count)) for code, count in harm.most_common()]
    rows += [("missing, and how to get it", text) for text in result.missing]
    return Table(("what", "value"), rows)
