"""Shared parts of the tests: offline, on the embedded base, with the sample people; heavy results are made once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # each miss of the hub costs about 47 s of retries

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshotkit.config import DatasetConfig, RenderConfig, TrainConfig
from headshotkit.core import runtime
from headshotkit.core.run import Run, facts_of, write_json
from headshotkit.dataset.build import build_dataset
from headshotkit.generation.headshots import render_headshots
from headshotkit.photos.check import judge_photos
from headshotkit.training.train import train_lora

collect_ignore = ["colab"]  # what `make test-colab` runs; its stand-in for google.colab can't be imported from here

P1, P2 = runtime.data_path("people", "p1"), runtime.data_path("people", "p2")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "assets"


def open_picture(path: Path) -> Image.Image:
    """A picture with its file closed again."""
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Class images and scores made by the tests stay out of the user's cache."""
    before = os.environ.get("HEADSHOTKIT_CACHE")
    os.environ["HEADSHOTKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("HEADSHOTKIT_CACHE")
    if before is not None:
        os.environ["HEADSHOTKIT_CACHE"] = before


@pytest.fixture(scope="session")
def labels() -> dict[str, dict]:
    """What is wrong with each bad photo of the sample person: file name -> {"code": ...}."""
    return json.loads(runtime.data_path("people", "p1_labels.json").read_text())


@pytest.fixture(scope="session")
def good_photo() -> np.ndarray:
    """A photo of the sample person, RGB uint8 (768, 768, 3)."""
    return np.asarray(open_picture(P1 / "p1_02.jpg"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A run of the sample person up to its dataset; copy it, don't change it."""
    run = Run(tmp_path_factory.mktemp("prepared") / "run")
    judge_photos(P1, run)
    build_dataset(run, DatasetConfig.for_base("mini", class_word="man"))
    return run.folder


@pytest.fixture
def prepared_run(prepared, tmp_path) -> Run:
    """A run of one's own, up to its dataset."""
    return Run(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="session")
def briefly_trained(prepared, tmp_path_factory) -> Path:
    """A run with a LoRA of 6 steps, two snapshots and 4 headshots: plumbing only, it proves nothing about identity."""
    run = Run(shutil.copytree(prepared, tmp_path_factory.mktemp("brief") / "run"))
    train_lora(run, TrainConfig.for_base("mini", steps=6, batch=2, snapshots=2))
    render_headshots(run, RenderConfig.for_base("mini", count=4, sampler_steps=6, max_attempts=2, batch=2))
    return run.folder


def note_again(run: Run, stage: str) -> None:
    """Notes a stage's files as they are now, as if the stage had made them so."""
    manifest, folder = run.manifest(stage), run.path(stage)
    manifest["files"] = {name: facts_of(folder / name) for name in manifest["files"]}
    write_json(folder / "manifest.json", manifest)


@pytest.fixture
def brief_run(briefly_trained, tmp_path) -> Run:
    """A run of one's own with a brief LoRA and four headshots."""
    return Run(shutil.copytree(briefly_trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A shell starts what runs in its background with Ctrl-C ignored; here it is heard, as in front of a person."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
