import contextlib
import math
import typing

import pytest
from pydantic import TypeAdapter, ValidationError

from headshotkit.cli import main
from headshotkit.config import (
    CheckConfig,
    CropConfig,
    GenerateConfig,
    PickConfig,
    PrepareConfig,
    RestoreConfig,
    RunSettings,
    TrainConfig,
    resolve,
)
from headshotkit.config.base import MOST_PARTS, allowed, meaning, schema_of
from headshotkit.config.bases import BASES, find_base
from headshotkit.config.run_settings import NAMES, flag
from headshotkit.core.errors import BadConfig, UnknownBase
from headshotkit.core.run import Run
from headshotkit.dataset import tokens
from headshotkit.evaluation import evaluate
from headshotkit.generation.pictures import PictureRequest
from headshotkit.generation.prompts import load_prompts
from headshotkit.photos.files import find_photos
from headshotkit.planning import plan

CONFIGS = (
    CheckConfig,
    PrepareConfig,
    TrainConfig,
    PickConfig,
    GenerateConfig,
    RestoreConfig,
    CropConfig,
    PictureRequest,
)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("config", [PrepareConfig, TrainConfig, GenerateConfig])
def test_every_base_has_presets_that_hold(base, config):
    made = config.for_base(base)
    assert made.base == base


def test_presets_give_way_to_what_is_asked_for():
    assert TrainConfig.for_base("mini", steps=7, rank=None).steps == 7
    assert TrainConfig.for_base("mini", rank=None).rank == TrainConfig.for_base("mini").rank


def test_an_unknown_base_lists_the_known_ones():
    known = "mini, sdxl, sdxl-base, flux, flux2, zimage"
    with pytest.raises(UnknownBase, match=rf"no base is called 'sd15'\.\n  The 6 known ones are: {known}"):
        find_base("sd15")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GenerateConfig(pass_floor=0.6, pass_ceiling=0.5), "pass_floor 0.6 is above pass_ceiling 0.5"),
        (lambda: GenerateConfig(count=0), "count is 0"),
        (lambda: GenerateConfig(guidance_share=1.2), "guidance_share is 1.2"),
        (lambda: GenerateConfig(base_guidance=0.5), "base_guidance is 0.5"),
        (lambda: GenerateConfig(base_guidance_every=0), "base_guidance_every is 0"),
        (lambda: GenerateConfig(max_near_duplicate=1.2), "max_near_duplicate is 1.2"),
        (lambda: GenerateConfig(minutes=-1), "minutes is -1"),
        (lambda: GenerateConfig(other_scales=(0.8,)), "other_scales are (0.8,), minutes is 0"),
        (lambda: GenerateConfig(sampler="ddim"), "sampler is 'ddim'"),
        (lambda: PrepareConfig(size_px=1001), "size_px is 1001"),
        (lambda: PrepareConfig(token=" "), "token ' '"),
        (lambda: TrainConfig(targets="everything"), "targets is 'everything'"),
        (lambda: TrainConfig(steps=0), "steps is 0"),
        (lambda: TrainConfig(learning_rate=3.0), "learning_rate is 3.0"),
        (lambda: RestoreConfig(fidelity=1.5), "fidelity is 1.5"),
        (lambda: CheckConfig(min_photos=0), "min_photos is 0"),
        (lambda: GenerateConfig(seed=-1), "seed is -1"),
        (lambda: PickConfig(seed=-1), "seed is -1"),
        (lambda: TrainConfig(seed=-1), "seed is -1"),
        (lambda: PrepareConfig(seed=-1), "seed is -1"),
        (lambda: PrepareConfig(class_images=-5), "class_images is -5"),
        (lambda: TrainConfig.for_base("mini", stepz=1), "TrainConfig has no setting stepz"),
    ],
)
def test_relations_are_checked_and_named(make, named):
    with pytest.raises(BadConfig) as caught:
        make()
    assert named in str(caught.value)


def settings():
    """Every setting of every stage: (config, name, JSON schema)."""
    return [(kind, name, schema_of(kind, name)) for kind in CONFIGS for name in kind.model_fields]


def numbers_in(schema):
    """The schemas of the numbers in a setting."""
    if schema.get("type") in ("integer", "number"):
        return [schema]
    return [n for part in (*schema.get("prefixItems", ()), *[schema[k] for k in ("items",) if k in schema])
            for n in numbers_in(part)]  # fmt: skip


