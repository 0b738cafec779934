"""Draw figures and tables of a training: its plan, how the LoRA learns the person, what it adds: returned."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image

from headshotkit.core.run import Run
from headshotkit.evaluation.plots import Plot, Table, drawable, legend_below, read_losses
from headshotkit.generation.previews import read_previews
from headshotkit.planning.plan import Plan
from headshotkit.training.lora_layers import LoraLayer, LoraLayers
from headshotkit.training.snapshots import PREVIEWS

NAMED = 0.08
"""Smallest share of the bar whose stage has its name in it."""
MOST_CELLS = 256
"""Largest number of rows and columns of a matrix that are drawn."""


def table_plan(plan: Plan) -> Table:
    """Return a row a stage: minutes, expected and at worst, and GiB of the GPU, or of the host; then the sums."""
    rows = [(s.name, f"{s.minutes:.1f}", f"{s.pessimistic:.1f}", _gib(s.peak_gib)) for s in plan.stages]
    rows.append(("all", f"{plan.minutes:.1f}", f"{plan.pessimistic:.1f}", _gib(plan.peak_gib)))
    return Table(("stage", "minutes", "at worst", "GiB"), rows)


def _gib(peak: float) -> str:
    return f"{peak:.1f}" if peak else "-"


def plot_plan(plan: Plan) -> Plot:
    """Draw the run as a bar of minutes, stage after stage: as expected, and at worst; a line at its time limit."""
    figure = Plot(figsize=(10, 2.1), layout="constrained")
    colours = figure.colours
    axes = figure.add_subplot()
    for y, (total, name) in enumerate(((plan.minutes, "minutes"), (plan.pessimistic, "pessimistic"))):
        left = 0.0
        for number, stage in enumerate(plan.stages):
            width, shade = getattr(stage, name), colours.shades[number % len(colours.shades)]
            axes.barh(y, width, left=left, color=shade, edgecolor=colours.paper)
            if width > NAMED * plan.pessimistic:
                box = {"facecolor": colours.paper, "edgecolor": "none", "pad": 1.5}
                axes.text(left + width / 2, y, f"{stage.name}\n{width:.1f}", ha="center", va="center", fontsize=8,
                          bbox=box)  # fmt: skip
            left += width
        axes.text(left, y, f" {total:.1f}", va="center", weight="bold")
    far = plan.task.minutes > 2 * plan.pessimistic
    axes.set(yticks=(0, 1), yticklabels=("expected", "at worst"), ylim=(1.6, -0.6), xlabel="minutes")
    if far:
        axes.set(xlim=(0, 1.1 * plan.pessimistic))
    else:
        axes.axvline(plan.task.minutes, color=colours.red, ls="--")
    limit = f"{plan.task.minutes:g} minutes given" + (", beyond the right edge" if far else ": the dashed line")
    axes.set_title(f"{plan.task.count} headshots with {plan.task.base} on {plan.task.rates.name}; {limit}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_previews(run: Run) -> Plot:
    """Draw the same prompt and noise during training: a column a snapshot, a row a seed, identity below each."""
    facts = read_previews(run)
    steps = sorted({p["step"] for p in facts["previews"]})
    figure = Plot(figsize=(1.9 * len(steps), 2.3 * facts["pictures"] + 0.3), layout="constrained")
    cells = figure.subplots(facts["pictures"], len(steps), squeeze=False)
    for column, step in enumerate(steps):
        shown = [p for p in facts["previews"] if p["step"] == step]
        for row, preview in enumerate(shown):
            axes = cells[row, column]
            with Image.open(run.path("lora") / PREVIEWS / preview["file"], formats=("PNG",)) as image:
                axes.imshow(np.asarray(image))
            known = preview["identity"] is not None
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"identity {preview['identity']:.2f}" if known else "no single face", fontsize=8)
        cells[0, column].set_title("the bare base" if step == 0 else f"after {step} steps", fontsize=9)
    title = drawable(f"\u201c{facts['prompt']}\u201d, each row from the same noise")
    figure.suptitle(textwrap.fill(title, 24 * len(steps)), fontsize=10, parse_math=False)
    return figure


def plot_progress(run: Run) -> Plot:
    """Draw loss (running mean) and identity of the previews over the steps: the loss hardly shows identity."""
    facts = read_previews(run)
    losses = np.array(read_losses(run), float)  # None: not finite
    window = max(1, len(losses) // 10)
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    figure = Plot(figsize=(8, 4.4), layout="constrained")
    colours = figure.colours
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(mean)) + window // 2, mean, color=colours.grey)
    above.set(ylabel=f"loss, mean of\n{window} steps (lower fits better)")
    seen = [p for p in facts["previews"] if p["identity"] is not None]
    steps = sorted({p["step"] for p in seen})
    below.scatter([p["step"] for p in seen], [p["identity"] for p in seen], color=colours.blue, s=18, label="a preview")
    middles = [np.mean([p["identity"] for p in seen if p["step"] == step]) for step in steps]
    below.plot(steps, middles, color=colours.blue, lw=1, label="mean of a snapshot")
    below.axhline(
        facts["own_median"], color=colours.green, ls="--", label=f"own photos, median {facts['own_median']:.2f}"
    )
    below.axhline(facts["pass_mark"], color=colours.red, ls=":", label=f"identity threshold {facts['pass_mark']:.2f}")
    below.set(xlabel="step", ylabel="identity\n(higher is more similar)")
    below.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=4, frameon=False)
    return figure


def table_layer(layer: LoraLayer) -> Table:
    """Return one layer in numbers: shapes, number of trained parameters, ranks, and size of the change."""
    trained = layer.a.size + layer.b.size
    ranks = [int(np.linalg.matrix_rank(matrix)) for matrix in (layer.weight, layer.change)]
    rows = [
        ("W, the base's, frozen", _shape(layer.weight), f"{layer.weight.size:,} numbers, rank {ranks[0]}"),
        ("A, trained", _shape(layer.a), f"{layer.a.size:,} numbers"),
        ("B, trained", _shape(layer.b), f"{layer.b.size:,} numbers"),
        ("BA, added to W", _shape(layer.change), f"rank {ranks[1]}; {layer.share:.1%} as long as W"),
        ("A and B together", "", f"{trained:,} numbers, {trained / layer.weight.size:.1%} of W's"),
    ]
    return Table((layer.kind, "shape", "what it is"), rows)


def _shape(matrix: np.ndarray) -> str:
    return " x ".join(str(side) for side in matrix.shape)


def plot_layer(layer: LoraLayer) -> Plot:
    """Draw W and BA as pictures, each with its own scale, and their singular values: BA has no more than its rank."""
    figure = Plot(figsize=(11, 3.2), layout="constrained")
    colours = figure.colours
    panels = figure.subplots(1, 3)
    for axes, matrix, title in zip(panels, (layer.weight, layer.change), ("W, frozen", "BA, learnt"), strict=False):
        most = float(np.abs(matrix).max())
        axes.imshow(matrix[:MOST_CELLS, :MOST_CELLS].T, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        axes.set(xticks=[], yticks=[], xlabel=f"{matrix.shape[0]} out", ylabel=f"{matrix.shape[1]} in")
        axes.set_title(f"{title}: numbers up to {most:.3f}", fontsize=9)
    rank, last = len(layer.a), panels[2]
    for matrix, name, colour, style in (
        (layer.weight, "W", colours.grey, "-"),
        (layer.change, "BA", colours.blue, "--"),
    ):
        values = np.linalg.svd(matrix, compute_uv=False)
        last.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-8), style, color=colour, label=name)
    last.axvline(rank, color=colours.red, ls=":", label=f"rank {rank}")
    last.set(xlabel="direction", ylabel="singular value", ylim=(1e-6, None))
    legend_below(last, 3)
    figure.suptitle(layer.name, fontsize=9)
    return figure


def plot_changes(layers: LoraLayers) -> Plot:
    """Draw how much each kind of layer changed, a dot a layer, a bar at the median; most changed kind first."""
    shares = layers.shares()
    figure = Plot(figsize=(8, 1 + 0.28 * len(shares)), layout="constrained")
    colours = figure.colours
    axes = figure.add_subplot()
    for y, values in enumerate(shares.values()):
        axes.barh(y, float(np.median(values)), color=colours.empty, height=0.6)
        axes.scatter(values, np.full(len(values), y), s=14, color=colours.blue, alpha=0.7, zorder=2)
    axes.set(yticks=range(len(shares)), yticklabels=list(shares), ylim=(len(shares) - 0.5, -0.5))
    axes.set(xlabel="length of BA relative to W's, bar: median", xlim=(0, None))
    return figure


def plot_words(words: list[tuple[str, float]], title: str) -> Plot:
    """Draw how much the LoRA changes a layer's output for each word: a bar a word."""
    figure = Plot(figsize=(8, 2.4), layout="constrained")
    colours = figure.colours
    axes = figure.add_subplot()
    axes.bar(range(len(words)), [share for _, share in words], color=colours.blue)
    axes.set(ylabel="moved by\n(BA) x relative to W x", xticks=range(len(words)))
    turned = {"rotation": 40, "ha": "right"} if len(words) > 8 else {}
    axes.set_xticklabels([drawable(word) for word, _ in words], parse_math=False, **turned)
    axes.set_title(title, fontsize=9)
    return figure
