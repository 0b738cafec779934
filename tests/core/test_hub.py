"""Downloads by huggingface_hub's own client from a small hub on 127.0.0.1. Pauses between attempts are skipped, and the
client's address, patience and cache are set where it keeps them; errors of hf_xet, which talks to no such hub, are
raised in its place."""

import json
import re
import shutil
import time
from dataclasses import replace

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL
from hub_server import Fault, Hub, serve

from headshotkit.config import bases, few_steps
from headshotkit.core import commits, downloads, hub, runtime
from headshotkit.core.errors import BaseUnavailable, DownloadFailed, UnknownBase
from headshotkit.dataset import captioners
from headshotkit.families import load_family, load_tokenizers, weights_here
from headshotkit.families.sdxl import SdxlFamily

SOURCE, REAL, VAE = "someone/small", "someone/base", "someone/vae"
WANTED = hub.Wanted(SOURCE, "the weights of base 'net'", "use the embedded base: --base mini", size_gb=7.0)
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded base as it would lie on the hub, its U-Net also under the name of float16 weights."""
    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(runtime.data_path("mini", "base"), folder)
    shutil.copy(folder / UNET, folder / UNET.replace(".safetensors", ".fp16.safetensors"))
    (folder / "vae_1_0").mkdir()
    for name in ("unet/diffusion_pytorch_model.bin", "vae_1_0/model.safetensors", "whole.safetensors"):
        (folder / name).write_bytes(b"x" * 1000)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """An autoencoder of random weights: it proves that one of its own is loaded."""
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Files of a base by name and of a few bytes; they are downloaded, never loaded."""
    folder = tmp_path_factory.mktemp("small")
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "U"], "tokenizer": ["transformers", "T"]}
    for name in ("unet/config.json", "tokenizer/tokenizer.json", "config.json", UNET):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(f"{name} ".encode() * 10_000)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def server(small, vae, tmp_path, monkeypatch):
    """A hub with the small base and an autoencoder, an empty cache, and the client turned to it."""
    made = Hub()
    made.add(SOURCE, small)
    made.add(VAE, vae)
    running = serve(made)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", made.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "loaded", {})
    yield made
    made.closing.set()
    running.shutdown()
    running.server_close()


def files_in(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def load(server, base):
    """The base that the hub has at REAL, loaded with the other autoencoder."""
    server.add(REAL, base)
    return SdxlFamily(replace(bases.find_base("mini"), name="net", source=REAL, vae=VAE, download_gb=0.1))


def test_a_base_is_downloaded_once_and_loads_without_the_hub(server, base, capsys):
    family = load(server, base)
    assert REAL in capsys.readouterr().err
    assert hub.commits_of(REAL, VAE) == {name: server.repositories[name][0] for name in (REAL, VAE)}
    names = asked_for(server, REAL)
    assert UNET in names and not names & {"unet/diffusion_pytorch_model.bin", "whole.safetensors"}
    assert not any(name.startswith(("vae/", "vae_1_0/")) for name in names)
    asked = len(server.requests)
    again = load(server, base)
    again.restore_unet()
    assert len(server.requests) == asked, server.requests[asked:]
    assert "downloading" not in capsys.readouterr().err
    assert all((a == b).all() for a, b in zip(*(f.pipeline.unet.parameters() for f in (family, again)), strict=True))


def asked_for(server, name):
    """The files that were asked of a repository."""
    return {line.split("/", 5)[5] for line in server.requests if line.startswith(f"GET /{name}/resolve/")}


@pytest.mark.parametrize("there", [True, False])
def test_float16_files_are_loaded_where_there_are_any(server, base, monkeypatch, tmp_path, there):
    """Without them diffusers ends in `variant=fp16, but no such modeling files are available`."""
    monkeypatch.setattr(runtime, "choose_dtype", lambda _: (torch.bfloat16, "to have float16 files loaded"))
    half = UNET.replace(".safetensors", ".fp16.safetensors")
    if not there:
        base = shutil.copytree(base, tmp_path / "single")
        (base / half).unlink()
    assert load(server, base).pipeline.unet.dtype == torch.bfloat16
    assert asked_for(server, REAL) & {half, UNET} == {half if there else UNET}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET /api/models/", "hang"),
        Fault("GET /api/models/", 429, 2),
        Fault("GET /api/models/", 503, 2),
        Fault(f"GET /{SOURCE}/resolve", "hang", 2),
        Fault(UNET, "cut", 3),
        Fault(f"GET /{SOURCE}/resolve", 500, 2),
        Fault("HEAD", 502, 2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.where}",
)
def test_what_passes_is_tried_again(server, fault):
    server.faults.append(fault)
    folder = hub.fetch(WANTED)
    assert fault.times == 0
    assert (folder / UNET).read_bytes() == (server.repositories[SOURCE][1] / UNET).read_bytes()