def ends_of(schema):
    """The ends of a number's range: (end, whether it is included, direction out of the range)."""
    low, high = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    return [(schema[key], key == keys[0], out) for keys, out in ((low, -1), (high, 1)) for key in keys if key in schema]


def changed(kind, name, value):
    return kind(**({"prompt": "photo"} if kind is PictureRequest else {}) | {name: value})


def test_every_number_has_a_range():
    found = [
        (kind.__name__, name, ends_of(number)) for kind, name, schema in settings() for number in numbers_in(schema)
    ]
    assert len(found) > 90
    assert not [(kind, name) for kind, name, ends in found if len(ends) != 2 or not ends[0][0] < ends[1][0]]


def test_every_setting_has_a_sentence():
    assert not [(kind, name) for kind, name, _ in settings() if not meaning(kind, name)]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1e30, -1e30, pytest.param(10**5000, id="endless"), "7", None, True]
)
def test_no_setting_takes_what_is_no_number_of_its_range(value):
    """In a list too; the error names the setting."""
    for kind, name, schema in settings():
        if numbers_in(schema):
            listed = schema.get("type") == "array"
            wrong = ((value, 1),) if name == "schedule" else (value, value) if listed else value
            with pytest.raises(BadConfig) as caught:
                changed(kind, name, wrong)
            assert caught.value.happened.startswith(f"{name} is ")


def test_a_range_ends_where_its_field_says():
    for kind, name, schema in settings():
        if schema.get("type") in ("integer", "number"):
            step = schema.get("multipleOf", 1 if schema["type"] == "integer" else 1e-6)
            hint = typing.Annotated[kind.model_fields[name].annotation, *kind.model_fields[name].metadata]
            for end, included, out in ends_of(schema):
                with contextlib.nullcontext() if included else pytest.raises(ValidationError):
                    TypeAdapter(hint).validate_python(end)
                with pytest.raises(BadConfig, match=f"^BadConfig: {name} is "):
                    changed(kind, name, end + out * step)


def test_a_setting_knows_where_its_value_comes_from():
    chosen = RunSettings(rank=8, seed=3)
    made = resolve(TrainConfig, "mini", chosen, planned={"batch": 2}, begun={"warmup": 0.1, "steps": 1000})
    origins = made.origins
    assert {"rank", "alpha", "seed", "base"} == {name for name, origin in origins.items() if origin == "you"}
    assert (origins["batch"], origins["warmup"]) == ("plan", "the run")
    assert origins["learning_rate"] == "preset mini" and origins["steps"] == origins["ema"] == "default"
    said = " ".join(made.lines())
    assert "batch 2" in said and "warmup 0.1" in said and "rank" not in said and "ema" not in said


def test_settings_of_one_name_in_two_stages_carry_the_command():
    shared = [name for name, homes in NAMES.items() if len(homes) > 1]
    assert sorted(shared) == ["base", "minutes", "seed"]
    assert {"train_batch", "generate_batch"} <= set(NAMES) and "batch" not in NAMES
    assert RunSettings(train_batch=2).of(TrainConfig) == {"batch": 2}


def test_files_keep_their_names_for_renamed_settings():
    """A run of an earlier version goes on, and programs read the same fields."""
    drawing = GenerateConfig.for_base("mini", sampler_steps=7, base_guidance=2.0)
    stored = drawing.to_dict()
    assert (stored["steps"], stored["word_guidance"], stored["max_twin"]) == (7, 2.0, 0.95)
    assert GenerateConfig.from_dict(stored) == drawing and "sampler_steps" not in stored


@pytest.mark.parametrize("text", ["a\x1b[2J", "a\x00", "a" * 5000, 7, None])
def test_no_text_acts_on_a_terminal_or_is_endless(text):
    for kind, name, schema in settings():
        if schema.get("type") == "string":
            with pytest.raises(BadConfig) as caught:
                changed(kind, name, text)
            assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500


def test_letters_that_are_none_are_refused_in_words_and_taken_in_paths():
    with pytest.raises(BadConfig, match="token is"):
        PrepareConfig(token="\udcff")
    assert GenerateConfig(prompts="/home/\udcff.toml").prompts
    with pytest.raises(BadConfig, match="schedule is"):
        TrainConfig(schedule=((512, 1),) * (MOST_PARTS + 1), steps=MOST_PARTS + 1)


