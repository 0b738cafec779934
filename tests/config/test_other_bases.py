"""Bases that are no presets, by their headers and configs alone: the files hold zeros, or a few bytes."""

import json
import shutil
from pathlib import Path

import pytest
from sdxl_files import sdxl_names, write_header

from headshotkit.cli import main
from headshotkit.config import GenerateConfig, PrepareConfig, RunSettings, TrainConfig
from headshotkit.config.bases import BASES, find_base, same_weights, stored_name
from headshotkit.config.run_settings import resolve
from headshotkit.core import runtime
from headshotkit.core.errors import BaseUnavailable, UnknownBase
from headshotkit.core.run import Run
from headshotkit.pipeline import run_base
from headshotkit.planning.plan import plan_run

MINI = runtime.data_path("mini", "base")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def file(tmp_path):
    return write_header(tmp_path / "photon.safetensors", sdxl_names())


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MINI, tmp_path / "my base")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_file_gets_the_settings_of_sdxl(file):
    base = find_base(str(file))
    assert base.is_file and base.counted and (base.family, base.like) == ("sdxl", "sdxl")
    assert base.name.startswith("photon@") and base.presets == BASES["sdxl"].presets and base.vae == ""
    found = resolve(GenerateConfig, base.name, RunSettings(count=3))
    assert (found.config.base, found.config.guidance_share, found.config.size_px) == (base.name, 0.6, 1024)
    assert found.origins["guidance_share"] == "preset sdxl"
    assert plan_run("t4", 50, 60, str(file)).choice == plan_run("t4", 50, 60, "sdxl").choice


def test_a_folder_gets_the_size_of_its_own_pictures(folder):
    base = find_base(str(folder))
    assert not base.is_file and not base.counted and base.name.startswith("my-base@")
    sizes = [kind.for_base(str(folder)).size_px for kind in (PrepareConfig, GenerateConfig)]
    assert sizes == [256, 256] and base.download_gb == pytest.approx(0.0464, abs=0.001)
    assert BASES["sdxl"].presets["PrepareConfig"] == {}, "the preset itself is unchanged"


def test_no_path_is_stored(file):
    """Neither by the settings of a run, nor by those of a stage, however they are made."""
    name = stored_name(str(file))
    assert "/" not in name and name == find_base(name).name
    made = [RunSettings(base=str(file)), TrainConfig(base=str(file)), GenerateConfig().replace(base=str(file)),
            PrepareConfig.for_base(str(file)), PrepareConfig.for_base(name)]  # fmt: skip
    assert {settings.base for settings in made} == {name}


def test_a_renamed_file_is_the_same_base(file, tmp_path):
    other = file.rename(tmp_path / "other.safetensors")
    one, two = stored_name(str(other)), stored_name(str(shutil.copy(other, tmp_path / "third.safetensors")))
    assert one != two and same_weights(one, two) and not same_weights(one, "sdxl")
    run = Run(tmp_path / "run")
    run.begin("dataset", PrepareConfig.for_base(one), {})
    assert run_base(run, RunSettings(base=str(tmp_path / "third.safetensors")))[0] == one
    assert run_base(run, RunSettings())[0] == one and run_base(run, RunSettings(base="mini"))[0] == "mini"


@pytest.mark.parametrize("change", ["weights", "config", "tokenizer", "trained"])
def test_a_changed_base_is_another_one(folder, change):
    name = stored_name(str(folder))
    if change == "config":
        edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    elif change == "tokenizer":
        (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    else:
        data = bytearray((folder / UNET).read_bytes())
        begin = len(data) // 3 if change == "trained" else len(data) - 8
        data[begin:] = bytes(byte ^ 1 for byte in data[begin:])
        (folder / UNET).write_bytes(data)
    assert not same_weights(stored_name(str(folder)), name)
    with pytest.raises(BaseUnavailable):
        find_base(name)


def test_a_base_that_was_moved_is_asked_for_again(file, tmp_path):
    name = stored_name(str(file))
    other = file.rename(tmp_path / "sub.safetensors")
    with pytest.raises(BaseUnavailable) as lost:
        find_base(name)
    assert "--base" in lost.value.next_step
    find_base(str(other))
    assert find_base(name).source == str(other)


def test_a_run_from_another_machine_asks_for_its_base(file, tmp_path, monkeypatch):
    name = stored_name(str(file))
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "empty"))
    with pytest.raises(BaseUnavailable):
        find_base(name)
    assert TrainConfig(base=name).base == name, "the run's manifests can still be read"


