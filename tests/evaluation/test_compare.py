"""Runs side by side, and what a LoRA does to other people, on runs that were really made."""

import json
import shutil

import pytest
from conftest import open_picture

from headshotkit.cli import main
from headshotkit.config import LeakConfig
from headshotkit.core.errors import BadConfig, StageMissing
from headshotkit.core.results import DatasetResult, ReportResult
from headshotkit.core.run import Run, read_json, write_json
from headshotkit.evaluation import forgetting
from headshotkit.evaluation.compare import MEASURES, ROWS, compare_runs, tables_of, value_of
from headshotkit.evaluation.forgetting import measure_leak


@pytest.fixture(scope="module")
def leaked(finished, tmp_path_factory):
    """A finished run whose LoRA of 6 steps was tried on other people."""
    run = Run(shutil.copytree(finished, tmp_path_factory.mktemp("leaked") / "run"))
    measure_leak(run, LeakConfig(pictures=2))
    return run


def test_other_people_are_drawn_from_the_same_noise_with_and_without_the_lora(leaked):
    folder = leaked.path("leak")
    report = json.loads((folder / "leak.json").read_text())
    pictures = sorted(file.name for file in folder.glob("*.png"))
    assert len(pictures) == 10 and sum(name.startswith("token_on") for name in pictures) == 2
    assert {*report["groups"]} == {"class", "others"} and all(g["pictures"] == 2 for g in report["groups"].values())
    off, on = (open_picture(folder / f"class_{state}_00.png") for state in ("off", "on"))
    assert off.size == (256, 256) and off.tobytes() != on.tobytes()  # 6 steps change little, and something
    assert off.text["Software"] == on.text["Software"] and report["class_images"] == 0
    assert report["memory"] == {} and len(report["missing"]) == 1  # five photos: none was held out


def test_drawn_pictures_are_used_again_until_the_lora_or_a_setting_changes(leaked, tmp_path, monkeypatch):
    run = Run(shutil.copytree(leaked.folder, tmp_path / "run"))
    before = json.loads((run.path("leak") / "leak.json").read_text())
    monkeypatch.setattr(forgetting, "load_family", lambda base: pytest.fail("it draws again"))
    assert measure_leak(run, LeakConfig(pictures=2))["groups"] == before["groups"]
    with pytest.raises(pytest.fail.Exception):
        measure_leak(run, LeakConfig(pictures=2, seed=1))
    assert not list(run.path("leak").glob("*.png"))


def test_runs_are_put_side_by_side(leaked, finished, tmp_path, capsys):
    """The second one has no leak.json; its photos and its LoRA are those of the first."""
    other = Run(shutil.copytree(finished, tmp_path / "other"))
    out = tmp_path / "compared"
    assert main(["compare", str(leaked.folder), str(other.folder), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert {*report["runs"]} == {"run", "other"} == {*json.loads((out / "compare.json").read_text())["runs"]}
    first = report["runs"]["run"]
    assert [*first["baselines"]] == [*ROWS, "LoRA of other"] and {*first["baselines"]["lora"]} == {*MEASURES}
    metrics = ReportResult.load(leaked).metrics["identity"]["arcface"]
    assert first["baselines"]["lora"]["arcface"]["value"] == pytest.approx(metrics["lora_median"], abs=1e-4)
    assert first["baselines"]["base"]["arcface"]["value"] == pytest.approx(metrics["base_median"], abs=1e-4)
    theirs = first["baselines"]["LoRA of other"]["arcface"]
    assert theirs["value"] == pytest.approx(metrics["lora_median"], abs=2e-3)  # the same LoRA, the same person
    assert first["leak"]["groups"] and not report["runs"]["other"]["leak"]
    page = (out / "index.html").read_text()
    assert page.count("<table>") == 4 and "not measured" in page and "://" not in page
    assert str(out.resolve()) in printed.err
    titles = [title for title, _, _ in tables_of(report["runs"])]
    assert titles[0] == "The runs" and titles[-1] == "Forgetting and identity leak"


def test_a_leak_of_another_lora_is_not_shown(leaked, tmp_path):
    run = Run(shutil.copytree(leaked.folder, tmp_path / "run"))
    file = run.path("leak") / "leak.json"
    report = read_json(file, {"made_from": dict})
    write_json(file, report | {"made_from": report["made_from"] | {"lora": "another"}})
    assert compare_runs([run], tmp_path / "out")["runs"]["run"]["leak"] == {}


def test_an_older_run_without_honesty_or_photos_held_out_can_be_compared(finished_run, tmp_path):
    manifest = finished_run.peek("report")
    del manifest["metrics"]["honesty"]
    write_json(finished_run.path("report") / "manifest.json", manifest)
    found = compare_runs([finished_run], tmp_path / "out")["runs"]["run"]
    assert found["honesty"] == [] and found["facts"]["photos held out"] == 0
    assert DatasetResult.load(finished_run).held_out == () and found["baselines"]["lora"]["held_out"] is None


def test_a_run_twice_none_or_one_that_is_not_evaluated_is_refused(brief_run, tmp_path):
    for runs in ([], [brief_run, brief_run]):
        with pytest.raises(BadConfig):
            compare_runs(runs, tmp_path / "out")
    with pytest.raises(StageMissing):
        compare_runs([brief_run], tmp_path / "out")
    assert not (tmp_path / "out").exists() and value_of([None]) is None
