"""Runs on bases that are no presets: a copy of the embedded base in a folder of its own, and a single file.

The single file is a small SDXL of random weights, whose configs stand in for SDXL 1.0's: it proves plumbing only.
"""

import json
import shutil

import pytest
from safetensors.torch import save_file
from sdxl_files import original_names, small_sdxl

from headshotkit.cli import main
from headshotkit.config.bases import stored_name
from headshotkit.core import runtime
from headshotkit.families import sdxl_single_file
from headshotkit.training.export import header_of

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(runtime.data_path("mini", "base"), tmp_path / "private" / "photon")


@pytest.fixture
def file(tmp_path, monkeypatch):
    pipeline, path = small_sdxl(), tmp_path / "private" / "photon.safetensors"
    pipeline.save_pretrained(tmp_path / "layout")
    path.parent.mkdir()
    save_file(original_names(pipeline), path)
    monkeypatch.setattr(sdxl_single_file, "LAYOUT", tmp_path / "layout")
    return path


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_on_a_base_given_by_its_path(small_run, request, tmp_path, capsys, kind):
    """Only the first command names the base. Nothing that is written holds its path."""
    base, out = request.getfixturevalue(kind), ["--out", str(small_run.folder)]
    sized = ["128"] if kind == "file" else []
    assert main(["prepare", "--base", str(base), *["--prepare-size-px"] * bool(sized), *sized, *out]) == 0
    assert main(["train", "--steps", "2", *out]) == 0
    drawing = ["--count", "1", "--sampler-steps", "2", "--max-attempts", "1"]
    assert main(["generate", *drawing, *["--generate-size-px"] * bool(sized), *sized, *out]) == 0, capsys.readouterr()
    assert main(["export", str(tmp_path / "me.safetensors"), *out]) == 0
    name, size = stored_name(str(base)), 128 if sized else 256
    manifests = [small_run.manifest(stage) for stage in ("dataset", "lora", "headshots")]
    assert [manifest["config"]["base"] for manifest in manifests] == [name] * 3
    assert manifests[1]["lora"]["base"] == name
    assert [h["size_px"] for h in manifests[2]["headshots"]] == [[size, size]]
    assert header_of(tmp_path / "me.safetensors")["ss_sd_model_name"] == name
    written = [tmp_path / "me.safetensors", *small_run.folder.rglob("*")]
    texts = [path.read_bytes() for path in written if path.is_file()]
    assert len(texts) > 20 and not any(b"private" in text for text in texts)


def test_results_of_a_changed_base_are_not_mixed(small_run, folder, capsys):
    """Without --base the run stops; with it a later stage refuses the LoRA of the earlier files."""
    out = ["--out", str(small_run.folder)]
    assert main(["prepare", "--base", str(folder), *out]) == 0
    assert main(["train", "--steps", "1", *out]) == 0
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[:-200_000] + bytes(200_000))
    capsys.readouterr()
    before = small_run.manifest("lora")
    for given, error in ([], "BaseUnavailable: "), (["--base", str(folder)], "BadLora: "):
        assert main(["generate", *given, *out]) == 2
        assert capsys.readouterr().err.splitlines()[-3].startswith(error)
    assert small_run.manifest("lora") == before and not small_run.peek("headshots")
    assert main(["prepare", "--base", str(folder), *out]) == 0
    assert [place.name for place in small_run.earlier()] == ["dataset-1", "dataset-2"]
    assert json.dumps(small_run.manifest("dataset")["config"]).count(stored_name(str(folder))) == 1