LORA = {"lora_unet_down_blocks_0.lora_down.weight": [4, 4]}
WRONG_FILES = {
    "sd15": {"model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3], "cond_stage_model.transformer.x": [4],
             "first_stage_model.x": [4]},
    "refiner": {**sdxl_names(), "conditioner.embedders.0.model.x": [4]},
    "inpainting": sdxl_names(channels=9),
    "lora": LORA,
    "vae": {"decoder.conv_in.weight": [4], "encoder.conv_in.weight": [4]},
    "flux": {"double_blocks.0.img_attn.norm.weight": [4]},
    "no autoencoder": {name: shape for name, shape in sdxl_names().items() if "first_stage" not in name},
    "edm": sdxl_names() | {"edm_mean": [4]},
    "nothing": {},
}  # fmt: skip
WRONG_FILES["refiner"].pop("conditioner.embedders.1.model.x")


@pytest.mark.parametrize("names", WRONG_FILES.values(), ids=WRONG_FILES)
def test_another_kind_of_file_is_refused(tmp_path, names):
    with pytest.raises(UnknownBase) as refused:
        find_base(str(write_header(tmp_path / "x.safetensors", names)))
    assert all((refused.value.happened, refused.value.why, refused.value.next_step))


@pytest.mark.parametrize(
    "how", ["cut", "long", "text", "endless", "empty", "json", "shapeless", "words", "ckpt", "fifo"]
)
def test_a_file_that_is_not_whole_is_refused(file, how):
    data = file.read_bytes()
    made = {"cut": data[:-1], "long": data + b"x", "text": b"version https://git-lfs.github.com/spec/v1", "empty": b"",
            "endless": b"\xff" * 100, "json": (3).to_bytes(8, "little") + b"[1]"}  # fmt: skip
    odd = {"shapeless": {"data_offsets": [0, 4]}, "words": {"shape": [1], "data_offsets": ["0", "4"]}}
    for name, tensor in odd.items():
        text = json.dumps({one: tensor for one in sdxl_names()}).encode()
        made[name] = len(text).to_bytes(8, "little") + text + bytes(4)
    if how == "ckpt":
        file = file.rename(file.with_suffix(".ckpt"))
    elif how == "fifo":
        file.unlink()
        import os

        os.mkfifo(file)
    else:
        file.write_bytes(made[how])
    with pytest.raises(UnknownBase):
        find_base(str(file))


@pytest.mark.parametrize(
    "spoil",
    {
        "no index": lambda f: (f / "model_index.json").unlink(),
        "damaged index": lambda f: (f / "model_index.json").write_text("{"),
        "a list": lambda f: (f / "model_index.json").write_text("[]"),
        "SD 1.5": lambda f: edit(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "no class": lambda f: edit(f / "model_index.json", _class_name=["x"]),
        "no weights": lambda f: (f / UNET).rename(f / "unet" / "diffusion_pytorch_model.bin"),
        "half weights": lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:1000]),
        "no config": lambda f: (f / "vae" / "config.json").unlink(),
        "inpainting": lambda f: edit(f / "unet" / "config.json", in_channels=25),
        "edm": lambda f: edit(f / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"]),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_folder_that_is_no_base_is_refused(folder, spoil):
    spoil[1](folder)
    with pytest.raises(UnknownBase):
        find_base(str(folder))


@pytest.mark.parametrize("command", ["prepare", "check", "plan", "token"])
@pytest.mark.parametrize("given", ["sd15", "./nowhere", "nowhere.safetensors", "lora", "folder", "owner/name"])
def test_the_command_line_ends_before_anything_is_done(tmp_path, monkeypatch, capsys, command, given):
    """Exit code 2, no run folder, and no torch. The hub is offline."""
    monkeypatch.chdir(tmp_path)
    write_header(tmp_path / "lora.safetensors", LORA)
    (tmp_path / "empty").mkdir()
    given = {"lora": "lora.safetensors", "folder": "empty"}.get(given, given)
    words = [command, "--base", given]
    words += {"check": [str(tmp_path), "--out", "run"], "prepare": ["--out", "run"]}.get(command, [])
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(("UnknownBase: ", "DownloadFailed: ")) and error.count("\n") == 3
    assert error.startswith("DownloadFailed: ") == (given == "owner/name")
    assert not (tmp_path / "run").exists()
