"""The table of families: its places exist, and a family without a cost table is loaded, but not planned."""

import json
from dataclasses import replace

import diffusers
import pytest
import transformers
from sdxl_files import sdxl_names, write_header

from headshotkit.config import GenerateConfig, TrainConfig
from headshotkit.config.bases import find_base
from headshotkit.config.families import FAMILIES
from headshotkit.config.pretrained import read_pretrained
from headshotkit.core.errors import BadConfig
from headshotkit.families import Family, weighing
from headshotkit.families.controls import Controls
from headshotkit.families.costs import FamilyCosts, costs_of, step_kind
from headshotkit.families.methods import Method
from headshotkit.families.places import code_at
from headshotkit.planning.forecast import expect_drawing, expect_minutes, expect_peak_gib
from headshotkit.planning.plan import plan_run

T4 = ("cuda", "Tesla T4")


def public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_places_of_a_family_exist(name):
    spec = FAMILIES[name]
    few_steps = {"use_few_steps", "drop_few_steps"}  # distilled LoRAs exist for SDXL alone
    assert public(Family) - few_steps <= set(dir(code_at(spec.code)))
    assert hasattr(diffusers, spec.pipeline) and all(hasattr(transformers, kind) for kind in spec.tokenizers.values())
    assert all(issubclass(code_at(place), Method) for place in spec.methods.values())
    assert not spec.controls or public(Controls) <= set(dir(code_at(spec.controls)))
    assert not spec.costs or isinstance(costs_of(name), FamilyCosts)
    assert not spec.kohya or callable(code_at(spec.kohya).kohya_names)


def test_a_base_belongs_to_one_family(tmp_path):
    pipelines = [spec.pipeline for spec in FAMILIES.values()]
    assert len(set(pipelines)) == len(pipelines)
    for name, spec in FAMILIES.items():
        if not spec.read_configs:
            index = tmp_path / name / "model_index.json"
            index.parent.mkdir()
            index.write_text(json.dumps({"_class_name": spec.pipeline}))
            assert read_pretrained(index.parent).family == name
    assert read_pretrained(write_header(tmp_path / "photon.safetensors", sdxl_names())).family == "sdxl"


@pytest.fixture
def uncounted(tmp_path, monkeypatch):
    """The name of a base of a new family: a record without a cost table, and an index that names its pipeline."""
    monkeypatch.setitem(FAMILIES, "new", replace(FAMILIES["flux"], pipeline="NewPipeline", costs=""))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model_index.json").write_text(json.dumps({"_class_name": "NewPipeline"}))
    return find_base(str(tmp_path / "new")).name


def test_without_a_cost_table_a_time_is_not_known(uncounted):
    base = find_base(uncounted)
    assert (base.family, base.counted, base.presets) == ("new", False, {})
    with pytest.raises(BadConfig) as refused:
        plan_run("t4", 50, 60, uncounted)
    assert "family, new" in refused.value.why and "--minutes" in refused.value.next_step
    train, generate = (kind.for_base(uncounted) for kind in (TrainConfig, GenerateConfig))
    assert expect_minutes(train, T4, False)[0] is None and expect_peak_gib(train, 0) is None
    assert expect_drawing(10, generate, T4)[0] is None
    weighing.demand_room_for_step(train, base.family, 1024, 4, 1)
    assert weighing.pictures_in_room(base, (1024, 1024), 4)[0] is None
    assert step_kind("lora", False, base.family) == "step"
