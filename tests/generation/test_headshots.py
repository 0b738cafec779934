import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import open_picture
from tqdm import tqdm

from headshotkit.config import GenerateConfig
from headshotkit.core import runtime
from headshotkit.core.budget import TimeBudget
from headshotkit.core.errors import BadLora
from headshotkit.core.records import Lora
from headshotkit.core.results import HeadshotsResult
from headshotkit.core.run import Run, write_json
from headshotkit.faces import artefacts
from headshotkit.generation.headshots import generate_headshots, shapes_of, tasks_of
from headshotkit.generation.prompts import SIZES_PX, load_prompts
from headshotkit.generation.session import Session

BRIEF = {"count": 4, "sampler_steps": 6, "max_attempts": 2, "batch": 2}
TWO = {"count": 2, "sampler_steps": 2, "max_attempts": 2, "batch": 2}
COMMAND = """
import sys
from headshotkit.config import GenerateConfig
from headshotkit.core.run import Run
from headshotkit.generation.headshots import generate_headshots
generate_headshots(Run(sys.argv[1]), GenerateConfig.for_base("mini", count=4, sampler_steps=6, max_attempts=1, batch=2))
"""


def test_the_manifest_has_the_names_that_others_build_on(brief_run):
    manifest = brief_run.manifest("headshots")
    for shot in manifest["headshots"]:
        assert {"file", "prompt_id", "seed", "attempt", "identity", "accepted"} <= set(shot)
        assert open_picture(brief_run.path("headshots") / shot["file"]).size == (256, 256)
    assert len(manifest["delivered"]) == 4
    assert manifest["forwards"] == 10 * len(manifest["headshots"])  # 6 steps, in 2 of them the words as well
    assert manifest["forwards_per_headshot"] == 10 and manifest["decoding"] == "whole"
    assert manifest["pass_mark"]["own_median"] == pytest.approx(0.739, abs=0.02)


def test_refused_headshots_are_tried_again_from_another_seed(brief_run):
    shots = brief_run.manifest("headshots")["headshots"]
    first = {s["prompt_id"]: s for s in shots if s["attempt"] == 1}
    second = [s for s in shots if s["attempt"] == 2]
    assert {s["prompt_id"] for s in second} == {i for i, s in first.items() if not s["accepted"]}
    assert all(s["seed"] != first[s["prompt_id"]]["seed"] for s in second)


def test_accepted_headshots_are_not_tried_again(brief_run):
    config = GenerateConfig.for_base("mini", **TWO, pass_floor=-1.0, pass_ceiling=-0.9, max_artefact=1.0)
    shots = generate_headshots(brief_run, config, planned=("steps",))
    assert brief_run.manifest("headshots")["planned"] == ["steps"]
    with_face = [s for s in shots if s.identity is not None]
    assert all(s.accepted and s.attempt == 1 for s in with_face if s.attempt == 1)
    once = {s.prompt_id for s in shots if s.attempt == 1 and s.accepted}
    assert not once & {s.prompt_id for s in shots if s.attempt == 2}


def test_near_duplicates_are_tried_again_after_an_interruption_too(brief_run):
    """With a correlation of 0 any two headshots are near-duplicates: one passes, the rest is tried again in vain."""
    settings = BRIEF | {"count": 3, "pass_floor": -1.0, "pass_ceiling": -0.9, "max_near_duplicate": 0.0}
    settings |= {"min_sharpness": 0.0}
    config = GenerateConfig.for_base("mini", **settings, max_disagreement=9.0, max_artefact=1.0)
    shots = generate_headshots(brief_run, config)
    assert sum(s.accepted for s in shots) == 1
    duplicates = {s.prompt_id for s in shots if s.reasons == ("near_twin",) and s.attempt == 1}
    assert len(duplicates) >= 2 and duplicates <= {s.prompt_id for s in shots if s.attempt == 2}
    manifest = brief_run.peek("headshots")
    write_json(
        brief_run.path("headshots") / "manifest.json",
        manifest | {"status": "started", "headshots": manifest["headshots"][:-1]},
    )
    again = generate_headshots(brief_run, config)
    assert [(s.file, s.accepted, s.reasons) for s in again] == [(s.file, s.accepted, s.reasons) for s in shots]


