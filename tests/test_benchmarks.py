"""The scripts for the real size: the package loads what they build, and each goes through with small networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file

from headshotkit.config.bases import Base
from headshotkit.core import commits
from headshotkit.families import load_tokenizers
from headshotkit.families.sdxl import SdxlFamily

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def real_size(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import real_size

    return real_size


def test_every_weight_written_is_loaded_in_its_place(real_size, tmp_path):
    """Under the hub's names; nothing is left at what the class draws by itself."""
    real_size.write_base(tmp_path, real_size.SMALL)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path, variant="fp16", add_watermarker=False)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (file,) = (tmp_path / part).glob("*.fp16.safetensors")
        state = getattr(pipeline, part).state_dict()
        written = load_file(file)
        if part == "text_encoder":
            written = {name.removeprefix("text_model."): tensor for name, tensor in written.items()}
        assert written.keys() == state.keys()
        assert all(torch.equal(tensor.float(), state[name].float()) for name, tensor in written.items())
    text = "photo of ohwx woman, studio"
    known = load_tokenizers("mini")[0](text).input_ids
    assert pipeline.tokenizer(text).input_ids == pipeline.tokenizer_2(text).input_ids == known
    assert (pipeline.tokenizer.pad_token_id, pipeline.tokenizer_2.pad_token_id) == (49407, 0)


def test_on_a_cpu_the_autoencoder_computes_in_the_order_of_its_convolutions(real_size, tmp_path, monkeypatch):
    """It takes a third less memory so, and pictures stay the same to rounding."""
    real_size.write_base(tmp_path / "base", real_size.SMALL)
    real_size.write_vae(tmp_path / "vae", real_size.SMALL)
    plain = AutoencoderKL.from_pretrained(tmp_path / "vae").bfloat16().float()
    monkeypatch.setenv("HEADSHOTKIT_DTYPE", "bfloat16")
    family = SdxlFamily(Base("small", "sdxl", str(tmp_path / "base"), "random", vae=str(tmp_path / "vae")))
    vae = family.pipeline.vae.float()
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(vae.decode(latents).sample, plain.decode(latents).sample, atol=1e-4)


def test_the_cache_has_main_and_the_commit_that_is_pinned(real_size, tmp_path, monkeypatch):
    pinned = "a1" * 20
    monkeypatch.setattr(commits, "COMMITS", {"somebody/something": pinned})
    place = real_size.snapshot(tmp_path, "somebody/something")
    repository = tmp_path / "hub" / "models--somebody--something"
    assert (repository / "snapshots" / pinned).resolve() == place.resolve()
    assert (repository / "refs" / "main").read_text() == place.name


def run_small(script: str, *words: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), "--small", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_real_size_script_goes_through_a_whole_run(tmp_path):
    """Killed amid its training, at small size; the exit code says whether all of it was right."""
    assert "train, killed" in run_small("real_size.py", "--folder", str(tmp_path))


@pytest.mark.slow
def test_the_gpu_script_does_every_row_on_a_cpu(tmp_path):
    run_small("gpu_proof.py", "--device", "cpu", "--out", str(tmp_path))
    rows = {row["row"]: row for row in json.loads((tmp_path / "results.json").read_text()) if "row" in row}
    left_out = {name for name, row in rows.items() if "left_out" in row}
    assert len(rows) == 13 and left_out <= {"step-768-adamw8bit", "script-1024-checkpointing"}
    assert all(row["s"] > 0 for name, row in rows.items() if name not in left_out)
    assert (tmp_path / "picture.png").is_file() and (tmp_path / "picture-channels-last.png").is_file()
