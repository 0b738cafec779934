"""Draw figures of the choice of checkpoint and LoRA scale: returned, never shown."""

from __future__ import annotations

from itertools import cycle

from matplotlib.axes import Axes

from headshotkit.core.records import Pick
from headshotkit.core.results import PickedResult
from headshotkit.core.run import Run
from headshotkit.evaluation.plots import Plot, Table, legend_below
from headshotkit.generation.picking import choose_pick

SIGNS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
"""Markers of candidates in their order; the legend names them, so that no name covers a point."""


def plot_pick(run: Run) -> Plot:
    """Draw likeness against adherence, a marker a candidate: checkpoints, then the best's scales; the chosen ringed.

    Likeness is to the photos that were not trained on, if there are any; by it the candidate was chosen.

    Raises:
        StageMissing: nothing was picked for this LoRA.
    """
    picked = PickedResult.load(run)
    tried, chosen = picked.candidates, picked.chosen
    usual, unseen = tried[0].scale, chosen.held_out is not None
    checkpoints = [one for one in tried if one.scale == usual]
    scales = sorted((one for one in tried if one.step == chosen.step), key=lambda one: one.scale)
    figure = Plot(figsize=(9, 4.6), layout="constrained")
    colours = figure.colours
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _curve(left, checkpoints, [f"step {one.step}" for one in checkpoints], colours.grey)
    left.set_title(f"checkpoints (steps) at lora_scale {usual:g}", fontsize=9)
    _curve(right, scales, [f"lora_scale {one.scale:g}" for one in scales], colours.blue)
    right.set_title(f"lora_scales of step {chosen.step}", fontsize=9)
    chosen_ones = (choose_pick(checkpoints), chosen)
    least = picked.threshold.value / picked.threshold.own_median
    for axes, best in zip((left, right), chosen_ones, strict=True):
        axes.scatter(
            best.adherence,
            best.decisive,
            s=220,
            facecolors="none",
            edgecolors=colours.red,
            linewidths=2,
            label="chosen",
        )
        if not unseen:
            axes.axhline(least, color=colours.green, ls=":", label=f"acceptable likeness, {least:.0%}")
        axes.set(xlabel="prompt adherence")
        legend_below(axes, 3)
    left.set_ylabel(f"likeness{' to photos not trained on' * unseen}\n(1: as similar as own photos)")
    left.margins(0.15)  # both panels share their axes
    return figure


def _curve(axes: Axes, some: list[Pick], names: list[str], colour: str) -> None:
    """Draw candidates in their order, joined, each with its own marker that the legend names."""
    axes.plot([one.adherence for one in some], [one.decisive for one in some], "-", color=colour, lw=0.8)
    for one, name, sign in zip(some, names, cycle(SIGNS), strict=False):
        axes.scatter(one.adherence, one.decisive, s=36, marker=sign, color=colour, alpha=0.7, label=name)


def table_pick(run: Run) -> Table:
    """Return every candidate's numbers, the chosen one marked.

    Raises:
        StageMissing: nothing was picked for this LoRA.
    """
    picked, rows = PickedResult.load(run), []
    for one in picked.candidates:
        mark = "chosen" if one == picked.chosen else ""
        passed = f"{round(one.passed * one.pictures)} of {one.pictures}"
        unseen = "none" if one.held_out is None else f"{one.held_out:.0%}"
        numbers = (str(one.step), f"{one.scale:g}", f"{one.likeness:.0%}", unseen, f"{one.adherence:.0%}", passed)
        rows.append((*numbers, mark))
    header = ("step", "lora_scale", "as similar as a photo", "as one not trained on", "prompt adherence", "passed", "")
    return Table(header, rows)