def test_an_artefact_is_noted_and_without_weights_the_manifest_says_that_none_was_looked_for(
    brief_run, monkeypatch, tmp_path, capsys
):
    config = GenerateConfig.for_base("mini", **TWO | {"max_attempts": 1}, max_artefact=0.0)
    shots = generate_headshots(brief_run, config)
    with_face = [s for s in shots if s.identity is not None]
    assert with_face and all("artefact" in s.reasons and len(s.artefacts) == 4 for s in with_face)
    assert "artefacts_not_rated" not in brief_run.manifest("headshots")
    monkeypatch.setattr(artefacts, "weights_file", lambda: tmp_path / "none.safetensors")
    shots = generate_headshots(brief_run, config.replace(max_artefact=0.1))
    assert all("artefact" not in s.reasons and not s.artefacts for s in shots)
    assert HeadshotsResult.load(brief_run).artefacts_not_rated and "artefacts" in capsys.readouterr().err


def test_a_headshot_says_how_it_was_made(brief_run):
    shot = brief_run.manifest("headshots")["headshots"][0]
    text = open_picture(brief_run.path("headshots") / shot["file"]).text
    how = json.loads(text["headshotkit"])
    assert "not a photograph" in text["Software"]
    assert how["seed"] == shot["seed"] and how["prompt"] == shot["prompt"] and how["base"] == "mini"


@pytest.mark.slow
def test_a_killed_rendering_goes_on_to_the_same_pictures(brief_run, briefly_trained):
    """kill -9 in the middle of a real rendering process, then the same call: the pictures of the undisturbed run."""
    shutil.rmtree(brief_run.path("headshots"))
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(brief_run.folder)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(brief_run.path("headshots").glob("*_1.png"))) >= 2:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not brief_run.has("headshots"), "it was killed after its end"
    generate_headshots(brief_run, GenerateConfig.for_base("mini", **BRIEF | {"max_attempts": 1}))
    undisturbed = Run(briefly_trained)
    files = {s["file"] for s in undisturbed.manifest("headshots")["headshots"] if s["attempt"] == 1}
    assert files == {f.name for f in brief_run.path("headshots").glob("*.png")}
    for file in files:
        a, b = (np.asarray(open_picture(run.path("headshots") / file)) for run in (brief_run, undisturbed))
        assert (a == b).all()


