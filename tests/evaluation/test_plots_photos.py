"""The sheet of verdicts, the coverage figure and the coach's tables, on staged verdicts."""

import io

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image
from test_coach import good_set, photo, refused

from headshotkit.config import CheckConfig
from headshotkit.core.errors import StageMissing
from headshotkit.core.records import Reason, Verdict
from headshotkit.core.run import Run
from headshotkit.evaluation import plots, plots_photos
from headshotkit.photos import coach


def judged(folder, verdicts):
    """A run with these verdicts, as the gate leaves them, and a thumbnail of the first."""
    run = Run(folder)
    stage = run.begin("photos", {"min_photos": 10}, {})
    (stage.folder / "thumbs").mkdir()
    Image.new("RGB", (12, 8), "orange").save(stage.folder / "thumbs" / "000.jpg")
    covered = coach.coverage(verdicts)
    asked = coach.requests(verdicts, covered, CheckConfig())
    stage.finish(
        "judged",
        photos=[],
        folder="",
        verdicts=[v.to_dict() for v in verdicts],
        coverage=covered.to_dict(),
        requests=[request.to_dict() for request in asked],
        advice=coach.summary(asked, covered),
        chosen=coach.choose_photos(verdicts).to_dict(),
    )
    return run


def words(figure):
    """All words that a figure's panels show, panel by panel."""
    return [[t.get_text() for t in axes.texts] for axes in figure.axes]


def frames(figure):
    return [(p.get_linestyle(), p.get_edgecolor()) for p in figure.axes[0].patches if isinstance(p, Rectangle)]


def test_the_sheet_has_frame_sign_and_reason_kept_and_best_first(tmp_path):
    dark = Verdict("d.jpg", False, (Reason("dark", 11, 30, "the face's brightness is 11 of 255, at least 30"),), {})
    sheet = plots.plot_verdicts(judged(tmp_path, [dark, photo("a", quality=0.3), photo("b", quality=0.9)]))
    (texts,) = words(sheet)
    assert texts[::3] == ["\u2713", "\u2713", "\u2717"]
    assert texts[1::3] == ["b.jpg", "a.jpg", "d.jpg"]
    assert [" ".join(t.split()) for t in texts[2::3]] == [
        "kept, quality 0.90",
        "kept, quality 0.30",
        dark.reasons[0].text,
    ]
    assert [style for style, _ in frames(sheet)] == ["-", "-", "--"]
    assert frames(sheet)[0][1] != frames(sheet)[2][1]
    assert sheet.texts[0].get_text() == "2 of 3 photos are kept"


def test_the_sheet_says_what_a_person_overrode(tmp_path):
    kept = Verdict("k.jpg", True, (Reason("dark", 11, 30, "too dark"),), {}, overridden=True)
    out = Verdict("o.jpg", False, (), {}, overridden=True)
    assert plots.verdict_words(kept) == "kept by you, though too dark"
    assert plots.verdict_words(out) == "left out by you"
    plots.plot_verdicts(judged(tmp_path, [kept, out])).png()


def test_the_sheet_ends_after_the_most_and_says_so(tmp_path):
    sheet = plots.plot_verdicts(judged(tmp_path, good_set(9)), most=4)
    assert len(frames(sheet)) == 4
    assert sheet.texts[0].get_text() == "9 of 9 photos are kept; the first 4 are shown"


def test_an_empty_sheet_can_be_drawn(tmp_path):
    assert plots.plot_verdicts(judged(tmp_path, [])).png()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["x" * 60 + ".jpg", "$broken_{tex$.jpg", "a b\nc.jpg", "\u5199\u771f.jpg"])
def test_odd_names_are_drawn(tmp_path, name):
    verdict = Verdict(name, False, (Reason("dark", 11, 30, "costs $5_{$"),), {})
    assert plots.plot_verdicts(judged(tmp_path, [verdict])).png()[:4] == b"\x89PNG"


def test_a_name_that_is_no_text_is_drawable():
    assert plots.drawable("a\udcff.jpg") == "a?.jpg"


def test_coverage_shows_the_grid_and_a_bar_an_axis(tmp_path):
    verdicts = [photo("a", yaw_deg=-30), photo("b"), photo("c", smile=1.0), photo("d", scene=1), photo("e", scene=1)]
    figure = plots_photos.plot_coverage(judged(tmp_path, verdicts))
    grid, *bars = figure.axes
    assert [t.get_text() for t in grid.texts] == ["1", "0", "2", "1", "0", "0", "0", "0"]
    assert len([p for p in grid.patches if p.get_hatch()]) == 5
    assert [axes.get_title() for axes in bars] == ["pose", "expression", "light", "framing", "background", "clothes"]
    assert [t.get_text() for t in bars[0].texts] == [" 1", " 3, 75%", " none", " none"]
    assert all(axes.get_xlabel() == "scenes" for axes in bars)
    assert "scenes" in figure.get_supxlabel() and "photos" in figure.get_supxlabel()
    assert figure.get_suptitle() == "5 kept photos show 4 scenes (a burst is one)"


def test_coverage_of_nothing_visible_says_so(tmp_path):
    figure = plots_photos.plot_coverage(judged(tmp_path, [Verdict("a.jpg", True, (), {}), refused("b", "dark")]))
    assert words(figure)[-1] == ["not visible"]
    assert np.asarray(Image.open(io.BytesIO(figure.png()))).std() > 5


def test_many_colours_are_summed_up(tmp_path):
    labs = [[95, 0, 0], [10, 0, 0], [60, 0, 0], [35, 0, 0], [45, 60, 40], [40, 10, -40], [50, -50, 40], [85, 0, 80]]
    figure = plots_photos.plot_coverage(judged(tmp_path, [photo(f"{i}", clothes_lab=c) for i, c in enumerate(labs)]))
    clothes = figure.axes[-1]
    assert [t.get_text() for t in clothes.get_yticklabels()][-1] == "3 others" and len(clothes.patches) == 6


def test_tables_of_requests_and_of_the_choice(tmp_path):
    run = judged(tmp_path / "few", good_set(4))
    rows = plots_photos.table_requests(run).rows
    assert rows[0] == ("1", "six more good photos", "4 of 4 photos were kept, training needs 10") and len(rows) == 2
    assert sorted(row[1] for row in plots_photos.table_chosen(run).rows) == [f"g{i:02d}.jpg" for i in range(4)]
    burst = judged(tmp_path / "burst", [photo("a", scene=0), photo("b", scene=0), photo("c", scene=1)])
    assert {row[1]: row[3] for row in plots_photos.table_chosen(burst).rows} == dict.fromkeys(
        ("a.jpg", "b.jpg"), "1"
    ) | {"c.jpg": "2"}
    ((number, text, why),) = plots_photos.table_requests(judged(tmp_path / "good", good_set())).rows
    assert (number, why) == ("", "") and "16 photos" in text


def test_figures_need_verdicts(tmp_path):
    for draw in (plots.plot_verdicts, plots_photos.plot_coverage, plots_photos.table_requests):
        with pytest.raises(StageMissing, match="headshotkit check"):
            draw(Run(tmp_path))
