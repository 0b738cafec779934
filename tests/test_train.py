import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from headshotkit.config import DatasetConfig, TrainConfig
from headshotkit.dataset import build_dataset
from headshotkit.errors import MissingPackage, StageMissing
from headshotkit.run import Run
from headshotkit.train import CHECKPOINT_FILE, make_optimizer, train_lora

BRIEF = {"steps": 12, "batch": 2, "checkpoint_every_steps": 2}
COMMAND = """
import sys
from headshotkit.config import TrainConfig
from headshotkit.run import Run
from headshotkit.train import train_lora
train_lora(Run(sys.argv[1]), TrainConfig.for_base("mini", steps=12, batch=2, checkpoint_every_steps=2))
"""


def tensors(run):
    return load_file(run.path("lora") / "person.safetensors")


def test_a_killed_training_goes_on_to_the_same_lora(prepared_run, tmp_path):
    """kill -9 in the middle of a real training process, then the same call: the LoRA of an undisturbed run."""
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(prepared_run.folder)])
    checkpoint = prepared_run.path("lora") / CHECKPOINT_FILE
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not prepared_run.has("lora"), "it was killed before or after the training"
    done = len(torch.load(checkpoint, weights_only=True)["losses"])
    assert 0 < done < 12
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    undisturbed = Run(tmp_path / "undisturbed")
    (tmp_path / "undisturbed").mkdir()
    for stage in ("photos", "dataset"):
        (undisturbed.path(stage)).symlink_to(prepared_run.path(stage))
    train_lora(undisturbed, TrainConfig.for_base("mini", **BRIEF))
    one, other = tensors(prepared_run), tensors(undisturbed)
    assert one.keys() == other.keys()
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-6


def test_training_moves_every_matrix_and_notes_how(prepared_run):
    lora = train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF))
    manifest = prepared_run.manifest("lora")
    assert all(t.abs().sum() > 0 for name, t in tensors(prepared_run).items() if "lora_B" in name)
    assert manifest["optimizer"].startswith("adamw: 8-bit Adam saves nothing on cpu")
    assert manifest["dtype"] and manifest["versions"]["torch"] and manifest["seconds"] > 0
    assert lora.step == 12 and lora.base == "mini"
    files = sorted(p.name for p in prepared_run.path("lora").iterdir())
    assert files == ["losses.json", "manifest.json", "person.safetensors"]


def test_another_seed_is_another_lora_and_the_first_is_set_aside(prepared_run):
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 2}))
    first = tensors(prepared_run)
    train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 2, "seed": 1}))
    second = tensors(prepared_run)
    assert any((first[k] != second[k]).any() for k in first)
    aside = load_file(prepared_run.folder / "earlier" / "lora-1" / "person.safetensors")
    assert all((aside[k] == first[k]).all() for k in first)


def test_prior_preservation_adds_the_class(prepared_run):
    build_dataset(prepared_run, DatasetConfig.for_base("mini", class_word="man", class_images=1))
    losses = {}
    for weight in (0.0, 1.0):
        train_lora(prepared_run, TrainConfig.for_base("mini", **BRIEF | {"steps": 1, "prior_weight": weight}))
        outcome = prepared_run.manifest("lora")["outcome"]
        losses[weight] = float(outcome.rsplit(" ", 1)[1])
    assert losses[1.0] > losses[0.0]


def test_without_a_dataset_there_is_no_training(tmp_path):
    with pytest.raises(StageMissing, match="headshotkit prepare"):
        train_lora(Run(tmp_path), TrainConfig.for_base("mini"))


def test_the_optimizer_says_why(monkeypatch):
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    _, reason = make_optimizer(parameters, TrainConfig(optimizer="adamw"), "cuda")
    assert reason == "adamw: asked for"
    monkeypatch.setattr("headshotkit.runtime.has_module", lambda name: False)
    _, reason = make_optimizer(parameters, TrainConfig(), "cpu")
    assert "saves nothing on cpu" in reason


def test_eight_bit_adam_that_is_missing_is_said():
    if "bitsandbytes" in sys.modules or __import__("importlib.util").util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed here")
    with pytest.raises(MissingPackage, match=r"headshotkit\[train\]"):
        make_optimizer([torch.nn.Parameter(torch.zeros(3))], TrainConfig(optimizer="adamw8bit"), "cpu")
