"""The figures and tables of a training: what they show is what the plan, the previews and the layers say."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from headshotkit.evaluation import plots_training
from headshotkit.planning.plan import plan_run
from headshotkit.training.lora_layers import LoraLayer


def texts(axes):
    return [t.get_text() for t in axes.texts]


def drawn(figure):
    """The figure's picture; a word or number that can't be drawn would be a warning, so an error."""
    return Image.open(io.BytesIO(figure.png()))


@pytest.mark.parametrize(("minutes", "lines"), [(60, 1), (500, 0)])
def test_the_bar_is_as_long_as_the_plan(minutes, lines):
    plan = plan_run("t4", count=50, minutes=minutes)
    figure = plots_training.plot_plan(plan)
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches]
    half = len(widths) // 2
    assert sum(widths[:half]) == pytest.approx(plan.minutes) and sum(widths[half:]) == pytest.approx(plan.pessimistic)
    assert f" {plan.minutes:.1f}" in texts(axes) and any(text.startswith("train\n") for text in texts(axes))
    assert len(axes.lines) == lines and f"{minutes} minutes given" in axes.get_title()
    assert drawn(figure).width > 600


def test_the_table_of_the_plan_has_its_sums():
    plan = plan_run("cpu", count=24)
    table = plots_training.table_plan(plan)
    names = [row[0] for row in table.rows]
    assert names == [*(stage.name for stage in plan.stages), "all"]
    assert table.rows[-1][1:] == (f"{plan.minutes:.1f}", f"{plan.pessimistic:.1f}", f"{plan.peak_gib:.1f}")
    assert table.rows[0][-1] == "-"


@pytest.fixture
def previewed(brief_run):
    """The brief run with staged previews; one shows no face."""
    folder = brief_run.path("lora") / "previews"
    rows = [(0, 0.1), (0, None), (3, 0.3), (3, 0.2), (6, 0.5), (6, 0.4)]
    found = []
    for number, (step, identity) in enumerate(rows):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / f"{number}.png")
        found.append({"step": step, "seed": number % 2, "file": f"{number}.png", "identity": identity})
    facts = {"prompt": "photo of ohwx man", "pictures": 2, "pass_mark": 0.55, "own_median": 0.7, "previews": found}
    (folder / "previews.json").write_text(json.dumps(facts))
    return brief_run


def test_previews_stand_in_their_column_with_their_identity(previewed):
    figure = plots_training.plot_previews(previewed)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["the bare base", "after 3 steps", "after 6 steps"]
    words = [axes.get_xlabel() for axes in figure.axes]
    assert words == [
        "identity 0.10",
        "identity 0.30",
        "identity 0.50",
        "no single face",
        "identity 0.20",
        "identity 0.40",
    ]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes] == [0, 80, 160, 40, 120, 200]
    assert drawn(figure).width > 200


def test_progress_shows_loss_and_identity_over_the_same_steps(previewed):
    figure = plots_training.plot_progress(previewed)
    above, below = figure.axes
    losses = json.loads((previewed.path("lora") / "losses.json").read_text())["loss"]
    assert list(above.lines[0].get_ydata()) == losses
    mean, own, mark = below.lines
    assert list(mean.get_xdata()) == [0, 3, 6] and list(mean.get_ydata()) == pytest.approx([0.1, 0.25, 0.45])
    assert own.get_ydata()[0] == 0.7 and mark.get_ydata()[0] == 0.55
    assert drawn(figure).height > 200


def test_one_layer_in_numbers_and_as_pictures():
    rng = np.random.default_rng(0)
    weight, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 6), (2, 6), (8, 2)))
    layer = LoraLayer("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", weight, a, b, 0.5)
    rows = plots_training.table_layer(layer).rows
    assert [row[1] for row in rows] == ["8 x 6", "2 x 6", "8 x 2", "8 x 6", ""]
    assert (
        rows[0][2] == "48 numbers, rank 6" and rows[3][2].startswith("rank 2; ") and "28 numbers, 58.3%" in rows[4][2]
    )
    figure = plots_training.plot_layer(layer)
    values = figure.axes[2].lines[1].get_ydata()
    assert (values[:2] > 0.1).all() and (values[2:] < 1e-5).all() and len(values) == 6
    assert (figure.axes[1].images[0].get_array() == (0.5 * b @ a).T).all()
    assert drawn(figure).width > 600


class Shares:
    """Stands for layers whose shares are known."""

    def shares(self):
        return {"attn2.to_v": [0.3, 0.5], "conv1": [0.1]}


def test_changes_and_words_are_bars():
    (axes,) = plots_training.plot_changes(Shares()).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.4, 0.1])
    figure = plots_training.plot_words([("photo", 0.1), ("$a$", 0.4)], "up_blocks.0")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [0.1, 0.4]
    assert drawn(figure).width > 400