def test_every_option_has_the_range_of_its_setting():
    """Before anything is done, so that a run does not stop at its third stage."""
    assert set(NAMES) == set(RunSettings.model_fields) - {"photos"}
    for name, ((kind, own), *_) in NAMES.items():
        if schema_of(kind, own).get("type") in ("integer", "number"):
            with pytest.raises(BadConfig, match=f"{name} is") as caught:
                RunSettings(**{name: math.nan})
            assert flag(name) in caught.value.next_step


def test_a_run_allows_the_values_that_its_stages_allow():
    """An error names the words to choose from."""
    assert [name for name, ((kind, own), *_) in NAMES.items() if allowed(RunSettings, name) != allowed(kind, own)] == []
    with pytest.raises(BadConfig, match="one of: lightning, hyper, lcm, or empty"):
        RunSettings(distilled_lora="turbo")


@pytest.mark.parametrize(
    "given",
    ["run {p} --rank 100000", "run {p} --guidance nan", "train --steps -5", "generate --count 100000000",
     "generate --base-guidance 1e30", "generate --lora-scale inf", "run {p} --minutes nan", "restore --fidelity nan",
     "pick --scales 0.5 nan", "run {p} --seed -1", "evaluate --minutes inf", "train --schedule 999999 10"],
)  # fmt: skip
def test_the_command_line_refuses_absurd_settings_before_it_begins(given, tmp_path, capsys):
    words = given.format(p=tmp_path).split()
    assert main([*words, "--base", "mini", "--out", str(tmp_path / "run")]) == 2
    assert " is " in capsys.readouterr().err and not (tmp_path / "run").exists()


LONG, HOSTILE = "a" * 300, "\x1b[2J\u202e"


@pytest.mark.parametrize(
    "given",
    [["check", HOSTILE, "--out", "run"], ["check", LONG, "--out", "run"], ["check", "photos", "--out", LONG],
     ["train", "--base", "mini", "--out", LONG], ["export", "x.safetensors", "--out", LONG],
     ["gallery", "--out", HOSTILE],
     ["prepare", "--token", HOSTILE, "--out", "run"], ["prompts", "--prompts", LONG], ["prompts", "--packs", HOSTILE],
     ["plan", "--gpu", "a" * 100_000], ["crop", HOSTILE, "out"], ["crop", "photos", "out", "--framing", HOSTILE],
     ["train", "--base", HOSTILE, "--out", "run"], ["restore", "--out", "/dev/null"], ["prompts", "--prompts", ".."]],
    ids=lambda given: " ".join(given)[:30].encode("ascii", "backslashreplace").decode(),
)  # fmt: skip
def test_whatever_is_typed_gets_an_answer(given, tmp_path, monkeypatch, capsys):
    """One that can be read, and that a terminal does not obey."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert main(given) == 2
    err = capsys.readouterr().err
    assert 20 < len(err) < 6500 and not set("\x1b\u202e\x07") & set(err)


def test_to_clean_a_folder_that_no_disk_can_hold_finds_nothing(capsys):
    assert main(["clean", LONG, "--json"]) == 0 and '"bytes": {}' in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [lambda: plan.plan_run(count=10**9), lambda: plan.plan_run(minutes=math.nan),
     lambda: plan.plan_run(class_images=-1), lambda: plan.plan_run(pick=10**9),
     lambda: tokens.find_token(candidates=0), lambda: tokens.find_token(seed=-1)],
)  # fmt: skip
def test_functions_of_their_own_settings_check_them_too(wrong):
    with pytest.raises(BadConfig, match=" is "):
        wrong()


def test_an_evaluation_takes_no_minutes_that_are_none(tmp_path):
    with pytest.raises(BadConfig, match="minutes is nan"):
        evaluate.evaluate_run(Run(tmp_path), minutes=math.nan)


def test_a_path_from_the_home_folder_is_found_without_a_shell(tmp_path, monkeypatch):
    """As in a notebook's knob."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bank.toml").write_text('[[prompt]]\nid = "a"\ntext = "{person}"\n')
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    assert [p.id for p in load_prompts("~/bank.toml")] == ["a"] and find_photos("~")[0] == tmp_path / "a.jpg"
    assert Run("~/runs/me").folder == tmp_path / "runs" / "me" and Run("~nobody-at-all/x").folder.name == "x"


def test_scales_that_are_no_numbers_are_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pick", "--scales", "0.5", "strong"])
    assert stopped.value.code == 2 and "strong" in capsys.readouterr().err