class Ticking:
    """A clock on which every look takes a second, and so every sampler step does."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def test_under_a_clock_it_ends_in_time_with_the_same_pictures_and_says_what_is_missing(brief_run, briefly_trained):
    clock = Ticking()
    shots = generate_headshots(
        brief_run, GenerateConfig.for_base("mini", **BRIEF, minutes=0.5), TimeBudget.of(0.5, clock)
    )
    manifest = brief_run.manifest("headshots")
    assert clock.now <= 30 and len(shots) == 6 and len({s.prompt_id for s in shots}) == 4
    assert "4 of 4 are missing: the 0.5 minutes ran out" in manifest["outcome"] and len(manifest["missing"]) == 4
    assert len(manifest["delivered"]) == 4
    plain = Run(briefly_trained)
    for one in (s for s in shots if s.attempt == 1):
        a, b = (np.asarray(open_picture(run.path("headshots") / one.file)) for run in (brief_run, plain))
        assert (a == b).all()


@pytest.mark.slow
def test_other_strengths_are_tried_under_a_clock_each_with_an_attempt_of_its_own(brief_run):
    config = GenerateConfig.for_base("mini", **TWO, minutes=0.5, other_scales=(0.5,))
    shots = generate_headshots(brief_run, config, TimeBudget.of(0.2, Ticking()))
    assert {s.lora_scale for s in shots} == {1.0, 0.5} and len({s.file for s in shots}) == len(shots) >= 6
    for prompt in {s.prompt_id for s in shots}:
        attempts = [s.attempt for s in shots if s.prompt_id == prompt]
        assert attempts == list(range(1, len(attempts) + 1))


def test_under_a_clock_an_interrupted_run_goes_on_alike(brief_run):
    config = GenerateConfig.for_base("mini", **TWO, minutes=0.2)
    whole = generate_headshots(brief_run, config, TimeBudget.of(0.2, Ticking()))
    manifest = brief_run.peek("headshots")
    interrupted = manifest | {"status": "started", "headshots": manifest["headshots"][:2], "seconds": 0.0}
    write_json(brief_run.path("headshots") / "manifest.json", interrupted)
    again = generate_headshots(brief_run, config, TimeBudget.of(0.2, Ticking()))
    assert [(s.file, s.seed, s.identity) for s in again[: len(whole)]] == [(s.file, s.seed, s.identity) for s in whole]


def test_a_batch_that_would_be_late_is_broken_off(brief_run):
    clock = Ticking()
    assert (
        generate_headshots(brief_run, GenerateConfig.for_base("mini", **BRIEF, minutes=0.1), TimeBudget.of(0.1, clock))
        == []
    )
    assert clock.now <= 6 and brief_run.manifest("headshots")["delivered"] == []


def test_a_lora_of_another_base_is_refused(brief_run):
    with pytest.raises(BadLora, match="base 'mini', .* base 'sdxl'"):
        generate_headshots(brief_run, GenerateConfig.for_base("sdxl"))


def test_every_aspect_has_its_size_where_the_base_can_draw_it():
    lora = Lora("person.safetensors", "sdxl", 8, 8, "ohwx", "man", 1)
    config = GenerateConfig.for_base("sdxl")
    tasks = tasks_of(load_prompts(), lora, config)
    assert {t.aspect: t.size_px for t in tasks} == {a: SIZES_PX[a] for a in ("1:1", "4:5", "3:4", "16:9")}
    assert shapes_of(tasks, config).count(" of ") == 4 and "square" not in shapes_of(tasks, config)
    small = GenerateConfig.for_base("mini", count=50)
    squares = tasks_of(load_prompts(), lora, small)
    assert {t.size_px for t in squares} == {(256, 256)}
    assert shapes_of(squares, small).startswith("all square, because base 'mini' ")


# --- what is shown meanwhile ----------------------------------------------------------------------------------------


def test_the_bar_shows_accepted_of_wanted_tries_and_minutes_left(brief_run, monkeypatch):
    """A real bar, which writes into a text."""
    written = io.StringIO()
    bar = partial(tqdm, file=written, mininterval=0, ncols=120)
    monkeypatch.setattr(runtime, "progress", lambda items, title, total=None: bar(items, desc=title, total=total))
    shots = generate_headshots(
        brief_run, GenerateConfig.for_base("mini", **TWO, seed=1, pass_floor=-1, pass_ceiling=-0.9, max_artefact=1.0)
    )
    shown = written.getvalue()
    assert "?" not in shown.split("accepted headshots", 1)[1].split("[")[0] and "0/2" in shown
    assert f"tried={len(shots)}" in shown and "minutes_left=" in shown
    assert f"{len({s.prompt_id for s in shots if s.accepted})}/2" in shown


@pytest.mark.parametrize(
    ("accepted", "minutes", "left_s", "expected"),
    [
        (0, 0, math.inf, 8 / 3),
        (2, 0, math.inf, 4 / 3),
        (4, 0, math.inf, 0.0),
        (2, 5, 30.0, 0.5),
        (0, 5, math.inf, 16 / 3),
    ],
)
def test_the_minutes_left_follow_from_what_was_tried(accepted, minutes, left_s, expected):
    """Four prompts, a try of 20 s each; without minutes three tries a prompt at most, so 8 more where none passed."""
    shots = [SimpleNamespace(prompt_id=f"p{n}", accepted=n < accepted) for n in range(4)]
    session = SimpleNamespace(
        stage=SimpleNamespace(manifest={"drawing_seconds": 80.0}), headshots=shots,
        tasks=[SimpleNamespace(id=f"p{n}") for n in range(4)], deadline=SimpleNamespace(seconds_left=left_s),
        config=SimpleNamespace(minutes=minutes, max_attempts=3),
    )  # fmt: skip
    assert Session.minutes_left(session) == pytest.approx(expected)
    session.headshots = []
    assert Session.minutes_left(session) is None
