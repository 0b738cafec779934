"""What is not said stays as the run began with it; what is done anew is said, and kept until it is cleaned."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from headshotkit.cli import main
from headshotkit.config import CheckConfig, GenerateConfig, PrepareConfig, RunSettings, TrainConfig
from headshotkit.core.errors import BadConfig, DamagedRun
from headshotkit.core.run import Run, bytes_of, settings_of, write_json
from headshotkit.generation.prompts import BANK
from headshotkit.pipeline import begun_settings, config_for, do_stage, stage_named


def begun(config, stage="lora", **facts):
    return {"stage": stage, "config": settings_of(config), "status": "done"} | facts


def test_a_finished_run_is_used_whatever_is_left_out_later(brief_run, five_photos, capsys):
    """The run was made with a class word, steps, snapshots and batches that no later command names."""
    made = {stage: brief_run.peek(stage)["finished"] for stage in ("photos", "dataset", "lora")}
    shots = brief_run.manifest("headshots")["headshots"]
    options = RunSettings(photos=five_photos, count=5)
    for stage in ("photos", "dataset", "lora", "headshots"):
        do_stage(stage, brief_run, options)
    after = brief_run.manifest("headshots")
    assert {stage: brief_run.peek(stage)["finished"] for stage in made} == made
    assert [shot for shot in after["headshots"] if shot in shots] == shots and len(after["delivered"]) == 5
    assert len({shot["prompt_id"] for shot in after["headshots"]}) == 5 and after["config"]["steps"] == 6
    assert not (brief_run.folder / "earlier").exists() and "earlier" not in capsys.readouterr().err


def test_what_is_done_anew_is_said_and_can_be_cleaned(prepared_run, capsys):
    folder = prepared_run.folder
    assert main(["prepare", "--out", str(folder), "--class-word", "woman"]) == 0
    said = capsys.readouterr().err
    assert "class_word man -> woman" in said and str(folder / "earlier" / "dataset-1") in said
    assert f"headshotkit clean {folder}" in said
    size = bytes_of(folder / "earlier" / "dataset-1")
    assert main(["clean", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": False, "bytes": {"dataset-1": size}} and size > 0
    assert (folder / "earlier" / "dataset-1").exists()
    assert main(["clean", str(folder), "--yes"]) == 0
    assert not (folder / "earlier").exists() and prepared_run.has("dataset")
    assert main(["clean", str(folder), "--yes"]) == 0


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ({"steps": 700}, {}, {"steps": 700}),
        ({"steps": 700, "rank": 8, "alpha": 16}, {}, {"rank": 8, "alpha": 16}),
        ({"steps": 700, "rank": 8, "alpha": 16}, {"rank": 4}, {"steps": 700, "rank": 4, "alpha": 4}),
        ({"steps": 4, "schedule": ((64, 2), (128, 2))}, {"steps": 5}, {"steps": 5, "schedule": ()}),
        ({"steps": 4, "schedule": ((64, 2), (128, 2))}, {}, {"steps": 4, "schedule": ((64, 2), (128, 2))}),
        ({"steps": 9}, {"schedule": ((64, 2), (128, 2))}, {"steps": 4}),
        ({"optimizer": "prodigy", "learning_rate": 1.0}, {"optimizer": "adamw"}, {"optimizer": "adamw"}),
        ({"optimizer": "prodigy", "learning_rate": 1.0}, {}, {"optimizer": "prodigy", "learning_rate": 1.0}),
        ({"optimizer": "adamw", "learning_rate": 5e-4}, {"optimizer": "adamw"}, {"learning_rate": 5e-4}),
        ({"steps": 4, "schedule": ((64, 2), (128, 2))}, {"steps": 4}, {"schedule": ((64, 2), (128, 2))}),
        ({"method": "dreambooth", "steps": 3}, {}, {"method": "dreambooth", "steps": 3}),
        ({"rank": 8}, {"method": "dreambooth"}, {"method": "dreambooth", "rank": 32}),
    ],
)
def test_settings_of_a_training_stay_as_far_as_they_go_together(first, then, expected):
    manifest = begun(TrainConfig.for_base("mini", **first))
    config = config_for(TrainConfig, "mini", RunSettings(**then), begun=manifest)
    assert {name: getattr(config, name) for name in expected} == expected


def test_another_base_has_presets_of_its_own_and_the_same_person():
    manifest = begun(PrepareConfig.for_base("mini", class_word="woman", token="zxq", face_fractions=(0.5,)), "dataset")
    config = config_for(PrepareConfig, "sdxl", RunSettings(base="sdxl"), begun=manifest)
    assert config == PrepareConfig.for_base("sdxl", class_word="woman", token="zxq")


def test_what_the_person_says_now_counts_and_the_plan_before_the_run():
    manifest = begun(GenerateConfig.for_base("mini", count=24, minutes=20.0, guidance=2.0), "headshots")
    config = config_for(GenerateConfig, "mini", RunSettings(count=26), {"minutes": 9.0}, manifest)
    assert (config.count, config.minutes, config.guidance) == (26, 9.0, 2.0)
    kept = begun_settings(CheckConfig, begun(CheckConfig(min_photos=3), "photos"))
    assert kept["min_photos"] == 3
    with pytest.raises(DamagedRun):
        begun_settings(CheckConfig, {"stage": "photos", "config": {"min_photos": "many"}})


def test_a_prompt_bank_of_ones_own_stays_without_its_place(brief_run, tmp_path):
    bank = tmp_path / "somewhere" / "mine.toml"
    bank.parent.mkdir()
    bank.write_text(Path(BANK).read_text())
    made = do_stage("headshots", brief_run, RunSettings(prompts=str(bank), count=1))
    assert made["config"]["prompts"] == "mine.toml" and str(tmp_path / "somewhere") not in json.dumps(made)
    bank.unlink()
    again = do_stage("headshots", brief_run, RunSettings())
    assert again["finished"] == made["finished"]


def test_weights_that_were_given_by_hand_are_asked_for_again(brief_run):
    do_stage("restored", brief_run, RunSettings())
    manifest = brief_run.peek("restored")
    manifest["config"]["weights"] = "codeformer.pth"
    write_json(brief_run.path("restored") / "manifest.json", manifest)
    with pytest.raises(BadConfig, match="codeformer-weights"):
        do_stage("restored", brief_run, RunSettings())
    assert do_stage("restored", brief_run, RunSettings(codeformer_weights=""))["status"] == "done"


def test_fewer_headshots_than_before_are_a_stage_of_their_own(tmp_path):
    run = Run(tmp_path)
    facts = {"headshots": [], "delivered": [], "pass_mark": {"mark": 0.5}}
    run.begin("headshots", {"count": 4, "steps": 6}, {}, grows=("count",)).finish("4", **facts)
    grown = run.begin("headshots", {"count": 6, "steps": 6}, {}, grows=("count",))
    assert not grown.done and grown.manifest["outcome"] == "4" and not (tmp_path / "earlier").exists()
    grown.finish("6", **facts)
    for settings, inputs in (
        ({"count": 5, "steps": 6}, {}),
        ({"count": 9, "steps": 7}, {}),
        ({"count": 9}, {"a": "1"}),
    ):
        assert "outcome" not in run.begin("headshots", settings, inputs, grows=("count",)).manifest
    assert len(run.earlier()) == 3


def test_a_number_that_an_earlier_version_stored_as_it_was_typed_is_the_same(tmp_path):
    """FIDELITY = 1 in a notebook was stored as 1; it is 1.0 now. Nothing is done again, and what follows stays."""
    run = Run(tmp_path)
    made = run.begin("gallery", {"fidelity": 1, "pairs": 2}, {"a": "0"}).finish("made")
    again = run.begin("gallery", {"fidelity": 1.0, "pairs": 2}, {"a": "0"})
    assert again.done and again.manifest == made and run.is_begun("gallery", {"fidelity": 1.0, "pairs": 2}, {"a": "0"})
    assert not run.begin("gallery", {"fidelity": 0.9, "pairs": 2}, {"a": "0"}).done


@pytest.mark.parametrize(
    ("asked", "planned", "expected"),
    [
        ({"pairs": 3, "minutes": 9.0}, {"pairs": 6, "minutes": 2.0}, {"pairs": 3, "minutes": 2.0, "keep": False}),
        ({"minutes": 9.0}, {"pairs": 6, "minutes": 2.0}, {"pairs": 6, "minutes": 2.0, "keep": True}),
        ({"pairs": 0}, {}, {"pairs": 0, "minutes": 0.0, "keep": False}),
        ({"minutes": 0.0}, {}, {"minutes": 0.0, "keep": True}),
    ],
)
def test_pairs_that_a_person_set_count_more_than_a_plans(tmp_path, monkeypatch, asked, planned, expected):
    """The evaluation itself only notes what it is given here."""
    seen = []
    monkeypatch.setattr("headshotkit.evaluate_run", lambda run, **given: seen.append(given))
    controller = SimpleNamespace(evaluating=planned) if planned else None
    stage_named("evaluate").do(Run(tmp_path), RunSettings(**asked), "", controller)
    assert seen == [expected]
