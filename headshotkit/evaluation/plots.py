"""Draw the figures of a run: returned, never shown; a notebook shows the last line of its cell."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from headshotkit.core.errors import DamagedRun, NothingToShow
from headshotkit.core.pages import template
from headshotkit.core.records import Verdict
from headshotkit.core.results import (
    DatasetResult,
    HeadshotsResult,
    LoraResult,
    PhotosResult,
    ReportResult,
    RestoredFace,
    RestoredResult,
)
from headshotkit.core.run import Run, read_json
from headshotkit.photos.coverage import quality
from headshotkit.scoring.metrics import gaps_in, in_words
from headshotkit.scoring.ranking import after_restoring
from headshotkit.scoring.reasons import WORDS

GOLDEN = (5**0.5 - 1) / 2
MARKS = {
    "own_photos": {"marker": "D", "facecolors": "none"},
    "base": {"marker": "x"},
    "lora": {"marker": "o"},
    "delivered": {"marker": "o"},
    "restored": {"marker": "o"},
}
"""Marker of each kind of picture in `plot_identity`, so that colour is not needed."""


@dataclass(frozen=True)
class Colours:
    """The colours of a figure. `ink` is for text and lines, `paper` is behind text, `empty` is for empty cells.

    `shades` are for adjacent parts of a bar.
    """

    ink: str
    paper: str
    green: str
    red: str
    grey: str
    blue: str
    empty: str
    shades: tuple[str, ...]


LIGHT = Colours("black", "white", "#2a7f3f", "#b3382c", "#6f6f6f", "#2f5f9e", "#dddddd",
                ("#2f5f9e", "#b9c9de", "#5f87bb", "#dfe7f1"))  # fmt: skip
DARK = Colours("white", "black", "#6cc283", "#f08a7e", "#a8a8a8", "#82b1ea", "#404040",
               ("#82b1ea", "#2f4a6b", "#5f87bb", "#1d2f45"))  # fmt: skip


class Plot(Figure):
    """A figure that draws itself at the end of a notebook cell, with any backend.

    It is dark if matplotlib's style is: `matplotlib.style.use("dark_background")` makes all later ones dark.
    """

    @property
    def colours(self) -> Colours:
        """Return the colours that match matplotlib's text colour."""
        return DARK if np.mean(to_rgb(rcParams["text.color"])) > 0.5 else LIGHT

    def png(self) -> bytes:
        """Return the figure as PNG."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def plot_identity(metrics: dict, scores: dict[str, list[dict]]) -> Plot:
    """Draw the identity of the person's own photos and of the base's and the LoRA's headshots, a panel a recogniser.

    A dot's horizontal position within its column means nothing. The own photos are left out if an older evaluation has
    only their median.
    """
    figure = Plot(figsize=(10, 4), layout="constrained")
    colours = figure.colours
    kinds = [kind for kind in MARKS if kind in scores]
    for place, name in enumerate(metrics["identity"]):
        axes = figure.add_subplot(1, len(metrics["identity"]), place + 1)
        for x, kind in enumerate(kinds):
            values = [s[name] for s in scores[kind] if s[name] is not None]
            colour = {"own_photos": colours.green, "base": colours.grey}.get(kind, colours.blue)
            axes.scatter(x + scattered(len(values)), values, s=16, alpha=0.7, color=colour, **MARKS[kind])
            if values:
                axes.hlines(np.median(values), x - 0.3, x + 0.3, color=colours.ink)
        own = metrics["identity"][name]["own_photos_median"]
        axes.axhline(own, color=colours.green, ls="--", label=f"own photos, median {own:.2f}")
        if name == "arcface":
            threshold = metrics["pass_mark"]["mark"]
            axes.axhline(threshold, color=colours.red, ls=":", label=f"identity threshold {threshold:.2f}")
        labels = [f"{kind}\n{len(scores[kind])}".replace("_", " ") for kind in kinds]
        axes.set(xticks=range(len(kinds)), xticklabels=labels, ylabel="identity (higher is more similar)", title=name)
        legend_below(axes)
    return figure


def scattered(count: int, width: float = 0.44) -> np.ndarray:
    """Return offsets from a column's middle for values in any order, also sorted ones: they never form a line.

    Source: multiples of the golden ratio, whose neighbours lie far apart.

    >>> scattered(3).round(2).tolist()
    [-0.22, 0.05, -0.12]
    """
    return width * (np.arange(count) * GOLDEN % 1 - 0.5)


def legend_below(axes, columns: int = 2) -> None:
    """Put the legend under a panel, where it hides no point."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False)


