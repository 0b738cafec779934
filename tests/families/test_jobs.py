"""The drawing loop, on the embedded base with one sampler step: real pictures, too rough to look at."""

from pathlib import Path

import pytest

import headshotkit
from headshotkit.core.records import Headshot
from headshotkit.families import Sampling, load_family
from headshotkit.families.jobs import Job, draw

SQUARE, WIDE = (64, 64), (128, 64)
ONE_STEP = Sampling((8, 8), 1, 1.0)
"""Of a size that the base can't draw: each job has its own."""
JOBS = [
    Job("photo of a man", "", 1, SQUARE),
    Job("photo of a man", "", 2, WIDE),
    Job("photo of a woman, smiling", "dark", 3, SQUARE),
    Job("photo of a man", "", 4, SQUARE),
]


class Listening:
    """The embedded base, which also notes the seeds of each batch."""

    def __init__(self, family):
        self.family, self.batches = family, []

    def render(self, prompts, negatives, seeds, sampling, on_step=None):
        self.batches.append((seeds, sampling.size_px))
        return self.family.render(prompts, negatives, seeds, sampling, on_step)


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


def test_jobs_are_drawn_in_batches_of_one_size(family):
    base = Listening(family)
    drawn = list(draw(base, iter(JOBS), ONE_STEP, batch=2))
    assert base.batches == [([1, 3], SQUARE), ([2], WIDE), ([4], SQUARE)]
    assert [job.seed for job, _ in drawn] == [1, 3, 2, 4]
    assert all(image.size == job.size_px for job, image in drawn)
    sampling = Sampling(SQUARE, 1, 1.0)
    whole = family.render(["photo of a man", "photo of a woman, smiling"], ["", "dark"], [1, 3], sampling)
    assert [image.tobytes() for image in whole] == [image.tobytes() for _, image in drawn[:2]]


def test_a_batch_is_drawn_only_when_its_pictures_are_taken(family):
    base = Listening(family)
    pictures = draw(base, JOBS, ONE_STEP)
    assert base.batches == []
    job, _ = next(pictures)
    assert job == JOBS[0] and base.batches == [([1], SQUARE)]
    assert list(draw(base, [], ONE_STEP)) == []


def test_an_exception_after_a_step_ends_the_drawing(family):
    steps = []

    def stop():
        steps.append(1)
        if len(steps) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        list(draw(family, JOBS, ONE_STEP, 2, on_step=stop))
    assert len(steps) == 2


def test_a_headshots_job_draws_it_again():
    shot = Headshot("a_1.png", "a", "photo of ohwx man", "dark", 7, 1, 1.0, 0.5, True, size_px=[128, 64])
    assert Job.of(shot) == Job("photo of ohwx man", "dark", 7, WIDE)


def test_only_the_families_room_calls_render():
    """One drawing loop: every other room draws with `draw`."""
    package = Path(headshotkit.__file__).parent
    others = [file for file in package.rglob("*.py") if file.parent.name != "families"]
    found = [file.name for file in others if "family.render(" in file.read_text()]
    assert len(others) > 60 and found == []
