"""The promise itself, on the embedded base: a LoRA becomes its person, and nobody else."""

import numpy as np
import pytest
from conftest import P1, P2

from headshotkit import pipeline
from headshotkit.config import RunSettings
from headshotkit.core.results import HeadshotsResult
from headshotkit.core.run import COMMANDS, STAGES, Run
from headshotkit.evaluation.evaluate import render_base, rise_of, score_files
from headshotkit.pipeline import do_missing, make_headshots, run_base
from headshotkit.scoring.identity import known_faces

SETTINGS = RunSettings(base="mini", max_attempts=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Whole runs of two sample people, one attempt a prompt, and the lines that were told.

    The first with the demo's settings; 600 steps of training do for the second.
    """
    folder, lines = tmp_path_factory.mktemp("flow"), []
    one = make_headshots(P1, folder / "p1", SETTINGS.replace(class_word="man"), tell=lines.append)
    shorter = SETTINGS.replace(class_word="woman", steps=600)
    two = make_headshots(P2, folder / "p2", shorter, tell=lambda line: None)
    return one, two, lines


@pytest.mark.slow
@pytest.mark.parametrize("person", [0, 1])
@pytest.mark.parametrize("recogniser", ["arcface", "dlib"])
def test_the_lora_moves_identity(runs, person, recogniser):
    rise = runs[person].manifest("report")["metrics"]["identity"][recogniser]["rise"]
    print(person, recogniser, rise)
    assert rise["pairs"] >= 10 and rise["low"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "scored"), [(0, 1), (1, 0)])
def test_it_moves_towards_nobody_else(runs, trained, scored):
    """The same pictures scored against the other person: next to no rise, measured by the recogniser that decides.

    A quarter is what is asked; measured were 0.396 towards the person and at most 0.064 towards the other (2026-11-21).
    """
    run, known = runs[trained], {"arcface": known_faces(runs[scored], "arcface")}
    generated = HeadshotsResult.load(run)
    first = [shot for shot in generated.headshots if shot.attempt == 1]
    drawn = render_base(run, first, generated, run.path("report") / "base")  # those that evaluation left out, too
    files = {"base": drawn, "lora": [run.path("headshots") / shot.file for shot in first]}
    base, lora = ([s.arcface for s in score_files(some, known)] for some in files.values())
    rise = rise_of(base, lora)
    print(trained, scored, rise)
    own = runs[trained].manifest("report")["metrics"]["identity"]["arcface"]["rise"]
    assert rise.pairs >= 20 and rise.high < own["low"] / 4


def words_of(lines):
    return [line.split()[0] for line in lines]


TOLD = ["note", "base", "check", "prepare", "train", "generate", "restore", "evaluate", "gallery"]


@pytest.mark.slow
def test_the_demo_tells_a_line_a_stage(runs):
    assert words_of(runs[2]) == TOLD
    text = "\n".join(runs[2])
    for part in ("kept 17 of 30 photos, refused 2 duplicate", "accepted", "arcface", "dlib", "unchanged"):
        assert part in text


def test_a_run_tells_a_line_a_stage(finished):
    lines = (finished.parent / "lines.txt").read_text().splitlines()
    assert [word for word in words_of(lines) if word in TOLD] == TOLD


def test_a_finished_run_is_not_done_again(finished_run):
    one = finished_run
    before = {s: (one.path(s) / "manifest.json").read_bytes() for s in STAGES}
    make_headshots(one.folder.parent / "photos", one.folder, RunSettings(base="mini"), tell=lambda line: None)
    assert {s: (one.path(s) / "manifest.json").read_bytes() for s in STAGES} == before
    assert not (one.folder / "earlier").exists()


def test_what_is_missing_is_done_and_nothing_else(finished_run, monkeypatch):
    done = []
    monkeypatch.setattr("headshotkit.pipeline.do_stage", lambda stage, *_: done.append(stage) or {})
    monkeypatch.setattr("headshotkit.pipeline.line_of", lambda *_: "")
    do_missing(STAGES, finished_run, RunSettings(steps=999), tell=lambda line: None)
    assert done == []
    do_missing(("photos",), Run(finished_run.folder / "nowhere"), RunSettings(), tell=lambda line: None)
    assert done == ["photos"]


def test_a_run_goes_on_with_the_base_it_was_begun_with(finished, tmp_path):
    assert run_base(Run(finished), RunSettings())[0] == "mini"
    name, reason = run_base(Run(tmp_path), RunSettings())
    assert name in ("mini", "sdxl") and reason


@pytest.mark.slow
def test_headshots_differ_from_one_another(runs):
    from PIL import Image

    files = runs[0].manifest("headshots")["delivered"]
    pictures = []
    for file in files:
        with Image.open(runs[0].path("headshots") / file) as image:
            pictures.append(np.asarray(image.convert("L").resize((32, 32)), np.float32).ravel())
    alike = np.corrcoef(np.stack(pictures))
    assert alike[~np.eye(len(files), dtype=bool)].max() < 0.99


def test_the_stages_of_a_run_are_those_that_its_folder_knows():
    rows = [(row.folder, row.command) for row in pipeline.STAGES]
    assert sorted(rows) == sorted(COMMANDS.items())
    assert [row.folder for row in pipeline.STAGES if not row.optional] == list(STAGES)
    assert {late for row in pipeline.STAGES for late in row.late} <= {folder for folder, _ in rows}
