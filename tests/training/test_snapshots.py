"""Snapshots of a training, and the previews drawn with them, on a LoRA of six steps: plumbing, not identity."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import open_picture
from safetensors import safe_open
from safetensors.torch import load_file

from headshotkit.config import GenerateConfig, TrainConfig
from headshotkit.config.bases import BASES
from headshotkit.core.errors import BadConfig, StageMissing
from headshotkit.core.records import Names
from headshotkit.core.run import CHECK_SUM, Run, write_json
from headshotkit.families import Sampling, load_family
from headshotkit.generation import previews
from headshotkit.generation.previews import render_previews
from headshotkit.training.snapshots import snapshot_file, snapshot_steps, snapshots_in
from headshotkit.training.train import train_lora


@pytest.fixture
def prepared_run(quick_run):
    """Three small pictures: what is trained on matters to no test here."""
    return quick_run


@pytest.fixture(autouse=True)
def few_sampler_steps(monkeypatch):
    """Previews are drawn as the base's preset says; three steps tell them apart, too."""
    monkeypatch.setitem(BASES["mini"].presets["GenerateConfig"], "sampler_steps", 3)


def largest_difference(one, other):
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_they_are_spread_evenly_and_end_with_the_training():
    assert snapshot_steps(20, 3) == (7, 13, 20) and snapshot_steps(3, 3) == (1, 2, 3) and snapshot_steps(20, 0) == ()
    with pytest.raises(BadConfig, match="snapshots is 4, steps is 3"):
        TrainConfig(steps=3, snapshots=4)


def test_they_disturb_nothing_and_hold_the_average(prepared_run, tmp_path):
    """With an average kept, the last snapshot is the LoRA that is saved, which is the one of a training without any."""
    settings = {"steps": 4, "batch": 1, "ema": 0.6, "checkpoint_every_steps": 100}
    calm = Run(shutil.copytree(prepared_run.folder, tmp_path / "calm"))
    train_lora(calm, TrainConfig.for_base("mini", **settings))
    train_lora(prepared_run, TrainConfig.for_base("mini", **settings, snapshots=2))
    folder = prepared_run.path("lora")
    saved = folder / "person.safetensors"
    assert sorted(path.name for path in (folder / "previews").iterdir()) == ["000002.safetensors", "000004.safetensors"]
    assert largest_difference(saved, calm.path("lora") / "person.safetensors") < 1e-6
    assert largest_difference(saved, snapshot_file(folder, 4)) == 0
    assert largest_difference(saved, snapshot_file(folder, 2)) > 1e-4
    with safe_open(snapshot_file(folder, 2), framework="pt") as file:
        assert file.metadata()["headshotkit.steps"] == "2"


class Shorter:
    """A controller that cuts a training to five steps after its second."""

    why, sizes_px = "slower than planned", set()

    def __init__(self, training):
        self.plan, self.told = SimpleNamespace(training=training), 0

    def start_training(self, settings, steps_done):
        pass

    def time_step(self):
        self.told += 1
        if self.told == 2:
            self.plan = SimpleNamespace(training=self.plan.training | {"schedule": ((128, 5),), "steps": 5})
        return self.plan


def test_a_training_that_is_cut_takes_those_of_what_is_left(prepared_run):
    config = TrainConfig.for_base("mini", steps=9, batch=1, rank=4, alpha=4, snapshots=3, checkpoint_every_steps=100)
    training = {"schedule": ((128, 9),), "steps": 9, "batch": 1, "checkpointing": False}
    train_lora(prepared_run, config, Shorter(training))
    folder = prepared_run.path("lora")
    assert snapshots_in(folder) == (3, 5), "nine steps would have had 3, 6 and 9, five have 2, 3 and 5"
    assert prepared_run.manifest("lora")["lora"]["step"] == 5
    assert largest_difference(folder / "person.safetensors", snapshot_file(folder, 5)) == 0
    assert [p.step for p in render_previews(prepared_run, pictures=1)] == [0, 3, 5]


def test_each_preview_is_what_its_snapshot_draws(brief_run):
    """Equal pixels with the stock loader's: step 0 is the bare base, the last one the LoRA itself."""
    drawn = render_previews(brief_run, pictures=1)
    assert [p.step for p in drawn] == [0, 3, 6] and len({p.seed for p in drawn}) == 1
    folder, config = brief_run.path("lora"), GenerateConfig.for_base("mini")
    family = load_family("mini")
    for preview, scale in ((drawn[0], 0.0), (drawn[2], 1.0)):
        family.use_lora(folder / "person.safetensors", scale)
        (image,) = family.render(
            ["photo of ohwx man"], [""], [preview.seed], Sampling.of(config, (256, 256), Names("ohwx man", "a man"))
        )
        picture = open_picture(folder / "previews" / preview.file)
        assert (np.asarray(picture) == np.asarray(image)).all() and "generated" in picture.text["Software"]
    assert (np.asarray(picture) != np.asarray(open_picture(folder / "previews" / drawn[1].file))).any()


def test_what_is_drawn_stays_drawn(brief_run, monkeypatch):
    monkeypatch.setattr(previews._Session, "draw", lambda self, step, prompt, seeds: [
        previews.Preview(step, seed, f"{step}.png", 0.25) for seed in seeds])  # fmt: skip
    first = render_previews(brief_run, pictures=2)
    facts = brief_run.path("lora") / "previews" / "previews.json"
    kept = json.loads(facts.read_text())
    del kept[CHECK_SUM]
    assert len(kept["previews"]) == 6 and 0.28 <= kept["pass_mark"] <= 0.55 < kept["own_median"]
    asked = []
    monkeypatch.setattr(previews._Session, "draw", lambda self, step, prompt, seeds: asked.append(step) or [])
    assert render_previews(brief_run, pictures=2) == first and asked == []
    write_json(facts, kept | {"previews": kept["previews"][:4]})
    assert render_previews(brief_run, pictures=2) == first[:4] and asked == [6]
    render_previews(brief_run, pictures=2, prompt="{person} laughing")
    assert asked == [6, 0, 3, 6]


def test_without_snapshots_it_says_how_to_get_them(prepared_run):
    train_lora(prepared_run, TrainConfig.for_base("mini", steps=1, batch=1))
    with pytest.raises(StageMissing, match=r"snapshots = 0(.|\n)*headshotkit train --snapshots 3"):
        render_previews(prepared_run)
