# ruff: noqa: F811 (fixtures that are imported)
"""CodeFormer: its weights are found, fetched and refused; its real network class runs on random weights.

They prove loading, pasting and the search, and nothing about how a restored face looks: CodeFormer's own weights can't
be had offline.
"""

import hashlib
import time

import numpy as np
import pytest
import torch
from codeformer_weights import bad_weights, random_codeformer, saved, stand_in  # noqa: F401 (fixtures)
from hub_server import Fault, Hub, serve

from headshotkit.config import RestoreConfig
from headshotkit.core import downloads, runtime
from headshotkit.core.errors import BadWeights
from headshotkit.faces import recognition
from headshotkit.restoration import codeformer


def test_weights_that_are_not_the_known_file_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(runtime, "has_module", lambda name: True)
    (tmp_path / "codeformer").mkdir()
    (tmp_path / "codeformer" / "codeformer.pth").write_bytes(b"something else")
    path, digest, missing = codeformer.find_codeformer(RestoreConfig())
    assert path is None and not digest and "sha256 differs" in missing[0]


def test_bad_weights_are_refused_and_never_run(stand_in, tmp_path):
    for name, data in bad_weights(tmp_path).items():
        (tmp_path / "own.pth").write_bytes(data)
        with pytest.raises(BadWeights) as caught:
            codeformer.load_codeformer(tmp_path / "own.pth")
        assert "own.pth" in caught.value.happened and not (tmp_path / "run").exists(), name
    (tmp_path / "own.pth").write_bytes(saved({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}))
    assert codeformer.load_codeformer(tmp_path / "own.pth").weight.sum() == 4


def test_memory_that_gives_out_is_not_said_to_be_damage(stand_in, tmp_path, monkeypatch):
    """Injected where torch reads the file."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")))
    with pytest.raises(RuntimeError, match="bad_alloc"):
        codeformer.load_codeformer(tmp_path / "own.pth")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the weights, which are other bytes here, and an empty cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    data = np.random.default_rng(0).bytes(700_000)
    (folder / "codeformer.pth").write_bytes(data)
    served = Hub()
    served.add("sczhou/CodeFormer", folder)
    running = serve(served)
    monkeypatch.setattr(codeformer, "WEIGHTS_URL", served.address + "/sczhou/CodeFormer/resolve/main/codeformer.pth")
    monkeypatch.setattr(codeformer, "WEIGHTS_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(downloads, "PATIENCE_S", 2)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(runtime, "has_module", lambda name: True)
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    yield served
    served.closing.set()
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("fault", [None, Fault("", "cut"), Fault("", 503, 2)], ids=lambda f: str(f and f.kind))
def test_weights_are_fetched_once_after_the_licence_is_accepted(server, capfd, fault):
    assert codeformer.find_codeformer(RestoreConfig())[0] is None and not server.requests
    if fault:
        server.faults.append(fault)
    path, digest, missing = codeformer.find_codeformer(RestoreConfig(accept_licence=True))
    assert path.is_file() and digest == codeformer.WEIGHTS_SHA256 and not missing
    assert codeformer.LICENCE.split()[0] in "".join(capfd.readouterr())
    asked = len(server.requests)
    assert codeformer.find_codeformer(RestoreConfig())[0] == path and len(server.requests) == asked
    assert [file.name for file in path.parent.iterdir()] == ["codeformer.pth"]


def test_other_bytes_than_the_published_are_not_kept(server, monkeypatch):
    monkeypatch.setattr(codeformer, "WEIGHTS_SHA256", "0" * 64)
    path, _, missing = codeformer.find_codeformer(RestoreConfig(accept_licence=True))
    assert path is None and missing and not list(runtime.cache_path("codeformer").iterdir())


@pytest.mark.slow  # 15 s a face; test_restore asks the same network for one fidelity
def test_the_real_network_class_restores_each_fidelity(random_codeformer, good_photo):
    face = recognition.detect_faces(good_photo)[0]
    restored = codeformer.CodeFormer(codeformer.load_codeformer(random_codeformer)).of(good_photo, [face])
    one, other = restored(0.0), restored(1.0)
    assert one.shape == good_photo.shape and one.dtype == np.uint8
    assert not np.array_equal(one, other) and not np.array_equal(one, good_photo)
