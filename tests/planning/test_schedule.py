"""The settings of each step, and how they change on the way."""

import json

from headshotkit.config import TrainConfig
from headshotkit.planning.schedule import Pacing

CONFIG = TrainConfig(steps=10, batch=2)
CHEAPER = {"schedule": ((64, 6), (128, 2)), "steps": 8, "batch": 1, "checkpointing": True}


def test_without_a_schedule_all_steps_have_the_datasets_size():
    pacing = Pacing(CONFIG, 128, [])
    assert [pacing.px_at(step) for step in (0, 9)] == [128, 128] and pacing.at(3).schedule == ((128, 10),)
    assert [pacing.pictures_before(step) for step in (0, 1, 5)] == [0, 2, 10]


def test_a_change_holds_from_its_step_and_no_earlier():
    pacing = Pacing(CONFIG, 128, [])
    pacing.change(4, CHEAPER, "out of memory")
    assert [pacing.px_at(step) for step in (3, 4, 5, 6, 7)] == [128, 64, 64, 128, 128]
    assert [(pacing.at(step).steps, pacing.at(step).batch) for step in (3, 4)] == [(10, 2), (8, 1)]
    assert [pacing.pictures_before(step) for step in (3, 4, 5, 8)] == [6, 8, 9, 12]


def test_changes_come_back_from_the_manifest():
    pacing = Pacing(CONFIG, 128, [])
    pacing.change(4, CHEAPER, "out of memory")
    pacing.change(6, CHEAPER | {"steps": 7, "schedule": ((64, 7),)}, "late")
    again = Pacing(CONFIG, 128, json.loads(json.dumps(pacing.changes)))
    assert [again.at(step) for step in range(8)] == [pacing.at(step) for step in range(8)]
    assert [again.pictures_before(step) for step in range(8)] == [pacing.pictures_before(step) for step in range(8)]


def test_what_was_changed_later_is_void_after_going_back():
    pacing = Pacing(CONFIG, 128, [])
    pacing.change(6, CHEAPER, "late")
    pacing.change(4, CHEAPER | {"batch": 2}, "out of memory")
    assert [change["step"] for change in pacing.changes] == [4] and pacing.at(7).batch == 2
