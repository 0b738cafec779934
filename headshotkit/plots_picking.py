"""Figures of the choice of checkpoint and strength: returned, never shown."""

from __future__ import annotations

from matplotlib.axes import Axes

from headshotkit.picking import choose_pick
from headshotkit.plots import BLUE, GREEN, GREY, RED, Plot, Table
from headshotkit.records import Pick
from headshotkit.run import Run


def plot_pick(run: Run) -> Plot:
    """Likeness against the prompt, a dot a candidate: checkpoints, then the best's strengths; the chosen marked.

    Raises:
        StageMissing: nothing was picked for this LoRA.
    """
    manifest = run.manifest("picked")
    tried, chosen = [Pick.from_dict(one) for one in manifest["candidates"]], Pick.from_dict(manifest["chosen"])
    usual = tried[0].scale
    checkpoints = [one for one in tried if one.scale == usual]
    strengths = sorted((one for one in tried if one.step == chosen.step), key=lambda one: one.scale)
    figure = Plot(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _curve(left, checkpoints, [f"{one.step}" for one in checkpoints], GREY)
    left.set_title(f"checkpoints (steps) at strength {usual:g}", fontsize=9)
    _curve(right, strengths, [f"{one.scale:g}" for one in strengths], BLUE)
    right.set_title(f"strengths of step {chosen.step}", fontsize=9)
    knees = (choose_pick(checkpoints), chosen)
    mark = manifest["pass_mark"]["mark"] / manifest["pass_mark"]["own_median"]
    for axes, knee in zip((left, right), knees, strict=True):
        axes.scatter(knee.obeyed, knee.likeness, s=160, facecolors="none", edgecolors=RED, linewidths=2, label="chosen")
        axes.axhline(mark, color=GREEN, ls=":", label=f"pass mark, {mark:.0%}")
        axes.set(xlabel="share of what was asked that is shown")
        axes.legend(fontsize=8, loc="lower left")
    left.set_ylabel("likeness (1: as alike as own photos)")
    left.margins(0.15)  # both panels share their axes, and names stand beside the dots
    return figure


def _curve(axes: Axes, some: list[Pick], names: list[str], colour: str) -> None:
    """Candidates in their order, joined, each with its name."""
    axes.plot([one.obeyed for one in some], [one.likeness for one in some], "o-", color=colour, lw=1, ms=4)
    for one, name in zip(some, names, strict=True):
        axes.annotate(name, (one.obeyed, one.likeness), (4, 4), textcoords="offset points", fontsize=8)


def table_pick(run: Run) -> Table:
    """Every candidate in numbers, the chosen one marked.

    Raises:
        StageMissing: nothing was picked for this LoRA.
    """
    manifest = run.manifest("picked")
    rows = []
    for one in (Pick.from_dict(values) for values in manifest["candidates"]):
        mark = "chosen" if one.to_dict() == manifest["chosen"] else ""
        passed = f"{round(one.passed * one.pictures)} of {one.pictures}"
        rows.append((str(one.step), f"{one.scale:g}", f"{one.likeness:.0%}", f"{one.obeyed:.0%}", passed, mark))
    return Table(("step", "strength", "as alike as a photo", "obeyed", "passed", ""), rows)
