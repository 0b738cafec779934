import itertools
import json
import sys

import numpy as np
import pytest
from conftest import P1, open_picture
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.core.budget import TimeBudget
from headshotkit.core.records import Headshot
from headshotkit.core.run import CHECK_SUM, write_json
from headshotkit.evaluation import evaluate
from headshotkit.evaluation.evaluate import evaluate_run, rise_of, score_files, spread
from headshotkit.evaluation.plots import table_metrics
from headshotkit.faces import recognition
from headshotkit.restoration.restore import restore_headshots
from headshotkit.scoring.identity import known_faces


def test_the_rise_and_its_interval():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 0.1, 60)
    none = rise_of(list(before), list(before + rng.normal(0, 0.1, 60)))
    clear = rise_of(list(before), list(before + 0.3 + rng.normal(0, 0.1, 60)))
    assert none.low < 0 < none.high
    assert 0.25 < clear.low < clear.median < clear.high < 0.35
    assert rise_of([None], [0.5]).pairs == 0


def test_photos_of_the_person_score_high_and_nobody_none(prepared, tmp_path):
    from headshotkit.core.run import Run

    known = {name: known_faces(Run(prepared), name) for name in ("arcface", "dlib")}
    Image.new("RGB", (128, 128)).save(tmp_path / "nobody.png")
    mine, nobody = score_files([P1 / "p1_05.jpg", tmp_path / "nobody.png"], known)
    assert mine.arcface > 0.6 and mine.dlib > 0.5 and mine.sharpness > 5
    assert (nobody.arcface, nobody.dlib, nobody.sharpness) == (None, None, None)


def test_metrics_have_the_names_that_others_build_on(brief_run):
    restore_headshots(brief_run)
    metrics = evaluate_run(brief_run)
    on_disk = json.loads((brief_run.path("report") / "metrics.json").read_text())
    assert {k: v for k, v in on_disk.items() if k not in ("scores", CHECK_SUM)} == metrics
    for name in ("arcface", "dlib"):
        assert {"own_photos_median", "base_median", "lora_median"} <= set(metrics["identity"][name])
    assert metrics["identity"]["arcface"]["own_photos_median"] == pytest.approx(0.739, abs=0.02)
    assert set(metrics["seconds"]) == {"photos", "dataset", "lora", "headshots", "restored"}
    assert len(on_disk["scores"]["base"]) == len(on_disk["scores"]["lora"]) == 4
    own = [row["arcface"] for row in on_disk["scores"]["own_photos"]]
    assert np.median(own) == pytest.approx(metrics["identity"]["arcface"]["own_photos_median"], abs=1e-4)
    assert metrics["pairs"] == {"drawn": 4, "wanted": 4, "of": 4} and metrics["missing"] == []
    for plot in ("identity.png", "losses.png"):
        assert open_picture(brief_run.path("report") / plot).width > 300


def test_every_beginning_of_the_order_is_spread_over_the_prompts():
    for count in (1, 4, 24, 50):
        assert sorted(spread(count)) == list(range(count))
        for pairs in range(2, count + 1):
            places = sorted(spread(count)[:pairs])
            gaps = [b - a for a, b in zip(places, [*places[1:], count + places[0]], strict=True)]
            assert max(gaps) <= 2.7 * count / pairs + 1, (count, pairs)


@pytest.fixture
def counted(monkeypatch):
    """How often pictures were scored, by recogniser and file; the base's drawn ones by number."""
    seen = {"files": [], "drawn": 0}
    score, draw = evaluate._score, evaluate._draw_base

    def scoring(file, known):
        seen["files"].append(f"{file.parent.name}/{file.name}")
        return score(file, known)

    def drawing(run, todo, *rest):
        seen["drawn"] += sum(map(len, todo))
        return draw(run, todo, *rest)

    monkeypatch.setattr(evaluate, "_score", scoring)
    monkeypatch.setattr(evaluate, "_draw_base", drawing)
    return seen


def test_no_picture_is_scored_twice_and_the_scores_are_those_of_the_files(brief_run, counted):
    """Delivered ones are attempts, and what was not restored is the same file: the session's figures hold for all."""
    restore_headshots(brief_run, RestoreConfig(restorer="none"))
    evaluate_run(brief_run, pairs=2)
    assert len(counted["files"]) == counted["drawn"] == 2 and all(f.startswith("base/") for f in counted["files"])
    known = {name: known_faces(brief_run, name) for name in ("arcface", "dlib")}
    scores = json.loads((brief_run.path("report") / "metrics.json").read_text())["scores"]
    delivered = brief_run.manifest("headshots")["delivered"]
    again = score_files([brief_run.path("headshots") / file for file in delivered], known)
    assert scores["delivered"] == scores["restored"] == [score.to_dict() for score in again]
    assert len(scores["base"]) == 2 and len(scores["lora"]) == 4
    assert brief_run.manifest("report")["config"] == {"pairs": 2}