def test_a_transfer_that_broke_off_goes_on_where_it_was(server):
    server.faults.append(Fault(f"GET /{SOURCE}/resolve/{server.repositories[SOURCE][0]}/{UNET}", "cut"))
    folder = hub.fetch(WANTED)
    (start,) = server.resumed_at
    assert 0 < start < (folder / UNET).stat().st_size


def test_finished_files_are_kept_for_the_next_call(server):
    server.faults.append(Fault(f"/{UNET}", 500, 1000))
    with pytest.raises(DownloadFailed) as stopped:
        hub.fetch(WANTED)
    assert stopped.value.cause == "server"
    server.faults.clear()
    before = server.sent
    hub.fetch(WANTED)
    assert server.sent - before == (server.repositories[SOURCE][1] / UNET).stat().st_size


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("", "hang", 1000), "no network"),
        (Fault("", 429, 1000), "rate limit"),
        (Fault("", 503, 1000), "server"),
        (Fault("", 403, 1000, "GatedRepo"), "gated"),
        (Fault("", 401, 1000, "GatedRepo"), "gated"),
        (Fault("", 404, 1000, "RepoNotFound"), "no such repository"),
        (Fault("", 404, 1000, "RevisionNotFound"), "no such commit"),
        (Fault("unet/config.json", 404, 1000, "EntryNotFound"), "no such file"),
        (Fault(f"GET /{SOURCE}/resolve", 429, 1000), "rate limit"),
        (Fault(UNET, "short", 1000), "transfer"),
    ],
    ids=lambda value: f"{value.kind} {value.where} {value.code}" if isinstance(value, Fault) else value,
)
def test_what_does_not_pass_is_told_apart(server, fault, cause):
    server.faults.append(fault)
    with pytest.raises(DownloadFailed) as failed:
        hub.fetch(WANTED)
    assert failed.value.cause == cause, failed.value
    assert all((failed.value.happened, failed.value.why, failed.value.next_step)) and "{" not in str(failed.value)


def test_without_a_network_what_was_downloaded_still_loads(server, monkeypatch):
    folder = hub.fetch(WANTED)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch(WANTED) == folder
    shutil.rmtree(runtime.cache_path("hub"))  # as where another program filled the hub's cache
    monkeypatch.setitem(commits.COMMITS, SOURCE, folder.name)
    assert hub.fetch(WANTED) == folder
    (folder / UNET).unlink()
    with pytest.raises(DownloadFailed) as failed:
        hub.fetch(replace(WANTED, source="someone/else"))
    assert failed.value.cause == "offline"


def test_a_file_that_was_lost_is_downloaded_again(server):
    folder = hub.fetch(WANTED)
    (folder / UNET).resolve().write_bytes(b"half")
    (folder / UNET).unlink()
    assert (hub.fetch(WANTED) / UNET).stat().st_size == (server.repositories[SOURCE][1] / UNET).stat().st_size


def test_a_disk_without_room_is_told_before_anything_is_downloaded(server, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadFailed) as failed:
        hub.fetch(WANTED)
    assert failed.value.cause == "disk full" and server.sent < 10_000


def test_what_is_pinned_is_asked_for_by_its_commit(server, monkeypatch):
    commit = server.repositories[SOURCE][0]
    monkeypatch.setitem(commits.COMMITS, SOURCE, commit)
    assert hub.fetch(WANTED).name == commit
    assert not any("/main" in line for line in server.requests)
    monkeypatch.setitem(commits.COMMITS, SOURCE, "0" * 40)
    with pytest.raises(DownloadFailed) as failed:
        hub.fetch(WANTED)
    assert failed.value.cause == "no such commit"


def test_what_was_not_pinned_stays_at_the_commit_that_came_first(server):
    first = hub.fetch(WANTED)
    moved = ("f" * 40, server.repositories[SOURCE][1])
    server.repositories[SOURCE] = moved
    assert hub.fetch(WANTED) == first and hub.commit_of(SOURCE) == first.name


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("RuntimeError('Data processing error: CAS service error : ReqwestMiddleware Error')", "transfer"),
        ("OSError(28, 'No space left on device')", "disk full"),
        ("OSError(122, 'Disk quota exceeded')", "disk full"),
        ("RuntimeError('Data processing error: IO error: No space left on device')", "disk full"),
        ("PermissionError(13, 'Permission denied')", "not writable"),
        ("ValueError('something new')", "unknown"),
    ],
)  # fmt: skip
def test_what_the_transfer_raises_is_told_apart(server, monkeypatch, raised, code):
    error, calls = eval(raised), []

    def fail(*_, **__):
        calls.append(huggingface_hub.constants.HF_HUB_DISABLE_XET)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DownloadFailed) as failed:
        hub.fetch(WANTED)
    assert failed.value.cause == code and failed.value.__cause__ is error
    passing = code == "transfer"
    assert len(calls) == (1 + len(downloads.WAITS_S) if passing else 1)
    assert not passing or [bool(off) for off in calls] == [False, True, True]  # the second way is plain HTTP
    assert not huggingface_hub.constants.HF_HUB_DISABLE_XET


