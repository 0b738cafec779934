"""The figures of headshots, identity, the identity threshold and the choice, on staged runs."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle
from PIL import Image

from headshotkit.core.errors import DamagedRun, NothingToShow, StageMissing
from headshotkit.core.records import Lora, Pick
from headshotkit.core.run import Run, write_json
from headshotkit.evaluation import plots, plots_picking, plots_training

LORA = Lora(Path("person.safetensors"), "mini", 8, 8, "ohwx", "man", 2)


def drawn(figure):
    """The figure's picture; a character that can't be drawn would be a warning, so an error."""
    return Image.open(io.BytesIO(figure.png()))


def shot(number, accepted, identity=0.6, attempt=1, reasons=()):
    facts = {"file": f"{number}.png", "prompt_id": "office-写真-window", "attempt": attempt, "identity": identity}
    facts |= {"prompt": "photo", "negative": "", "seed": number, "lora_scale": 1.0}
    return facts | {"accepted": accepted, "reasons": list(reasons)}


@pytest.fixture
def generated(tmp_path):
    """A run with three staged headshots, one accepted, and the verdicts of two photos."""
    run = Run(tmp_path)
    verdicts = [{"photo": f"{i}.jpg", "kept": True, "measures": {"identity": 0.7 + i / 10}} for i in range(2)]
    run.begin("photos", {}, {}).finish("kept 2 of 2", verdicts=verdicts, photos=[], folder="", advice="")
    stage = run.begin("headshots", {}, {})
    shots = [
        shot(0, True),
        shot(1, False, 0.4, 2, ["other_person", "soft_face"]),
        shot(2, False, None, 1, ["no_face"]),
    ]
    for one in shots:
        Image.new("RGB", (16, 16), "orange").save(stage.folder / one["file"])
    mark = {"mark": 0.55, "own_median": 0.75, "reason": "a reason that is as long as those of real runs are " * 3}
    stage.finish("3 of 3", headshots=shots, delivered=[one["file"] for one in shots], pass_mark=mark)
    return run


def test_an_accepted_headshot_is_told_by_sign_frame_and_reason(generated):
    figure = plots.plot_headshots(generated)
    signs = [axes.texts[0].get_text() for axes in figure.axes]
    styles = [p.get_linestyle() for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle)]
    words = [axes.get_xlabel().split("\n") for axes in figure.axes]
    assert signs == ["\u2713", "\u2717", "\u2717"] and styles == ["-", "--", "--"]
    assert words[0] == ["office-??-window", "identity 0.60"]
    said = " ".join(words[1][2:])  # a long reason takes two lines
    assert words[1][1] == "identity 0.40"
    assert said == f"{plots.WORDS['other_person']} {plots.WORDS['soft_face']}"
    assert words[2][1:] == [plots.WORDS["no_face"]]
    assert drawn(figure).width > 200


def test_accepted_and_refused_attempts_have_marks_of_their_own(generated):
    figure = plots.plot_identity_threshold(generated)
    (axes,) = figure.axes
    counts = [len(points.get_offsets()) for points in axes.collections]
    shapes = {tuple(map(tuple, points.get_paths()[0].vertices)) for points in axes.collections}
    assert counts == [2, 1, 1] and len(shapes) == 3
    assert_nothing_is_hidden(figure)


def assert_nothing_is_hidden(figure):
    """Legends and titles lie beside the panels and inside the figure, as it is saved without any cutting."""
    figure.draw_without_rendering()
    whole = figure.bbox.padded(1)
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.y1 <= axes.bbox.y0, "the legend lies over the panel"
        for box in (legend, axes.title.get_window_extent()):
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1


def test_own_photos_are_shown_with_their_spread_and_sorted_values_form_no_line(tmp_path):
    rows = {kind: [{"arcface": v} for v in np.linspace(0.8, 0.4, 20)] for kind in plots.MARKS}
    metrics = {"identity": {"arcface": {"own_photos_median": 0.6}}, "pass_mark": {"mark": 0.5}}
    figure = plots.plot_identity(metrics, rows)
    (axes,) = figure.axes
    dots = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert [t.get_text().split("\n")[0] for t in axes.get_xticklabels()][0] == "own photos" and len(dots) == 5
    for column in dots:
        x, y = column.get_offsets().T
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.2
    shapes = [tuple(map(tuple, dots[number].get_paths()[0].vertices)) for number in range(3)]
    assert len(set(shapes)) == 3
    assert_nothing_is_hidden(figure)
    old = {kind: rows[kind] for kind in rows if kind != "own_photos"}
    assert drawn(plots.plot_identity(metrics, old)).width > 300, "of a run that was evaluated before"


def test_no_name_lies_over_a_candidate(tmp_path):
    run = Run(tmp_path)
    numbers = [(250, 1, 0.6, 0.83), (500, 1, 0.8, 0.82), (750, 1, 0.8, 0.82), (750, 0.6, 0.5, 0.9)]
    some = [Pick(step, scale, f"{step}", 6, alike, adherence, 0.5) for step, scale, alike, adherence in numbers]
    facts = {"candidates": [one.to_dict() for one in some], "chosen": some[2].to_dict()}
    run.begin("picked", {}, {}).finish("picked", **facts, pass_mark={"mark": 0.55, "own_median": 0.75})
    figure = plots_picking.plot_pick(run)
    names = [[t.get_text() for t in axes.get_legend().get_texts()] for axes in figure.axes]
    assert names[0][:4] == ["step 250", "step 500", "step 750", "chosen"]
    assert names[1][2] == "chosen" and [name.split()[-1] for name in names[1][:2]] == ["0.6", "1"]
    assert not any(axes.texts for axes in figure.axes)
    signs = [tuple(map(tuple, c.get_paths()[0].vertices)) for c in figure.axes[0].collections[:3]]
    assert len(set(signs)) == 3, "candidates in the same place are told apart"
    assert_nothing_is_hidden(figure)


def test_a_figure_without_pictures_is_an_error(generated, tmp_path):
    manifest = generated.manifest("headshots")
    write_json(generated.path("headshots") / "manifest.json", manifest | {"delivered": []})
    dataset = {"folder": ".", "token": "ohwx", "class_word": "man", "size_px": 256, "photos": []}
    dataset |= {"class_prompt": "", "class_images": []}
    generated.begin("dataset", {}, {}).finish("prepared", dataset=dataset)
    for draw in (plots.plot_headshots, plots.plot_class_images, plots.plot_dataset):
        with pytest.raises(NothingToShow) as caught:
            draw(generated)
        assert caught.value.next_step


@pytest.mark.parametrize("draw", [plots_training.plot_previews, plots_training.plot_progress])
@pytest.mark.parametrize("left", [None, "{}", '{"previews": []}', "[]", "half"])
def test_missing_previews_are_named_with_what_to_do(tmp_path, draw, left):
    run = Run(tmp_path)
    run.begin("lora", {}, {}).finish("trained", lora=LORA.to_dict())
    write_json(run.path("lora") / "losses.json", {"loss": [1.0, 0.5]})
    if left is not None:
        (run.path("lora") / "previews").mkdir()
        (run.path("lora") / "previews" / "previews.json").write_text(left)
    with pytest.raises((StageMissing, DamagedRun)) as caught:
        draw(run)
    assert "previews" in caught.value.happened and caught.value.next_step


@pytest.mark.parametrize("draw", [plots.plot_losses, plots.plot_evaluation, plots.plot_identity_threshold])
def test_a_figure_of_a_missing_stage_says_which(tmp_path, draw):
    with pytest.raises(StageMissing):
        draw(Run(tmp_path))


@pytest.mark.parametrize("left", [None, "half", "[]", "{}"])
def test_losses_that_are_gone_are_named(tmp_path, left):
    run = Run(tmp_path)
    run.begin("lora", {}, {}).finish("trained", lora=LORA.to_dict())
    if left is not None:
        (run.path("lora") / "losses.json").write_text(left)
    with pytest.raises((StageMissing, DamagedRun)) as caught:
        plots.plot_losses(run)
    assert "losses.json" in caught.value.happened
    (run.path("lora") / "losses.json").write_text(json.dumps({"loss": [1.0, None, 0.5]}))
    assert drawn(plots.plot_losses(run)).width > 300


def test_neighbours_of_a_column_lie_apart():
    places = plots.scattered(30)
    assert len(places) == 30 and all(abs(b - a) > 0.1 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize(("kept", "titles"), [
    (["unrestored"] * 3, ["not restored"] * 3),
    (["unrestored", "restored", "unrestored"], ["before"] * 3 + ["restored", "unrestored", "unrestored"]),
])  # fmt: skip
def test_faces_are_drawn_twice_only_where_one_was_restored(generated, kept, titles):
    stage = generated.begin("restored", {}, {})
    for number in range(3):
        Image.new("RGB", (16, 16), "teal").save(stage.folder / f"{number}.png")
    stage.finish("some", restored=[{"file": f"{n}.png", "kept": what} for n, what in enumerate(kept)])
    figure = plots.plot_restored(generated)
    assert [axes.get_xlabel().split("\n")[0] for axes in figure.axes] == titles
    colours = [tuple(axes.images[0].get_array()[0, 0]) for axes in figure.axes]
    assert len(set(colours)) == 1 + ("restored" in kept)