def test_the_face_models_make_room_for_the_base(brief_run, monkeypatch):
    restore_headshots(brief_run)
    load, seen = evaluate.load_family, []

    def loading(base):
        seen.append(
            (recognition._insightface_models.cache_info().currsize, recognition.load_recogniser.cache_info().currsize)
        )
        return load(base)

    monkeypatch.setattr(evaluate, "load_family", loading)
    assert evaluate_run(brief_run, pairs=1)["pairs"]["drawn"] == 1
    assert seen == [(0, 0)]


def test_a_picture_of_the_base_that_is_missing_is_drawn_as_it_was(brief_run):
    """Its whole batch is drawn anew: alone it would round otherwise."""
    restore_headshots(brief_run)
    metrics = evaluate_run(brief_run, pairs=2)
    lost, other = sorted((brief_run.path("report") / "base").iterdir())
    pixels, there = np.asarray(open_picture(lost)), other.stat().st_mtime_ns
    lost.unlink()
    assert evaluate_run(brief_run, pairs=2)["identity"] == metrics["identity"]
    assert (np.asarray(open_picture(lost)) == pixels).all() and other.stat().st_mtime_ns == there


def test_a_headshot_of_an_older_manifest_is_scored_from_its_file(brief_run):
    known = {name: known_faces(brief_run, name) for name in ("arcface", "dlib")}
    rows = brief_run.manifest("headshots")["headshots"]
    row = next((row for row in rows if row["identity"] is not None), rows[0])
    old = {name: value for name, value in row.items() if name not in ("sharpness", "face_points_px")}
    file = brief_run.path("headshots") / row["file"]
    made = [evaluate._score_of_shot(file, Headshot.from_dict(one), known) for one in (row, old)]
    assert made[0] == made[1]


def test_minutes_that_are_short_draw_fewer_pairs_or_none(brief_run, counted):
    """By the clock each look takes a second, and a headshot of this run is said to have taken 60 s."""
    restore_headshots(brief_run)
    manifest = brief_run.manifest("headshots")
    slow = manifest | {"drawing_seconds": 60.0 * len(manifest["headshots"])}
    write_json(brief_run.path("headshots") / "manifest.json", slow)
    metrics = evaluate_run(brief_run, budget=TimeBudget.of(2.0, itertools.count().__next__))
    assert metrics["pairs"] == {"drawn": 1, "wanted": 4, "of": 4} and counted["drawn"] == 1
    assert "1 pair instead of 4" in brief_run.manifest("report")["outcome"]
    assert evaluate_run(brief_run, budget=TimeBudget(0.0)) == metrics, "what is finished is not done again in less time"
    assert evaluate_run(brief_run)["pairs"]["drawn"] == 4, "with more time it is done anew"
    counted["drawn"] = 0
    assert evaluate_run(brief_run, pairs=1)["pairs"]["drawn"] == 4 and counted["drawn"] == 0, "what was begun holds"
    assert evaluate_run(brief_run, pairs=1, keep=False)["pairs"]["drawn"] == 1, "unless a person set another number"


def test_without_minutes_left_nothing_is_drawn(brief_run, counted):
    restore_headshots(brief_run)
    metrics = evaluate_run(brief_run, budget=TimeBudget(0.0))
    assert counted["drawn"] == 0 and metrics["pairs"]["drawn"] == 0
    assert (
        metrics["identity"]["arcface"]["base_median"] is None and metrics["identity"]["arcface"]["rise"]["pairs"] == 0
    )
    assert open_picture(brief_run.path("report") / "identity.png").width > 300


def test_without_dlib_it_goes_on_with_arcface_and_says_so(brief_run, monkeypatch, counted):
    """The package is made unimportable; that is found before anything is drawn."""
    restore_headshots(brief_run)
    recognition.load_recogniser.cache_clear()
    monkeypatch.setitem(sys.modules, "dlib", None)
    known = evaluate.known_faces

    def knowing(run, name):
        assert counted["drawn"] == 0
        return known(run, name)

    monkeypatch.setattr(evaluate, "known_faces", knowing)
    metrics = evaluate_run(brief_run)
    assert list(metrics["identity"]) == ["arcface"] and "dlib" in metrics["missing"][0] and counted["drawn"] == 4
    assert "without dlib" in brief_run.manifest("report")["outcome"]
    assert [row for row in table_metrics(brief_run).rows if row[0] == "not measured"]
    assert open_picture(brief_run.path("report") / "identity.png").width > 300
    recognition.load_recogniser.cache_clear()
