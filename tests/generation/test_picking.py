"""The choice on given numbers; drawing, resuming and using it on a LoRA of six steps: plumbing, not identity."""

import json
import shutil

import numpy as np
import pytest
from conftest import open_picture

from headshotkit.cli import chosen_by, parse
from headshotkit.config import GenerateConfig, PickConfig, RunSettings
from headshotkit.core.errors import BadConfig, BadPromptBank
from headshotkit.core.records import Names, Pick
from headshotkit.core.run import Run, write_json
from headshotkit.evaluation.plots_picking import plot_pick, table_pick
from headshotkit.families import Sampling, load_family
from headshotkit.generation.headshots import _picked, generate_headshots
from headshotkit.generation.picking import best_trade_off, choose_pick, pick_lora, prompts_that_differ
from headshotkit.generation.prompts import Prompt, load_prompts
from headshotkit.pipeline import config_for, do_stage
from headshotkit.scoring.adherence import asked_of

SETTINGS = PickConfig(pick_prompts=2, scales=(0.5, 1.0))
RENDERING = {"sampler_steps": 3, "batch": 2}
NAMES = Names("ohwx man", "a man")


def pick(likeness, adherence, passed, scale=1.0, pictures=8):
    return Pick(100, scale, "person.safetensors", pictures, likeness, adherence, passed)


# --- the choice ---------------------------------------------------------------------------------------------------


def test_the_best_trade_off_gives_up_little_of_either():
    strengths = [(1.0, 0.2), (0.98, 0.5), (0.93, 0.75), (0.7, 0.8), (0.4, 0.82)]
    assert best_trade_off(strengths) == 2
    assert best_trade_off([(1.0, 0.2), (0.4, 0.8)]) == 1, "of equal ones the more alike is taken"
    assert best_trade_off([(0.95, 0.76), (0.6, 0.8)]) == 0, "a little likeness is not worth a third of the prompts"
    assert best_trade_off([(0.5, 0.5)]) == 0


def test_a_candidate_that_clearly_passes_less_is_no_choice_however_well_it_obeys():
    weak, best, strong = pick(0.5, 1.0, 0.25, 0.6), pick(0.74, 0.9, 0.75, 0.8), pick(0.8, 0.6, 0.75, 1.2)
    assert choose_pick([weak, pick(0.76, 0.65, 0.75), best, strong]) == best
    assert choose_pick([weak, strong]) == strong
    assert choose_pick([pick(0.1, 1.0, 0.0), pick(0.15, 0.5, 0.0)]).likeness == 0.15, "where none passes all are left"


def test_the_prompts_ask_for_everything_that_can_be_told():
    asked = [asked_of(prompt.brief) for prompt in prompts_that_differ(load_prompts(), 6)]
    for axis, values in {"direction": 3, "expression": 2, "background": 3}.items():
        assert len({one[axis] for one in asked}) == values
    with pytest.raises(BadPromptBank, match=r"1 prompts (.|\n)*--pick-prompts 2"):
        prompts_that_differ([Prompt(i, "", text, "", ()) for i, text in (("a", "smiling"), ("b", "in a park"))], 2)


def test_settings_that_make_no_choice_are_refused():
    with pytest.raises(BadConfig, match="prompts is 1"):
        PickConfig(pick_prompts=1)
    for scales in ((), (0.0, 1.0), (3.0,)):
        with pytest.raises(BadConfig, match="scales (is|are) "):
            PickConfig(scales=scales)


# --- with a real LoRA ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picked(briefly_trained, tmp_path_factory):
    run = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("picked") / "run"))
    pick_lora(run, SETTINGS, GenerateConfig.for_base("mini", **RENDERING))
    return run


@pytest.fixture
def picked_run(picked, tmp_path):
    return Run(shutil.copytree(picked.folder, tmp_path / "run"))


def test_every_candidate_draws_the_same_prompts_from_the_same_noise(picked):
    manifest = picked.manifest("picked")
    tried = [Pick.from_dict(one) for one in manifest["candidates"]]
    assert [(one.step, one.scale) for one in tried[:2]] == [(3, 1.0), (6, 1.0)] and tried[2].scale == 0.5
    assert tried[2].step == choose_pick(tried[:2]).step and manifest["chosen"] in manifest["candidates"]
    assert len(manifest["pictures"]) == 6 and len({(p["prompt"], p["seed"]) for p in manifest["pictures"]}) == 2
    assert f"of 2 checkpoints and 2 scales: step {manifest['chosen']['step']} at" in manifest["outcome"]
    for one in tried:
        shots = [p for p in manifest["pictures"] if p["file"].startswith(f"{one.step:06d}_{one.scale:g}_")]
        assert one.likeness == pytest.approx(np.mean([min(p["likeness"] or 0, 1) for p in shots]), abs=1e-3)
        assert one.adherence == pytest.approx(np.mean([p["obeyed"] or 0 for p in shots]), abs=1e-3)


