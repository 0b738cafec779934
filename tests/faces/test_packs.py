"""InsightFace's pack from a server on 127.0.0.1. The real one can't be had here: the archive holds the same recogniser
and landmark model, and another export of the same detector, so that file's pin is set to what is served."""

import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hub_server import Fault, Hub, serve

from headshotkit.core import downloads, locks, runtime
from headshotkit.core.errors import MissingModel
from headshotkit.core.run import sha256_of
from headshotkit.faces import packs, recognition

PACK = recognition.ONLINE_PACK


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the pack, and an empty cache."""
    models, folder = recognition.model_folder()[0], tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{PACK}.zip", "w") as archive:
        for name in packs.PACKS[PACK]:
            archive.write(models / name.replace("det_500m", "scrfd_500m_bnkps"), f"{PACK}/{name}")
    pins = packs.PACKS[PACK] | {"det_500m.onnx": sha256_of(models / "scrfd_500m_bnkps.onnx")}
    monkeypatch.setitem(packs.PACKS, PACK, pins)
    served = Hub()
    served.add("insight/face", folder)
    running = serve(served)
    monkeypatch.setattr(packs, "ADDRESS", served.address + "/insight/face/resolve/main/{pack}.zip")
    monkeypatch.setattr(downloads, "PATIENCE_S", 2)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADSHOTKIT_FACES", PACK)
    yield served
    served.closing.set()
    running.shutdown()
    running.server_close()


def cached():
    return sorted(
        p.relative_to(runtime.cache_path()).as_posix() for p in runtime.cache_path().rglob("*") if p.is_file()
    )


WHOLE = sorted(f"faces/{PACK}/{name}" for name in packs.PACKS[PACK])


def test_a_pack_is_downloaded_once_and_finds_faces(server, good_photo, monkeypatch):
    expected = recognition.detect_faces(good_photo)[0]
    recognition._insightface_models.cache_clear()
    try:
        found = recognition.detect_faces(good_photo)[0]
        assert Path(recognition._insightface_models()[0].model_file).is_relative_to(runtime.cache_path())
        assert np.allclose(found.box, expected.box)
        assert recognition.model_folder()[0] == runtime.cache_path("faces", PACK) and cached() == WHOLE
    finally:
        recognition._insightface_models.cache_clear()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault", [Fault("", "cut"), Fault("", "hang"), Fault("", 503, 2), Fault("", "short", 2)], ids=lambda f: str(f.kind)
)
def test_a_broken_transfer_is_gone_on_with(server, fault):
    server.faults.append(fault)
    packs.pack_folder(PACK)
    assert cached() == WHOLE and (fault.kind != "cut" or server.resumed_at[0] > 0)


def test_a_transfer_goes_on_in_the_next_process(server):
    server.faults.append(Fault("", "cut"))
    server.faults.append(Fault("", 404, 10))
    with pytest.raises(MissingModel) as failed:
        packs.pack_folder(PACK)
    assert failed.value.cause == "no such repository" and cached() == [f"faces/{PACK}.zip.part"]
    server.faults.clear()
    packs.pack_folder(PACK)
    assert server.resumed_at and cached() == WHOLE


def test_what_a_kill_left_half_unpacked_goes(server):
    half = runtime.cache_path("faces") / f".{PACK}.{locks.machine()}-{2**22 + 1}.part"
    half.mkdir(parents=True)
    (half / "w600k_mbf.onnx").write_bytes(b"half")
    packs.pack_folder(PACK)
    assert cached() == WHOLE and not half.exists()


@pytest.mark.parametrize("damage", ["half unpacked", "altered", "empty"])
def test_a_damaged_folder_is_mended(server, damage):
    folder = packs.pack_folder(PACK)
    for name in packs.PACKS[PACK]:
        if damage == "altered":
            (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"x")
        elif damage == "empty" or name.startswith("w600k"):
            (folder / name).unlink()
    assert packs.pack_folder(PACK) == folder and cached() == WHOLE


def test_a_packs_model_of_sex_is_taken_too_and_used_only_if_it_is_the_pinned_one(server, tmp_path):
    with zipfile.ZipFile(tmp_path / "served" / f"{PACK}.zip", "a") as archive:
        archive.writestr(f"{PACK}/{packs.SEX_MODEL}", b"another model")
    folder = packs.pack_folder(PACK)
    assert cached() == sorted([*WHOLE, f"faces/{PACK}/{packs.SEX_MODEL}"])
    recognition._sex_model.cache_clear()
    assert recognition.model_folder()[0] == folder and not recognition.knows_sex()
    recognition._sex_model.cache_clear()


def test_other_files_than_the_pinned_ones_are_refused(server, monkeypatch):
    monkeypatch.setitem(packs.PACKS[PACK], "2d106det.onnx", "0" * 64)
    with pytest.raises(MissingModel) as failed:
        packs.pack_folder(PACK)
    assert failed.value.cause == "transfer" and cached() == []


def test_insightfaces_own_folder_serves_if_it_is_whole(server):
    folder = shutil.copytree(packs.pack_folder(PACK), Path.home() / ".insightface" / "models" / PACK)
    shutil.rmtree(runtime.cache_path())
    assert packs.pack_folder(PACK) == folder and len(server.requests) == 1


def test_the_installed_package_comes_first_and_an_unknown_pack_is_refused(server, monkeypatch):
    monkeypatch.delenv("HEADSHOTKIT_FACES")
    assert recognition.OFFLINE_PACK in str(recognition.model_folder()[0]) and not server.requests
    monkeypatch.setenv("HEADSHOTKIT_FACES", "antelope")
    with pytest.raises(MissingModel):
        recognition.model_folder()


def test_the_package_and_the_pack_hold_the_same_recogniser_and_landmarks():
    models = recognition.model_folder()[0]
    pins = packs.PACKS[PACK]
    for name in ("w600k_mbf.onnx", "2d106det.onnx"):
        assert os.path.isfile(models / name) and sha256_of(models / name) == pins[name]
