"""Figures of a run: returned, never shown; a notebook shows the last line of its cell."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from headshotkit.run import Run

GREEN, RED, GREY, BLUE = "#2a7f3f", "#b3382c", "#8a8a8a", "#2f5f9e"


class Plot(Figure):
    """A figure that draws itself at the end of a notebook cell, with any backend."""

    def png(self) -> bytes:
        """The figure as PNG."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def plot_identity(metrics: dict, scores: dict[str, list[dict]]) -> Plot:
    """Identity of the base's and the LoRA's headshots beside the person's own photos, one panel a recogniser."""
    figure = Plot(figsize=(9, 3.6), layout="constrained")
    kinds = ("base", "lora", "delivered", "restored")
    for place, name in enumerate(metrics["identity"]):
        axes = figure.add_subplot(1, 2, place + 1)
        for x, kind in enumerate(kinds):
            values = [s[name] for s in scores[kind] if s[name] is not None]
            spread = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(len(values))
            axes.scatter(x + spread, values, s=12, alpha=0.6, color=GREY if kind == "base" else BLUE)
            if values:
                axes.hlines(np.median(values), x - 0.3, x + 0.3, color="black")
        own = metrics["identity"][name]["own_photos_median"]
        axes.axhline(own, color=GREEN, ls="--", label=f"own photos, median {own:.2f}")
        if name == "arcface":
            mark = metrics["pass_mark"]["mark"]
            axes.axhline(mark, color=RED, ls=":", label=f"pass mark {mark:.2f}")
        axes.set(xticks=range(len(kinds)), xticklabels=kinds, ylabel="identity (higher is more alike)", title=name)
        axes.legend(fontsize=8)
    return figure


def plot_losses(run: Run) -> Plot:
    """The training loss a step, and its running mean over a twentieth of the steps."""
    losses = np.array(json.loads((run.path("lora") / "losses.json").read_text())["loss"])
    window = max(1, len(losses) // 20)
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    figure = Plot(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(losses, color=GREY, lw=0.5, label="a step")
    axes.plot(np.arange(len(mean)) + window // 2, mean, color=BLUE, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss", title="Training loss: it says that training works, not that it is you")
    axes.legend(fontsize=8)
    return figure


def plot_verdicts(run: Run, columns: int = 6) -> Plot:
    """All photos with a green frame where kept, a red one and the reason where refused."""
    judged = run.manifest("photos")
    tiles = []
    for number, verdict in enumerate(judged["verdicts"]):
        thumb = run.path("photos") / "thumbs" / f"{number:03d}.jpg"
        reason = verdict["reasons"][0]["code"] if verdict["reasons"] else "kept"
        tiles.append((thumb if thumb.exists() else None, f"{verdict['photo']}\n{reason}", verdict["kept"]))
    return _grid(tiles, columns)


def plot_dataset(run: Run, columns: int = 6) -> Plot:
    """The training pictures with their captions."""
    photos = run.manifest("dataset")["dataset"]["photos"]
    tiles = [(run.path("dataset") / p["file"], _wrapped(p["caption"]), None) for p in photos]
    return _grid(tiles, columns)


def plot_headshots(run: Run, stage: str = "headshots", columns: int = 6) -> Plot:
    """The delivered headshots, best first, each with its identity; green frames passed the mark."""
    generated = run.manifest("headshots")
    shots = {h["file"]: h for h in generated["headshots"]}
    tiles = []
    for file in generated["delivered"]:
        shot = shots[file]
        words = "no single face" if shot["identity"] is None else f"identity {shot['identity']:.2f}"
        tiles.append((run.path(stage) / file, f"{shot['prompt_id']}\n{words}", shot["accepted"]))
    return _grid(tiles, columns)


def _wrapped(text: str, width: int = 24) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _grid(tiles: list[tuple[Path | None, str, bool | None]], columns: int) -> Plot:
    """Pictures in a grid: (file or None, words below, frame: True green, False red, None none)."""
    rows = max(1, math.ceil(len(tiles) / columns))
    figure = Plot(figsize=(columns * 1.9, rows * 2.3), layout="constrained")
    for number, (file, words, good) in enumerate(tiles):
        axes = figure.add_subplot(rows, columns, number + 1)
        picture = Image.open(file).convert("RGB") if file else Image.new("RGB", (8, 8), "#dddddd")
        axes.imshow(np.asarray(ImageOps.fit(picture, (160, 160))))
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(words, fontsize=7)
        for spine in axes.spines.values():
            spine.set(visible=good is not None, color=GREEN if good else RED, linewidth=3)
    return figure