def test_a_picture_is_what_its_snapshot_draws_at_that_strength(picked):
    one = next(p for p in picked.manifest("picked")["pictures"] if p["file"].startswith("000003_1_"))
    family, config = load_family("mini"), GenerateConfig.for_base("mini", **RENDERING)
    family.use_lora(picked.path("lora") / "previews" / "000003.safetensors", 1.0)
    (image,) = family.render([one["prompt"]], [""], [one["seed"]], Sampling.of(config, (config.size_px,) * 2, NAMES))
    saved = open_picture(picked.path("picked") / one["file"])
    assert np.abs(np.asarray(saved, int) - np.asarray(image, int)).max() <= 1
    assert json.loads(saved.text["headshotkit"])["lora_scale"] == 1.0


def test_an_interrupted_choice_goes_on_to_the_same(picked_run, picked, capsys):
    """What is left is said before: 2 prompts by 2 checkpoints and 1 more strength, less the 2 that are there."""
    whole = picked.manifest("picked")
    write_json(
        picked_run.path("picked") / "manifest.json", whole | {"status": "started", "pictures": whole["pictures"][:2]}
    )
    assert pick_lora(picked_run, SETTINGS, GenerateConfig.for_base("mini", **RENDERING)).to_dict() == whole["chosen"]
    assert "picking: 4 " in capsys.readouterr().err
    again = picked_run.manifest("picked")
    assert again["candidates"] == whole["candidates"]
    assert {p["file"] for p in again["pictures"]} == {p["file"] for p in whole["pictures"]}


def test_a_pick_stays_whatever_the_headshots_are_drawn_with(picked_run):
    other = GenerateConfig.for_base("mini", count=1, max_attempts=1, batch=1, sampler_steps=2)
    generate_headshots(picked_run, other)
    before = picked_run.manifest("picked")
    assert do_stage("picked", picked_run, RunSettings()) == before
    assert picked_run.has("headshots") and not list((picked_run.folder / "earlier").glob("picked*"))


def test_headshots_are_drawn_as_picked_unless_a_strength_is_given(picked_run):
    """A choice of the first snapshot at half strength, which differs from the LoRA as trained in every pixel row."""
    manifest = picked_run.peek("picked")
    chosen = manifest["chosen"] | {"step": 3, "scale": 0.5, "file": "previews/000003.safetensors"}
    write_json(picked_run.path("picked") / "manifest.json", manifest | {"chosen": chosen})
    config = GenerateConfig.for_base("mini", count=1, max_attempts=1, **RENDERING)
    (shot,) = generate_headshots(picked_run, config)
    made = picked_run.manifest("headshots")
    assert made["lora"] == {"step": 3, "scale": 0.5, "picked": True} and shot.lora_scale == 0.5
    family = load_family("mini")
    family.use_lora(picked_run.path("lora") / chosen["file"], 0.5)
    (image,) = family.render([shot.prompt], [""], [shot.seed], Sampling.of(config, (config.size_px,) * 2, NAMES))
    assert (np.asarray(image) == np.asarray(open_picture(picked_run.path("headshots") / shot.file))).all()
    given = ["generate", "--out", str(picked_run.folder), "--lora-scale", "0.9"]
    by_hand = config_for(GenerateConfig, "mini", chosen_by(*parse(given)))
    assert (by_hand.lora_scale, by_hand.use_pick, config.use_pick) == (0.9, False, True)
    assert _picked(picked_run, by_hand) == (None, "") and _picked(picked_run, config)[0].scale == 0.5


def test_a_choice_for_another_lora_is_not_used_and_that_is_said(picked_run):
    manifest = picked_run.peek("picked")
    write_json(picked_run.path("picked") / "manifest.json", manifest | {"inputs": {"lora/manifest.json": "another"}})
    pick, words = _picked(picked_run, GenerateConfig.for_base("mini"))
    assert pick is None and "ignored picked/" in words


def test_the_curve_is_drawn_and_the_chosen_one_marked(picked):
    table = table_pick(picked)
    assert [row[-1] for row in table.rows].count("chosen") == 1 and len(table.rows) == 3
    assert plot_pick(picked).png().startswith(b"\x89PNG")


def test_other_methods_have_nothing_to_pick(picked_run):
    manifest = picked_run.peek("lora")
    write_json(
        picked_run.path("lora") / "manifest.json", manifest | {"lora": manifest["lora"] | {"method": "dreambooth"}}
    )
    with pytest.raises(BadConfig, match="method 'dreambooth'"):
        pick_lora(picked_run, SETTINGS)