def test_the_bars_that_libraries_hide_show_while_something_is_downloaded(server, monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    download, hidden = huggingface_hub.snapshot_download, []

    def look(*given, **named):
        hidden.append(are_progress_bars_disabled())
        return download(*given, **named)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", look)
    disable_progress_bars()
    try:
        hub.fetch(WANTED)
        assert hidden == [False] and are_progress_bars_disabled()
    finally:
        enable_progress_bars()


def test_a_damaged_file_in_the_cache_is_no_traceback(server, base):
    server.add(REAL, base)
    folder = hub.fetch(replace(WANTED, source=REAL, without=("vae",)))
    size = (folder / UNET).stat().st_size
    (folder / UNET).resolve().write_bytes(b"\xff" * size)
    with pytest.raises(BaseUnavailable) as failed:
        load(server, base)
    assert str(folder) in failed.value.happened


def test_tokenizers_alone_are_small(server, base, monkeypatch):
    server.add(REAL, base)
    monkeypatch.setitem(bases.BASES, "net", replace(bases.find_base("mini"), name="net", source=REAL, download_gb=0.1))
    assert all(len(tokenizer) > 1000 for tokenizer in load_tokenizers("net"))
    assert not any(line.endswith("safetensors") for line in server.requests)


def test_a_hub_id_is_a_base(server, base):
    """Its kind is known from a few kB of configs; its weights are loaded like a preset's."""
    server.add(REAL, base)
    found = bases.find_base(REAL)
    assert (found.name, found.source, found.family, found.like) == (REAL, REAL, "sdxl", "sdxl")
    assert found.presets["GenerateConfig"]["size_px"] == 256 and server.sent < 10_000
    assert asked_for(server, REAL) == {"model_index.json", "unet/config.json", "vae/config.json"}
    assert not weights_here(REAL)
    family = load_family(REAL)
    assert family.pipeline.unet.config.sample_size == 16 and weights_here(REAL)
    asked = len(server.requests)
    assert bases.choose_base(REAL)[0] == REAL and len(server.requests) == asked
    assert hub.commits_of(*family.base.sources) == {REAL: server.repositories[REAL][0]}


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", None])
def test_a_repository_of_another_kind_is_no_base(server, tmp_path, kind):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lora.safetensors").write_bytes(b"x" * 10_000)
    if kind:
        (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    server.add("someone/other", tmp_path / "other")
    with pytest.raises(UnknownBase):
        bases.find_base("someone/other")
    assert server.sent < 1000


def test_a_hub_id_that_is_not_there_is_told_from_no_network(server, monkeypatch):
    for offline, cause in (False, "no such repository"), (True, "offline"):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(DownloadFailed) as failed:
            bases.find_base("someone/nothing")
        assert failed.value.cause == cause and failed.value.next_step


def test_a_folder_of_float16_files_alone_is_loaded(base, tmp_path):
    """As a download of a base's fp16 variant leaves it; the U-Net's only, here."""
    place = shutil.copytree(base, tmp_path / "halves", ignore=shutil.ignore_patterns("vae_1_0", "*.bin"))
    for file in place.glob("*/*.safetensors"):
        half = file.name.replace(".safetensors", ".fp16.safetensors")
        file.rename(file.with_name(half)) if ".fp16" not in file.name else None
    (place / "whole.safetensors").unlink()
    assert load_family(str(place)).pipeline.unet.dtype == torch.float32


def test_one_file_of_a_repository(server):
    wanted = hub.Wanted(VAE, "the few-step LoRA", "leave it out", files=("config.json",))
    assert files_in(hub.fetch(wanted)) == {"config.json"}
    with pytest.raises(DownloadFailed) as failed:
        hub.fetch(replace(wanted, files=("other.safetensors",)))
    assert failed.value.cause == "no such file"


def test_every_download_is_pinned():
    sources = {s for base in bases.BASES.values() for s in (base.source, base.vae, base.controlnet, base.refiner) if s}
    sources |= {few.source for few in few_steps.FEW_STEPS.values()}
    sources |= {recipe.weights for recipe in captioners.RECIPES.values()}
    hosted = {source for source in sources if not source.startswith("data:")}
    assert hosted == set(commits.COMMITS)
    assert all(commit is None or re.fullmatch("[0-9a-f]{40}", commit) for commit in commits.COMMITS.values())
