import json

import numpy as np
import pytest
from conftest import P1, open_picture
from PIL import Image

from headshotkit.evaluate import evaluate_run, rise_of, score_files
from headshotkit.identity import known_faces
from headshotkit.restore import restore_headshots
from headshotkit.run import CHECK_SUM


def test_the_rise_and_its_interval():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 0.1, 60)
    none = rise_of(list(before), list(before + rng.normal(0, 0.1, 60)))
    clear = rise_of(list(before), list(before + 0.3 + rng.normal(0, 0.1, 60)))
    assert none.low < 0 < none.high
    assert 0.25 < clear.low < clear.median < clear.high < 0.35
    assert rise_of([None], [0.5]).pairs == 0


def test_photos_of_the_person_score_high_and_nobody_none(prepared, tmp_path):
    from headshotkit.run import Run

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
    assert metrics["identity"]["arcface"]["own_photos_median"] == pytest.approx(0.762, abs=0.02)
    assert set(metrics["seconds"]) == {"photos", "dataset", "lora", "headshots", "restored"}
    assert len(on_disk["scores"]["base"]) == len(on_disk["scores"]["lora"]) == 4
    for plot in ("identity.png", "losses.png"):
        assert open_picture(brief_run.path("report") / plot).width > 300
