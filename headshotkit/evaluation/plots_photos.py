"""Draw figures and tables of what the photos show and what the coach asks for: returned, never shown."""

from __future__ import annotations

import numpy as np
from matplotlib.patches import Rectangle

from headshotkit.core.results import PhotosResult
from headshotkit.core.run import Run
from headshotkit.evaluation.plots import Plot, Table
from headshotkit.photos.coach import Request
from headshotkit.photos.coverage import EXPRESSIONS, POSES, Axis, Coverage
from headshotkit.photos.selection import Choice

MOST_BARS = 6


def plot_coverage(run: Run) -> Plot:
    """Draw what the kept photos show: a grid of pose by expression, and bars for every axis, counted in scenes.

    A cell or a value that no photo shows is hatched, so that it shows without colour.
    """
    covered = Coverage.from_dict(PhotosResult.load(run).coverage)
    figure = Plot(figsize=(11, 5.2), layout="constrained")
    cells = figure.add_gridspec(2, 4, width_ratios=(1.25, 1, 1, 1))
    _draw_grid(figure.add_subplot(cells[:, 0]), np.array(covered.grid))
    for number, axis in enumerate(covered.axes):
        _draw_bars(figure.add_subplot(cells[number // 3, 1 + number % 3]), axis)
    figure.suptitle(f"{covered.photos} kept photos show {covered.scenes} scenes (a burst is one)", fontsize=11)
    figure.supxlabel("bars count scenes (the best photo of each); the table of chosen photos counts photos", fontsize=8)
    return figure


def _draw_grid(axes, counts: np.ndarray) -> None:
    """Draw numbers of scenes, shape (poses, expressions), darker for more."""
    colours = axes.figure.colours
    top = max(1, counts.max(initial=0))
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=1.3 * top, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if not count:
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fc=colours.paper, ec=colours.grey, hatch="///", lw=0)
            )
        box = {"facecolor": colours.paper, "edgecolor": "none", "pad": 2}
        axes.text(column, row, str(count), ha="center", va="center", fontsize=13, color=colours.ink, bbox=box)
    axes.set(xticks=range(len(EXPRESSIONS)), xticklabels=EXPRESSIONS, yticks=range(len(POSES)), yticklabels=POSES)
    axes.set_xticks(np.arange(0.5, len(EXPRESSIONS) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(POSES) - 1), minor=True)
    axes.grid(which="minor", color=colours.paper, lw=2)
    axes.tick_params(which="both", length=0)
    axes.set_title("pose by expression, scenes\n(left, right: of the picture)", fontsize=9)


def _draw_bars(axes, axis: Axis) -> None:
    """Draw scenes a value of one axis; the most frequent one shows its share, a missing value is marked."""
    colours = axes.figure.colours
    rows = list(zip(axis.values, axis.scenes, strict=True))
    if len(rows) > MOST_BARS:
        others = rows[MOST_BARS - 1 :]
        rows = rows[: MOST_BARS - 1] + [(f"{len(others)} others", sum(n for _, n in others))]
    longest = max([1, *(n for _, n in rows)])
    for y, (value, count) in enumerate(rows):
        axes.barh(y, count, color=colours.blue if value == axis.most else colours.grey, height=0.7)
        words = f" {count}, {axis.share:.0%}" if value == axis.most else f" {count}" if count else " none"
        axes.text(count, y, words, va="center", fontsize=8, color=colours.ink, style="normal" if count else "italic")
    axes.set(yticks=range(len(rows)), xlim=(0, 1.45 * longest), ylim=(max(len(rows), 3) - 0.4, -0.6))
    axes.set_yticklabels([value for value, _ in rows], fontsize=8)
    axes.set_title(axis.name, fontsize=9)
    axes.set_xlabel("scenes", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    if not rows:
        axes.text(0.5, 0.5, "not visible", transform=axes.transAxes, ha="center", color=colours.grey)


def table_requests(run: Run) -> Table:
    """Return what to take next, most useful first, and why; one row that says so if the set is good."""
    judged = PhotosResult.load(run)
    asked = [Request.from_dict(one) for one in judged.requests]
    rows = [(str(number), one.text, one.why) for number, one in enumerate(asked, 1)]
    return Table(("", "to take next", "why"), rows or [("", judged.advice, "")])


def table_chosen(run: Run) -> Table:
    """Return the best photos for quality and variety together, in the order in which they were chosen.

    Photos of one scene share its number, and the coverage figure counts it once.
    """
    judged = PhotosResult.load(run)
    scenes = {verdict.photo: verdict.measures.get("moment") for verdict in judged.verdicts}
    rows = []
    for number, one in enumerate(Choice.from_dict(judged.chosen).photos, 1):
        scene = scenes.get(one.photo)
        rows.append((str(number), one.photo, one.why, "" if scene is None else str(scene + 1)))
    return Table(("", "photo", "why", "scene"), rows)
