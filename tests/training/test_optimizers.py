"""Which optimizer is used and why; that each of them learns and comes back from a checkpoint."""

import sys

import pytest
import torch

from headshotkit.config import RunSettings, TrainConfig
from headshotkit.core.errors import BadConfig, MissingPackage
from headshotkit.pipeline import config_for
from headshotkit.training import optimizers
from headshotkit.training.checkpoints import read_checked, to_bytes
from headshotkit.training.optimizers import make_optimizer


def test_the_optimizer_says_why(monkeypatch):
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    _, reason = make_optimizer(parameters, TrainConfig(optimizer="adamw"), "cuda")
    assert reason == "adamw: set by you"
    monkeypatch.setattr("headshotkit.core.runtime.has_module", lambda name: False)
    _, reason = make_optimizer(parameters, TrainConfig(), "cpu")
    assert "saves nothing on cpu" in reason


@pytest.mark.parametrize(
    ("usable_gib", "options", "name"),
    [(14.7, {}, "adamw"), (12.9, {}, "adamw8bit"), (12.9, {"installed": False}, "adamw"),
     (14.7, {"prior": True}, "adamw8bit"), (7.5, {"checkpointing": True}, "adamw"),
     (14.7, {"begun_with": "adamw8bit"}, "adamw8bit"), (12.9, {"begun_with": "adamw"}, "adamw"),
     (14.7, {"begun_with": "adamw8bit", "installed": False}, "adamw")],
)  # fmt: skip
def test_auto_is_adamw_where_the_gpu_has_room_for_its_state(monkeypatch, usable_gib, options, name):
    """SDXL's LoRA of 46.4 M numbers; a training keeps to what it was begun with, or it would not resume exactly."""
    config = TrainConfig.for_base("sdxl", checkpointing=options.get("checkpointing", False))
    monkeypatch.setattr("headshotkit.core.runtime.usable_gpu_gib", lambda: usable_gib)
    monkeypatch.setattr("headshotkit.core.runtime.has_module", lambda name: options.get("installed", True))
    chosen = optimizers._choose(46_448_640, config, "cuda", options.get("prior", False), options.get("begun_with", ""))
    assert chosen[0] == name and ("pip install" in chosen[1]) == (
        not options.get("installed", True) and usable_gib < 13
    )


def test_where_adamw_is_not_fused_that_is_said():
    config = TrainConfig(optimizer="adamw")
    optimizer, reason = make_optimizer([torch.nn.Parameter(torch.zeros(3))], config, "mps")
    assert not optimizer.defaults["fused"] and "not fused" in reason and reason.startswith("adamw: set by you")


def test_eight_bit_adam_that_is_missing_is_said():
    if "bitsandbytes" in sys.modules or __import__("importlib.util").util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed here")
    with pytest.raises(MissingPackage, match=r"headshotkit\[train\]"):
        make_optimizer([torch.nn.Parameter(torch.zeros(3))], TrainConfig(optimizer="adamw8bit"), "cpu")


def learn(config, parameter, optimizer, steps):
    """Steps towards the numbers 0 to 7; the gradients depend on nothing but where the parameter is."""
    for _ in range(steps):
        (parameter - torch.arange(8.0)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_an_optimizer_learns_and_goes_on_from_a_checkpoint(name, tmp_path):
    config = TrainConfig(optimizer=name, learning_rate={"adamw": 0.1, "prodigy": 1.0}[name])
    straight, stopped = (torch.nn.Parameter(torch.zeros(8)) for _ in range(2))
    optimizer, reason = make_optimizer([straight], config, "cpu")
    assert reason == f"{name}: set by you"
    learn(config, straight, optimizer, 200)
    assert (straight.detach() - torch.arange(8.0)).abs().max() < 0.2
    first, _ = make_optimizer([stopped], config, "cpu")
    learn(config, stopped, first, 90)
    (tmp_path / "state.pt").write_bytes(to_bytes(first.state_dict()))
    second, _ = make_optimizer([stopped], config, "cpu")
    second.load_state_dict(read_checked(tmp_path / "state.pt"))
    learn(config, stopped, second, 110)
    assert torch.equal(stopped, straight)


def test_adamw_is_fused_where_torch_can():
    optimizer, _ = make_optimizer([torch.nn.Parameter(torch.zeros(3))], TrainConfig(optimizer="adamw"), "cpu")
    assert optimizer.defaults["fused"] is True


def test_prodigy_has_a_learning_rate_of_its_own():
    with pytest.raises(BadConfig, match="learning_rate is 0.0001, optimizer is 'prodigy'"):
        TrainConfig(optimizer="prodigy")
    with pytest.raises(BadConfig, match="learning_rate is 1.0"):
        TrainConfig(optimizer="adamw", learning_rate=1.0)
    assert config_for(TrainConfig, "sdxl", RunSettings(optimizer="prodigy")).learning_rate == 1.0
    assert config_for(TrainConfig, "sdxl", RunSettings(optimizer="adamw")).learning_rate == 1e-4