def read_losses(run: Run) -> list[float | None]:
    """Return the loss of each step of a finished training; None where it was not finite.

    Raises:
        StageMissing: nothing has been trained.
        DamagedRun: the file is missing, or isn't what the training wrote.
    """
    LoraResult.load(run)
    path = run.path("lora") / "losses.json"
    found = read_json(path, {"loss": tuple[float | None, ...]})
    if not found or not found["loss"]:
        raise DamagedRun(
            f"{path} is missing.", "It holds the loss of each step, for the plots.", "Restore it from a copy."
        )
    return found["loss"]


def plot_losses(run: Run) -> Plot:
    """Draw the training loss a step, and its running mean over a twentieth of the steps."""
    losses = np.array(read_losses(run), float)  # None: not finite
    window = max(1, len(losses) // 20)
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    figure = Plot(figsize=(7, 3), layout="constrained")
    colours = figure.colours
    axes = figure.add_subplot()
    axes.plot(losses, color=colours.grey, lw=0.5, label="a step")
    axes.plot(np.arange(len(mean)) + window // 2, mean, color=colours.blue, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title("Training loss: it shows that training works, not that the face is yours", fontsize=10)
    legend_below(axes)
    return figure


def plot_verdicts(run: Run, columns: int = 6, most: int = 120) -> Plot:
    """Draw the photos with their verdicts: the kept ones first, best first, then the rejected ones by reason.

    Kept: a solid green frame and a tick. Rejected: a dashed red frame, a cross and the first reason with its number
    and its limit. After `most` photos the sheet ends and says so.
    """
    verdicts = PhotosResult.load(run).verdicts
    order = sorted(range(len(verdicts)), key=lambda i: _place(verdicts[i]))[:most]
    rows = max(1, math.ceil(len(order) / columns))
    sheet_in, title_in = rows * 2.55, 0.35
    figure = Plot(figsize=(columns * 1.9, sheet_in + title_in))
    axes = figure.add_axes((0, 0, 1, sheet_in / (sheet_in + title_in)))
    axes.set(xlim=(0, columns), ylim=(rows * 1.34, 0))
    axes.axis("off")
    for number, i in enumerate(order):
        thumb = run.path("photos") / "thumbs" / f"{i:03d}.jpg"
        _draw_verdict(axes, number % columns, number // columns * 1.34, verdicts[i], thumb)
    left_out = f"; the first {most} are shown" if most < len(verdicts) else ""
    title = f"{sum(v.kept for v in verdicts)} of {len(verdicts)} photos are kept{left_out}"
    figure.text(0.5, 1 - title_in / 2 / (sheet_in + title_in), title, fontsize=10, ha="center", va="center")
    return figure


def _place(verdict: Verdict) -> tuple:
    """Return a photo's sort key on the sheet: kept first, then by reason, then best first."""
    code = verdict.reasons[0].code if verdict.reasons else ""
    return not verdict.kept, "" if verdict.kept else code, -quality(verdict.measures), verdict.photo


def _draw_verdict(axes, x: float, y: float, verdict: Verdict, thumb: Path) -> None:
    """Draw one photo of the sheet with frame, sign, name and reason, in a cell 1 wide and 1.34 high."""
    there, empty = thumb.exists(), Image.new("RGB", (8, 8), axes.figure.colours.empty)
    picture = Image.open(thumb, formats=("JPEG",)).convert("RGB") if there else empty
    axes.imshow(np.asarray(ImageOps.fit(picture, (160, 160))), extent=(x + 0.03, x + 0.97, y + 0.97, y + 0.03))
    _frame(axes, (x + 0.03, y + 0.03), 0.94, verdict.kept)
    name = verdict.photo if len(verdict.photo) <= 28 else verdict.photo[:27] + "\u2026"
    words = "\n".join(textwrap.wrap(drawable(verdict_words(verdict)), 31, max_lines=4, placeholder=" \u2026"))
    middle = {"fontsize": 7, "ha": "center", "va": "top", "parse_math": False}
    axes.text(x + 0.5, y + 1.0, drawable(name), weight="bold", **middle)
    axes.text(x + 0.5, y + 1.06, words, **middle)


def _frame(axes, corner: tuple[float, float], side: float, good: bool) -> None:
    """Frame a picture: solid with a tick if it is good, else dashed with a cross; green and red only repeat it."""
    colours = axes.figure.colours
    colour, sign = (colours.green, "\u2713") if good else (colours.red, "\u2717")
    axes.add_patch(Rectangle(corner, side, side, fill=False, color=colour, lw=3, ls="-" if good else "--"))
    badge = {"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": colours.paper}
    x, y = (place + 0.085 * side for place in corner)
    axes.text(x, y, sign, color=colours.paper, fontsize=10, ha="center", va="center", bbox=badge)


def drawable(text: str) -> str:
    """Return a text with "?" for each character that matplotlib's own font lacks, as in a Chinese file name.

    >>> drawable("mé 写真.jpg")
    'mé ??.jpg'
    """
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known else "?" for letter in text)


def verdict_words(verdict: Verdict) -> str:
    """Return a verdict in a few words: kept and how good, or the first reason; and whether it was overridden."""
    if verdict.overridden:
        return " ".join(verdict.lines[:2])
    return f"kept, quality {quality(verdict.measures):.2f}" if verdict.kept else verdict.lines[0]


def plot_dataset(run: Run, columns: int = 6) -> Plot:
    """Draw the training pictures with their captions."""
    photos = DatasetResult.load(run).dataset.photos
    tiles = [(run.path("dataset") / photo.file, _wrapped(photo.caption), None) for photo in photos]
    return _grid(tiles, columns)


def plot_headshots(run: Run, stage: str = "headshots", columns: int = 6) -> Plot:
    """Draw the delivered headshots, best first, each with its identity; those of the stage "restored" as restored.

    Accepted: a solid green frame and a tick. Not accepted: a dashed red frame, a cross and the reasons.

    Raises:
        NothingToShow: no headshot was delivered.
    """
    tiles, generated = [], HeadshotsResult.load(run)
    faces = RestoredResult.load(run).faces if stage == "restored" else ()
    for shot in after_restoring(generated, faces):
        words = [] if shot.identity is None else [f"identity {shot.identity:.2f}"]
        words += [WORDS.get(code, code) for code in shot.reasons]
        words = "\n".join([_wrapped(shot.prompt_id), *map(_wrapped, words)])
        tiles.append((run.path(stage) / shot.file, words, shot.accepted))
    return _grid(tiles, columns, f"no headshot was delivered in {run.folder}.", "Generate some: run notebook 03, or "
                 f"headshotkit generate --out {run.folder}")  # fmt: skip


def plot_pictures(run: Run, pictures: list, titles: list[str] | None = None, columns: int = 6) -> Plot:
    """Draw pictures of `pictures.render_pictures`, each with its title, its identity, and how it follows the edges."""
    tiles = []
    for picture, title in zip(pictures, titles or [f"seed {p.seed}" for p in pictures], strict=True):
        tiles.append((run.path("pictures") / picture.file, f"{_wrapped(title)}\n{picture.words}", None))
    return _grid(tiles, columns)


def plot_class_images(run: Run, most: int = 6) -> Plot:
    """Draw the first class images of a run's dataset, and their prompt."""
    dataset = DatasetResult.load(run).dataset
    words = _wrapped(dataset.class_prompt or f"photo of a {dataset.class_word}")
    tiles = [(run.path("dataset") / file, words, None) for file in dataset.class_images[:most]]
    return _grid(
        tiles,
        most,
        f"the dataset in {run.folder} has no class images.",
        "Prepare it with some: set "
        f"CLASS_IMAGES in notebook 01, or headshotkit prepare --class-images 50 --out {run.folder}",
    )


def plot_restored(run: Run, pairs: int = 6) -> Plot:
    """Draw delivered headshots before (above) and after (below) the faces were restored, restored ones first.

    If none was restored, the headshots are drawn once.
    """
    faces = sorted(RestoredResult.load(run).faces, key=lambda face: face.kept != "restored")[:pairs]
    columns, restored = max(1, len(faces)), any(face.kept == "restored" for face in faces)

    def tiles(stage: str, words: Callable[[RestoredFace], str], identity: str) -> list[tuple[Path, str, None]]:
        values = [getattr(face, identity) for face in faces]
        numbers = ["" if value is None else f"\nidentity {value:.2f}" for value in values]
        return [(run.path(stage) / f.file, words(f) + number, None) for f, number in zip(faces, numbers, strict=True)]

    before = tiles("headshots", lambda face: "before" if restored else "not restored", "identity_before")
    after = tiles("restored", lambda face: face.kept, "identity_after") if restored else []
    return _grid(before + after, columns)


def plot_identity_threshold(run: Run) -> Plot:
    """Draw the basis of the identity threshold: identity of the own photos, and of every attempt at a headshot."""
    generated = HeadshotsResult.load(run)
    own = [verdict.measures.get("identity") for verdict in PhotosResult.load(run).kept]
    attempts = sorted({shot.attempt for shot in generated.headshots})
    rows = ["own photos", *(f"attempt {number}" for number in attempts)]
    figure = Plot(figsize=(7, 2 + 0.5 * len(rows)), layout="constrained")
    colours = figure.colours
    axes = figure.add_subplot()
    kinds = [("own photo", {"marker": "D", "facecolors": "none", "edgecolors": colours.green}, [(v, 0) for v in own])]
    for name, style, accepted in (("accepted", {"marker": "o", "color": colours.blue}, True),
                                  ("not accepted", {"marker": "x", "color": colours.red}, False)):  # fmt: skip
        shots = [shot for shot in generated.headshots if shot.accepted == accepted]
        kinds.append((name, style, [(shot.identity, 1 + attempts.index(shot.attempt)) for shot in shots]))
    for name, style, points in kinds:
        there = np.array([point for point in points if point[0] is not None], float).reshape(-1, 2)
        axes.scatter(*there.T, s=22, alpha=0.7, label=f"{name}: {len(there)}", **style)
    threshold = generated.threshold.value
    axes.axvline(threshold, color=colours.red, ls=":", label=f"identity threshold {threshold:.2f}")
    axes.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
    axes.set(xlabel="identity to the own photos (higher is more similar)")
    axes.set_title(textwrap.fill(generated.threshold.reason, 90), fontsize=8)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=4, frameon=False)
    return figure


def plot_evaluation(run: Run) -> Plot:
    """Draw the identity of the base's, the LoRA's, the delivered and the restored headshots of an evaluated run."""
    ReportResult.load(run)
    command = f"headshotkit evaluate --out {run.folder}"
    metrics = read_json(
        run.path("report") / "metrics.json", {"identity": dict, "scores": dict, "pass_mark": dict}, command
    )
    return plot_identity(metrics, metrics["scores"])


@dataclass(frozen=True, repr=False)
class Table:
    """A small table that a notebook renders and a terminal prints.

    >>> Table(("photo", "reason"), [("me.jpg", "dark"), ("a.jpg", "blurred")])
    photo   reason
    me.jpg  dark
    a.jpg   blurred
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def _repr_html_(self) -> str:
        return template("widgets/table.html").render(header=self.header, rows=self.rows)

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def table_reasons(run: Run) -> Table:
    """Return why photos were rejected, a row a reason: photo, code, the number with its limit in words."""
    verdicts = PhotosResult.load(run).verdicts
    rows = [(verdict.photo, reason.code, reason.text) for verdict in verdicts for reason in verdict.reasons]
    return Table(("photo", "reason", "in words"), rows)


def table_metrics(run: Run) -> Table:
    """Return identity by each recogniser, accepted headshots, sharpness and seconds of an evaluated run."""
    metrics = ReportResult.load(run).metrics
    rows = []
    for name, m in metrics["identity"].items():
        medians = ((kind, m[f"{kind}_median"]) for kind in ("own_photos", "base", "lora", "delivered", "restored"))
        rows += [(f"identity, {name}: {kind.replace('_', ' ')}, median", _number(value)) for kind, value in medians]
        rise = m["rise"]
        interval = f"{rise['median']:+.3f} [{rise['low']:+.3f}, {rise['high']:+.3f}] over {rise['pairs']} pairs"
        rows.append((f"identity, {name}: rise from base to LoRA, 95 % interval", interval))
    honesty = metrics.get("honesty", {"measures": {}, "missing": ()})
    for name, one in honesty["measures"].items():
        there = f"{len(one['outside'])} of {one['headshots']} headshots outside the photos' spread"
        rows.append(
            (f"honesty: {name.replace('_', ' ')}", f"{there}, {one['low']:+.1f} to {one['high']:+.1f} {one['unit']}")
        )
    missing = [*metrics.get("missing", ()), *honesty["missing"], *gaps_in(metrics.get("measured", {}))]
    rows += [("not measured", words) for words in missing]
    rows += [(f"sharpness: {kind}, median", _number(value)) for kind, value in metrics["sharpness"].items()]
    rows.append(("accepted of attempted", f"{metrics['accepted']} of {metrics['attempted']}"))
    rows += [(f"seconds: {stage}", f"{seconds:.1f}") for stage, seconds in metrics["seconds"].items()]
    return Table(("measure", "value"), rows)


def table_measured(run: Run) -> Table:
    """Return every metric of an evaluated run with its 95 % interval, a column for each set of pictures.

    A metric that is not to be trusted for fifty pictures has a star.
    """
    measured = ReportResult.load(run).metrics.get("measured", {})
    kinds = list(next(iter(measured.values()))["sets"]) if measured else []
    rows = [
        (f"{one['title']}{' *' * bool(one['caution'])}", f"{one['better']} is better",
         *(in_words(one["sets"][kind]) for kind in kinds))
        for one in measured.values() if any("value" in values for values in one["sets"].values())
    ]  # fmt: skip
    return Table(("metric", "direction", *(kind.replace("_", " ") for kind in kinds)), rows)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _wrapped(text: str, width: int = 24) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _grid(
    tiles: list[tuple[Path | None, str, bool | None]],
    columns: int,
    nothing: str = "there is no picture to draw.",
    next_step: str = "Run the stage before this one first.",
) -> Plot:
    """Draw pictures in a grid: (file or None, words below, whether it is good; None: no frame).

    Args:
        nothing, next_step: text of the error if there is no picture.
    """
    if not tiles:
        raise NothingToShow(nothing, "", next_step)
    rows = max(1, math.ceil(len(tiles) / columns))
    figure = Plot(figsize=(columns * 1.9, rows * 2.3), layout="constrained")
    for number, (file, words, good) in enumerate(tiles):
        axes = figure.add_subplot(rows, columns, number + 1)
        empty = Image.new("RGB", (8, 8), figure.colours.empty)
        picture = Image.open(file, formats=("PNG",)).convert("RGB") if file else empty
        axes.imshow(np.asarray(ImageOps.fit(picture, (160, 160))))
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel("\n".join(map(drawable, words.split("\n"))), fontsize=7, parse_math=False)
        axes.spines[:].set_visible(False)
        if good is not None:
            _frame(axes, (1, 1), 157, good)
    return figure
