"""Shared parts of the tests: offline, on the embedded base, with the sample people; heavy results are made once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # each miss of the hub costs about 47 s of retries

import gc
import importlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from headshotkit.config import CheckConfig, GenerateConfig, PrepareConfig, RunSettings, TrainConfig
from headshotkit.core import runtime
from headshotkit.core.results import Result
from headshotkit.core.run import Run, facts_of, write_json
from headshotkit.dataset.build import prepare_dataset
from headshotkit.generation.headshots import generate_headshots
from headshotkit.photos.check import check_photos
from headshotkit.pipeline import make_headshots
from headshotkit.training.train import train_lora

LONGEST = (
    "test_notebooks", "test_train", "test_memory", "test_methods", "test_check", "test_planned_training",
    "test_evaluate", "test_families_flow", "test_browser", "test_families", "test_headshots", "test_pictures",
    "test_few_steps", "test_snapshots", "test_build", "test_controls", "test_picking", "test_restore", "test_cli",
)  # fmt: skip
"""The files that take longest, in that order; the others come after them."""
collect_ignore = ["colab"]  # what `make test-colab` runs; its stand-in for google.colab can't be imported from here

P1, P2 = runtime.data_path("people", "p1"), runtime.data_path("people", "p2")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "assets"


def pytest_collection_modifyitems(items):
    """Puts the longest files first, so that at the end no worker waits for the other one's long file."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """Leaves what was imported out of all garbage collections, which else look through it again and again."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        importlib.import_module("headshotkit.families.sdxl")
    gc.collect()
    gc.freeze()


def open_picture(path: Path) -> Image.Image:
    """A picture with its file closed again."""
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Class images and scores made by the tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSHOTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_nets_of_metrics(tmp_path_factory):
    """Evaluations measure no metric that needs a net, which takes seconds; a test of these nets unsets the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSHOTKIT_METRICS", str(tmp_path_factory.mktemp("metrics")))
        yield


@pytest.fixture(scope="session")
def labels() -> dict[str, dict]:
    """What is wrong with each bad photo of the sample person: file name -> {"code": ...}."""
    return json.loads(runtime.data_path("people", "p1_labels.json").read_text())


@pytest.fixture(scope="session")
def good_photo() -> np.ndarray:
    """A photo of the sample person, RGB uint8 (768, 768, 3)."""
    return np.asarray(open_picture(P1 / "p1_02.jpg"))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder once for all workers of a session: made_once(name, what fills the empty folder) -> the folder.

    Whoever needs it first makes it, the others wait. Copy it, don't change it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, whole = root / f"once-{name}", root / f"once-{name}.whole"
        with FileLock(root / f"once-{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def prepared(made_once) -> Path:
    """A run of the sample person up to its dataset; copy it, don't change it."""

    def fill(folder: Path) -> None:
        run = Run(folder / "run")
        check_photos(P1, run)
        prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man"))

    return made_once("prepared", fill) / "run"


@pytest.fixture(scope="session")
def three_photos(made_once) -> Path:
    """A run with three photos of the sample person, who looks aside in the second, up to its dataset; copy it."""

    def fill(folder: Path) -> None:
        photos, run = folder / "photos", Run(folder / "run")
        photos.mkdir()
        for name in ("p1_09.jpg", "p1_14.jpg", "p1_16.jpg"):
            shutil.copy(P1 / name, photos)
        check_photos(photos, run, CheckConfig(min_photos=1))
        prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man"))

    return made_once("three_photos", fill) / "run"


@pytest.fixture(scope="session")
def quick(three_photos, made_once) -> Path:
    """A run with three pictures of 128 px, on which a training step takes least; copy it, don't change it."""

    def fill(folder: Path) -> None:
        run = Run(shutil.copytree(three_photos, folder / "run"))
        prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man", size_px=128))
        shutil.rmtree(run.folder / "earlier")

    return made_once("quick", fill) / "run"


@pytest.fixture
def quick_run(quick, tmp_path) -> Run:
    """A run of one's own with three pictures of 128 px."""
    return Run(shutil.copytree(quick, tmp_path / "quick"))


@pytest.fixture
def small_run(three_photos, tmp_path) -> Run:
    """A run of one's own with three photos, up to its dataset."""
    return Run(shutil.copytree(three_photos, tmp_path / "small"))


@pytest.fixture
def prepared_run(prepared, tmp_path) -> Run:
    """A run of one's own, up to its dataset."""
    return Run(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="session")
def briefly_trained(made_once) -> Path:
    """A run of five photos with a LoRA of 6 steps, two snapshots and 4 headshots; copy it, don't change it.

    It is plumbing only and proves nothing about identity. The photos lie beside it.
    """

    def fill(folder: Path) -> None:
        photos, run = folder / "photos", Run(folder / "run")
        photos.mkdir()
        for number in (2, 3, 9, 14, 16):
            shutil.copy(P1 / f"p1_{number:02}.jpg", photos)
        check_photos(photos, run, CheckConfig(min_photos=3))
        prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man"))
        train_lora(run, TrainConfig.for_base("mini", steps=6, batch=2, snapshots=2))
        generate_headshots(run, GenerateConfig.for_base("mini", count=4, sampler_steps=6, max_attempts=2, batch=2))

    return made_once("briefly_trained", fill) / "run"


@pytest.fixture(scope="session")
def finished(briefly_trained, made_once) -> Path:
    """The same run, its other stages done too; copy it, don't change it. Beside it, lines.txt has the lines told."""

    def fill(folder: Path) -> None:
        shutil.copytree(briefly_trained.parent, folder, dirs_exist_ok=True)
        lines: list[str] = []
        make_headshots(folder / "photos", folder / "run", RunSettings(base="mini"), tell=lines.append)
        (folder / "lines.txt").write_text("\n".join(lines))

    return made_once("finished", fill) / "run"


@pytest.fixture
def finished_run(finished, tmp_path) -> Run:
    """A finished run of one's own, with its photos beside it."""
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    return Run(tmp_path / "run")


def note_again(run: Run, stage: str) -> None:
    """Notes a stage's files as they are now, as if the stage had made them so."""
    manifest, folder = run.manifest(stage), run.path(stage)
    manifest["files"] = {name: facts_of(folder / name) for name in manifest["files"]}
    write_json(folder / "manifest.json", manifest)


def result_of(kind: type[Result], **facts) -> Result:
    """Returns a finished stage's result from the facts of its manifest."""
    begun = {"stage": kind.folder_name, "status": "done", "fingerprint": "", "config": {}, "inputs": {}, "started": ""}
    return kind.from_dict(begun | {"outcome": "", "seconds": 1.0, "finished": ""} | facts)


@pytest.fixture(scope="session")
def five_photos(briefly_trained) -> Path:
    """The folder of the photos that the brief run was made from."""
    return briefly_trained.parent / "photos"


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
