from dataclasses import replace
from pathlib import Path

import pytest
from conftest import result_of

from headshotkit.config import GenerateConfig
from headshotkit.core.records import Headshot, Lora, Verdict
from headshotkit.core.results import PhotosResult
from headshotkit.generation.shortfall import causes_of, is_offered

MARK = 0.4
WELL = Lora(Path("person.safetensors"), "sdxl", 32, 32, "ohwx", "man", 1000)
CONFIG = GenerateConfig(count=8)


def photos(kept: int = 16, scenes: int = 12, requests: tuple[dict, ...] = ()) -> PhotosResult:
    verdicts, covered = [Verdict("a.jpg", True).to_dict()] * kept, {"moments": scenes}
    return result_of(
        PhotosResult, verdicts=verdicts, photos=[], folder="", advice="To take next: two photos.", coverage=covered,
        requests=requests,
    )  # fmt: skip


def attempts(passed: int, *refused: tuple[str, float | None], times: int = 1) -> list[Headshot]:
    """One attempt for each of the accepted headshots and, `times`, for each reason and identity of a refused one."""
    rows = [((), 0.5)] * passed + [((code,), identity) for code, identity in refused] * times
    return [
        Headshot(f"{n}.png", f"p{n}", "", "", n, 1, 1.0, identity, not reasons, reasons)
        for n, (reasons, identity) in enumerate(rows)
    ]


def codes(shots, lora=WELL, shown=None, config=CONFIG, picked=False) -> list[str]:
    return [cause.code for cause in causes_of(shots, MARK, lora, shown or photos(), config, picked)]


STRANGERS = attempts(1, ("other_person", 0.1), times=8)


def test_enough_headshots_have_no_cause():
    assert codes(attempts(4, ("other_person", 0.1), times=9)) == []
    assert codes(attempts(3, ("other_person", 0.1), times=9)) != []


@pytest.mark.parametrize(
    ("shots", "change", "expected"),
    [
        (STRANGERS, {}, ["strength"]),
        (STRANGERS, {"picked": True}, ["weak_likeness"]),
        (STRANGERS, {"lora": replace(WELL, step=300)}, ["short_training"]),
        (STRANGERS, {"lora": replace(WELL, step=750)}, ["strength"]),
        (STRANGERS, {"lora": replace(WELL, step=800, method="dreambooth", rank=0)}, ["strength"]),
        (STRANGERS, {"shown": photos(8, 8)}, ["few_photos"]),
        (STRANGERS, {"shown": photos(16, 2)}, ["few_photos"]),
        (STRANGERS, {"lora": replace(WELL, step=6, base="mini"), "config": GenerateConfig.for_base("mini", count=8),
                     "shown": photos(4, 1)}, ["short_training", "few_photos", "embedded_base"]),
        (attempts(1, ("other_person", 0.35), times=8), {}, ["nearly"]),
        (attempts(1, ("copy_of_photo", 0.7), times=8), {}, ["overfitted"]),
        (attempts(1, ("near_twin", 0.6), times=8), {}, ["same_picture"]),
        (attempts(1, ("soft_face", 0.5), times=8), {"config": CONFIG.replace(sampler_steps=6)}, ["few_sampler_steps"]),
        (attempts(1, ("soft_face", 0.5), times=8), {}, ["bad_faces"]),
        (attempts(0, ("no_face", None), times=9), {"config": GenerateConfig.for_base("mini", count=8)},
         ["embedded_base"]),
        (attempts(0, ("copy_of_photo", 0.7), ("copy_of_photo", 0.7), ("other_person", 0.1), times=4), {},
         ["overfitted", "strength"]),
        (attempts(1, ("other_person", 0.1), times=2), {"config": CONFIG.replace(minutes=5)},
         ["out_of_time", "strength"]),
    ],
)  # fmt: skip
def test_the_cause_is_named_with_what_to_mend_first_in_front(shots, change, expected):
    found = causes_of(
        shots, MARK, change.get("lora", WELL), change.get("shown", photos()), change.get("config", CONFIG),
        change.get("picked", False),
    )  # fmt: skip
    assert [cause.code for cause in found] == expected
    assert all(any(c.isdigit() for c in cause.why) and cause.next_step for cause in found)


@pytest.mark.parametrize("requests", [[], [{"code": "pose"}]])
def test_the_coachs_advice_is_quoted_only_if_it_requests_something(requests):
    shown = photos(requests=requests)
    (cause,) = causes_of(STRANGERS, MARK, WELL, shown, CONFIG, True)
    assert cause.code == "weak_likeness" and (shown.advice in cause.next_step) == bool(requests)


def test_no_attempt_at_all_has_one_cause():
    assert codes([], config=CONFIG.replace(minutes=1)) == ["out_of_time"]


def test_what_is_like_somebody_else_is_not_offered():
    for identity, accepted, offered in (
        (0.1, False, False),
        (0.2, False, True),
        (None, False, False),
        (0.1, True, True),
    ):
        shot = Headshot("a.png", "a", "", "", 0, 1, 1.0, identity, accepted)
        assert is_offered(shot, MARK) == offered
