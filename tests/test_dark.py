"""Every word of a figure can be read on what lies behind it, in matplotlib's light style and in its dark one."""

import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from test_coach import photo
from test_gallery import luminance
from test_plots import generated  # noqa: F401
from test_plots_photos import judged

from headshotkit.core.records import Reason, Verdict
from headshotkit.evaluation import plots, plots_photos, plots_training
from headshotkit.planning.plan import plan_run
from headshotkit.training.lora_layers import LoraLayer

LEAST = 4.5
"""WCAG's least contrast of text, level AA."""


def contrasts(figure: plots.Plot) -> dict[str, float]:
    """Return the contrast of each word with the middle colour of the pixels behind it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    places = [t.get_window_extent() for t in words]
    colours = [to_rgba(t.get_color()) for t in words]
    for text in words:
        text.set_alpha(0)
    canvas.draw()
    pixels, found = np.asarray(canvas.buffer_rgba())[::-1], {}
    for text, place, colour in zip(words, places, colours, strict=True):
        (x0, y0), (x1, y1) = np.maximum(place.min, 0).astype(int), np.ceil(place.max).astype(int)
        behind = pixels[y0:y1, x0:x1, :3].reshape(-1, 3)
        if len(behind):
            ground = luminance(bytes(np.median(behind, 0).astype(np.uint8)).hex()) + 0.05
            ink = luminance(bytes(round(255 * part) for part in colour[:3]).hex()) + 0.05
            found[text.get_text()] = min(found.get(text.get_text(), 99), max(ink, ground) / min(ink, ground))
    return found


@pytest.fixture
def figures(generated, tmp_path):  # noqa: F811
    """How each kind of figure is made; it is made in the style that is in force then."""
    dark = Verdict("d.jpg", False, (Reason("dark", 11, 30, "the face's brightness is 11 of 255"),), {})
    run = judged(tmp_path / "judged", [dark, *(photo(name) for name in "abc")])
    draws = np.random.default_rng(0)
    weight, a, b = (draws.normal(size=size) for size in ((12, 10), (2, 10), (12, 2)))
    layer = LoraLayer("some.attn1.to_q", weight, a, b, 1.0)
    rows = {kind: [{"arcface": v} for v in (0.4, 0.6)] for kind in plots.MARKS}
    metrics = {"identity": {"arcface": {"own_photos_median": 0.7}}, "pass_mark": {"mark": 0.5}}
    return [
        lambda: plots.plot_headshots(generated),
        lambda: plots.plot_identity_threshold(generated),
        lambda: plots.plot_verdicts(run),
        lambda: plots.plot_identity(metrics, rows),
        lambda: plots_photos.plot_coverage(run),
        lambda: plots_training.plot_plan(plan_run("t4", count=50, minutes=60)),
        lambda: plots_training.plot_layer(layer),
        lambda: plots_training.plot_words([("a", 0.5), ("b", 0.1)], "words"),
    ]


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_all_words_are_read_in_both_styles(figures, style):
    with matplotlib.style.context(style):
        for make in figures:
            figure = make()
            found = contrasts(figure)
            assert found and min(found.values()) >= LEAST, {word: c for word, c in found.items() if c < LEAST}
            assert (np.mean(figure.get_facecolor()[:3]) < 0.5) == (style != "default")
