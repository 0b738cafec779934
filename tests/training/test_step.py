"""One training step and its state, on the embedded base and three pictures of 128 px. Nobody is learnt here."""

import json
from dataclasses import replace

import pytest
import torch

from headshotkit.config import TrainConfig
from headshotkit.core.results import DatasetResult
from headshotkit.core.run import Run
from headshotkit.families import load_family
from headshotkit.families.methods import load_method
from headshotkit.planning.schedule import Pacing
from headshotkit.training.checkpoints import read_checked, to_bytes
from headshotkit.training.examples import cached_examples
from headshotkit.training.state import TrainState
from headshotkit.training.step import train_step
from headshotkit.training.train import train_lora

CONFIG = TrainConfig.for_base("mini", steps=6, batch=1, rank=4, alpha=4, targets="attention", ema=0.5)


@pytest.fixture(scope="module")
def data(quick, tmp_path_factory):
    """The person's pictures, and the same as class images, so that a step has both losses."""
    dataset, folder = DatasetResult.load(Run(quick)).dataset, tmp_path_factory.mktemp("cache")
    person, _, conditions = made = cached_examples(load_family("mini"), quick / "dataset", dataset, folder, {128})
    return made._replace(class_images={128: replace(person[128], boxes=[])})


def begun(quick, config=CONFIG):
    """The state before the first step, on a fresh base, and the settings of each step."""
    dataset = DatasetResult.load(Run(quick)).dataset
    method = load_method(load_family("mini"), config, dataset)
    return TrainState.begin(method, config, True, ""), Pacing(config, dataset.size_px, [])


def test_a_state_goes_on_from_what_another_one_held(quick, data, tmp_path):
    """Through a file, as a checkpoint; torch's own generator moves meanwhile, which no step reads."""
    (one, pacing), (other, _) = begun(quick), begun(quick)
    for _ in range(2):
        train_step(one, data, pacing)
    (tmp_path / "state.pt").write_bytes(to_bytes(one.state_dict()))
    torch.rand(7)
    other.load_state_dict(read_checked(tmp_path / "state.pt"))
    assert other.step == 2 and other.losses == one.losses
    for state in (one, other):
        train_step(state, data, pacing)
    assert one.losses == other.losses
    for mine, its in zip((*one.parameters, *one.average), (*other.parameters, *other.average), strict=True):
        assert torch.equal(mine, its)
    assert not torch.equal(one.parameters[1], one.average[1])


def test_class_images_add_their_weighted_loss(quick, data):
    """The person's loss is the same in all three, because it draws first; the sum is linear in the weight."""
    losses = []
    for weight in (0.0, 0.5, 1.0):
        state, pacing = begun(quick, CONFIG.replace(prior_weight=weight))
        train_step(state, data, pacing)
        losses.append(state.losses[0])
    nothing = data._replace(class_images={128: replace(data.person[128], sizes=[])})
    state, pacing = begun(quick)
    train_step(state, nothing, pacing)
    assert losses[0] == pytest.approx(state.losses[0]) and losses[0] < losses[1] < losses[2]
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], rel=1e-4)


def test_the_average_is_lent_and_given_back(quick, data):
    state, pacing = begun(quick)
    for _ in range(2):
        train_step(state, data, pacing)
    own = [parameter.clone() for parameter in state.parameters]
    with state.averaged():
        assert all(torch.equal(p, a) for p, a in zip(state.parameters, state.average, strict=True))
    assert all(torch.equal(p, before) for p, before in zip(state.parameters, own, strict=True))


def test_an_onlooker_sees_every_step(quick_run):
    seen = []
    config = CONFIG.replace(steps=3)
    train_lora(quick_run, config, on_step=lambda state: seen.append((state.step, round(state.losses[-1], 5))))
    losses = json.loads((quick_run.path("lora") / "losses.json").read_text())["loss"]
    assert seen == list(enumerate(losses, 1)) and len(losses) == 3
