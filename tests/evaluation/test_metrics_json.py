"""metrics.json: its published schema, and what stands in it for each metric."""

import dataclasses
import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from headshotkit.core.results import HeadshotsResult
from headshotkit.core.run import Run
from headshotkit.delivery.gallery import build_gallery
from headshotkit.evaluation import evaluate
from headshotkit.evaluation.evaluate import evaluate_run
from headshotkit.evaluation.plots import table_measured, table_metrics
from headshotkit.restoration.restore import restore_headshots
from headshotkit.scoring.metrics import METRICS

SCHEMA = json.loads((Path(evaluate.__file__).parent / "metrics.schema.json").read_text())


@pytest.fixture(scope="module")
def once(briefly_trained, tmp_path_factory):
    """A run of four headshots, evaluated without nets; copy it, don't change it."""
    run = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("evaluated") / "run"))
    dataset = run.path("dataset") / "manifest.json"
    evaluate.write_json(dataset, run.manifest("dataset") | {"held_out": ["p1_02.jpg"]})
    restore_headshots(run)
    evaluate_run(run, pairs=1)
    return run


@pytest.fixture
def evaluated(once, tmp_path):
    """A run of one's own, evaluated, and its metrics.json."""
    run = Run(shutil.copytree(once.folder, tmp_path / "run"))
    return run, json.loads((run.path("report") / "metrics.json").read_text())


def test_it_follows_its_schema_and_holds_every_metric_of_every_set(evaluated):
    _, found = evaluated
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(found, SCHEMA)
    assert list(found["measured"]) == [metric.name for metric in METRICS]
    for metric in METRICS:
        one = found["measured"][metric.name]
        assert (one["range"], one["better"]) == ([metric.least, metric.most], metric.better)
        assert list(one["sets"]) == ["base", "lora", "delivered", "restored", "own_photos"]
        for values in one["sets"].values():
            assert ("value" in values) != ("missing" in values)


def test_a_net_that_is_missing_is_named_with_what_to_do(evaluated):
    _, found = evaluated
    assert set(found["nets"].values()) == {None}
    for metric in METRICS:
        values = found["measured"][metric.name]["sets"]["delivered"]
        if metric.weights:
            assert "value" not in values and values["missing"] and values["next_step"]
    own = found["measured"]["identity_arcface"]["sets"]["own_photos"]
    assert 0.5 < own["low"] < own["value"] < own["high"] < 0.9 and own["n"] == 4, "one of five photos is held out"


@pytest.mark.parametrize(
    "wrong", [{"better": "more"}, {"range": [0]}, {"sets": {"base": {"value": 1}}}, {"sets": {"base": {"missing": ""}}}]
)
def test_the_schema_refuses_what_is_wrong(evaluated, wrong):
    _, found = evaluated
    found["measured"]["kid"] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, SCHEMA)


def test_a_finished_evaluation_is_measured_again_only_if_there_is_something_new(evaluated, monkeypatch):
    run, found = evaluated
    times = []
    measure = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", lambda sets: times.append(1) or measure(sets))
    assert evaluate_run(run, pairs=1)["measured"] == found["measured"] and times == []
    manifest = run.manifest("report")
    del manifest["metrics"]["measured"]["sharpness"]
    evaluate.write_json(run.path("report") / "manifest.json", manifest)
    base = {file.name: file.stat().st_mtime_ns for file in (run.path("report") / "base").iterdir()}
    again = evaluate_run(run, pairs=1)
    assert times == [1] and again["measured"] == found["measured"]
    assert base == {file.name: file.stat().st_mtime_ns for file in (run.path("report") / "base").iterdir()}


def test_table_and_page_show_what_was_measured_and_what_is_missing(evaluated):
    run, found = evaluated
    table = table_measured(run)
    measured = [one for one in found["measured"].values() if any("value" in v for v in one["sets"].values())]
    assert len(table.rows) == len(measured) >= 4
    assert table.header[2:] == ("base", "lora", "delivered", "restored", "own photos")
    missing = [words for name, words in table_metrics(run).rows if name == "not measured"]
    nets = {name for metric in METRICS for name in metric.weights}
    assert len(missing) == len(nets), "a line for each net, not for each metric"
    page = build_gallery(run).read_text()
    shown = [one["title"] for one in measured if "value" in one["sets"]["restored"]]
    assert shown and all(f"<th>{title}" in page for title in shown)
    assert page.count("<li>") == len(nets) + len(HeadshotsResult.load(run).causes)


def test_what_a_full_prompt_asks_is_looked_up_in_the_bank_on_every_base(once, tmp_path):
    """SDXL's prompts do not say it in the measured words; its manifest is made from that of the embedded base."""
    run = Run(shutil.copytree(once.folder, tmp_path / "run"))
    generated = HeadshotsResult.load(run)
    brief = evaluate._asked(run, generated)
    shots = {shot.file: brief(shot) for shot in generated.headshots}
    full = dataclasses.replace(generated, config=generated.config | {"base": "sdxl"})
    found = evaluate._asked(run, full)
    words = [dataclasses.replace(shot, prompt="professional portrait") for shot in generated.headshots]
    assert {shot.file: found(shot) for shot in words} == shots and any(shots.values())
    other = dataclasses.replace(full, inputs=full.inputs | {"prompts": "0" * 64})
    assert not any(evaluate._asked(run, other)(shot) for shot in words), "of another bank nothing is known"
