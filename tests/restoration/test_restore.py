import hashlib
import io
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import note_again
from PIL import Image

from headshotkit import pipeline
from headshotkit.cli import main
from headshotkit.config import RestoreConfig, RunSettings
from headshotkit.core import runtime
from headshotkit.core.errors import BadWeights, CannotRestore
from headshotkit.faces import recognition
from headshotkit.restoration import restore
from headshotkit.restoration.restore import restore_headshots


def test_without_codeformer_headshots_are_handed_on_untouched(brief_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    manifest = restore_headshots(brief_run)
    assert "unchanged" in manifest["outcome"]
    said = " ".join(manifest["missing"])
    assert "$HEADSHOTKIT_CACHE/codeformer/codeformer.pth" in said and "https://" in said
    assert str(tmp_path) not in said
    for file in brief_run.manifest("headshots")["delivered"]:
        assert (brief_run.path("restored") / file).read_bytes() == (brief_run.path("headshots") / file).read_bytes()


def test_weights_that_are_not_the_known_file_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(runtime, "has_module", lambda name: True)
    (tmp_path / "codeformer").mkdir()
    (tmp_path / "codeformer" / "codeformer.pth").write_bytes(b"something else")
    path, digest, missing = restore.find_codeformer(RestoreConfig())
    assert path is None and not digest and "sha256 differs" in missing[0]


class Bomb:
    """Makes a folder when a pickle of it is run."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def bad_weights(folder) -> dict[str, bytes]:
    """Files that are no weights of a `torch.nn.Linear(2, 2)`, the stand-in for CodeFormer's network here."""
    right = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    return {
        "empty": b"", "a web page": b"<html>404</html>", "cut": saved({"params_ema": right})[:300],
        "another network's": saved({"params_ema": {"a": torch.zeros(2)}}), "a list": saved([1]),
        "a pickle": pickle.dumps(Bomb(folder / "run")),
        "a pickle in a zip": saved({"params_ema": Bomb(folder / "run")}),
        "not finite": saved(right | {"bias": torch.full((2,), torch.nan)}),
        "other shapes": saved(right | {"bias": torch.zeros(3)}), "no table": saved({"params_ema": 3}),
    }  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    """CodeFormer's package as if it were installed, with a small network in its network's place."""
    monkeypatch.setattr(runtime, "has_module", lambda name: True)
    monkeypatch.setattr(restore, "codeformer_class", lambda: lambda: torch.nn.Linear(2, 2))


def test_bad_weights_are_refused_and_never_run(stand_in, tmp_path):
    for name, data in bad_weights(tmp_path).items():
        (tmp_path / "own.pth").write_bytes(data)
        with pytest.raises(BadWeights) as caught:
            restore.load_codeformer(tmp_path / "own.pth")
        assert "own.pth" in caught.value.happened and not (tmp_path / "run").exists(), name
    (tmp_path / "own.pth").write_bytes(saved({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}))
    assert restore.load_codeformer(tmp_path / "own.pth").weight.sum() == 4


def test_memory_that_gives_out_is_not_said_to_be_damage(stand_in, tmp_path, monkeypatch):
    """Injected where torch reads the file."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")))
    with pytest.raises(RuntimeError, match="bad_alloc"):
        restore.load_codeformer(tmp_path / "own.pth")


def handed_on(run) -> bool:
    files = run.manifest("headshots")["delivered"]
    folders = run.path("restored"), run.path("headshots")
    return all(len({(folder / file).read_bytes() for folder in folders}) == 1 for file in files)


@pytest.mark.parametrize("place", ["empty.pth", "none.pth", "folder"])
def test_weights_given_by_hand_that_cannot_be_used_are_bad_input(brief_run, stand_in, tmp_path, capsys, place):
    """Each time; and the headshots are handed on all the same, so that the stages after it go on."""
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    command = ["restore", "--codeformer-weights", str(tmp_path / place), "--out", str(brief_run.folder)]
    for _ in range(2):
        assert main(command) == 2
        assert "CannotRestore" in capsys.readouterr().err
    assert handed_on(brief_run) and brief_run.has("restored") and brief_run.manifest("restored")["missing"]


def test_good_weights_given_by_hand_without_the_package_are_not_ignored(brief_run, monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "has_module", lambda name: name != restore.PACKAGE)
    (tmp_path / "own.pth").write_bytes(saved({}))
    with pytest.raises(CannotRestore) as caught:
        restore_headshots(brief_run, RestoreConfig(codeformer_weights=str(tmp_path / "own.pth")))
    assert restore.PIP in caught.value.next_step and handed_on(brief_run)


def test_bad_weights_in_the_cache_are_no_error(brief_run, stand_in, monkeypatch, tmp_path):
    """Nobody asked for them by name: the outcome says what is wrong."""
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path))
    (tmp_path / "codeformer").mkdir()
    data = bad_weights(tmp_path)["not finite"]
    (tmp_path / "codeformer" / "codeformer.pth").write_bytes(data)
    monkeypatch.setattr(restore, "WEIGHTS_SHA256", hashlib.sha256(data).hexdigest())
    manifest = restore_headshots(brief_run)
    assert "NaN" in manifest["missing"][0] and handed_on(brief_run)


def test_a_run_does_the_stages_after_it_and_then_says_what_could_not_be_done(brief_run, five_photos, monkeypatch):
    """The check stands for them here, as it is done already."""
    stages = tuple(pipeline.stage_named(name) for name in ("restore", "check"))
    monkeypatch.setattr(pipeline, "STAGES", stages)
    lines = []
    with pytest.raises(CannotRestore):
        options = RunSettings(base="mini", codeformer_weights="none.pth")
        pipeline.make_headshots(five_photos, brief_run.folder, options, tell=lines.append)
    assert [line.split()[0] for line in lines] == ["note", "base", "restore", "check"] and handed_on(brief_run)


def test_pasting_back_touches_the_face_alone(good_photo):
    photo = np.full((1400, 1200, 3), 128, np.uint8)
    photo[300:1068, 300:1068] = good_photo
    face = recognition.detect_faces(photo)[0]
    aligned = recognition.align_face(photo, face.points, restore.SIDE_PX, restore.TEMPLATE)
    same = restore.paste_back(photo, aligned, face.points)
    assert np.abs(same.astype(int) - photo).mean() < 2
    black = restore.paste_back(photo, np.zeros_like(aligned), face.points)
    x, y = face.points[2].astype(int)
    assert (black[y, x] == 0).all() and (black[:200] == photo[:200]).all()


@pytest.fixture(scope="module")
def random_codeformer(tmp_path_factory):
    """Weights for the real network class, made at random: they prove loading, pasting and the identity wall.

    They prove nothing about how a restored face looks: CodeFormer's own weights can't be had offline.
    """
    if not runtime.has_module(restore.PACKAGE):
        pytest.skip(f"CodeFormer's package is not installed: {restore.PIP}")
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("codeformer") / "random.pth"
    torch.save({"params_ema": restore.codeformer_class()().state_dict()}, path)
    return path


def test_the_real_network_class_runs_and_loses_no_identity(brief_run, random_codeformer, good_photo):
    delivered = brief_run.manifest("headshots")["delivered"]
    for file in delivered[1:]:  # the network takes 15 s a face, so one face is enough
        Image.new("RGB", (128, 128)).save(brief_run.path("headshots") / file)
    Image.fromarray(good_photo).resize((256, 256)).save(brief_run.path("headshots") / delivered[0])
    note_again(brief_run, "headshots")
    manifest = restore_headshots(brief_run, RestoreConfig(codeformer_weights=str(random_codeformer), fidelity=0.5))
    rows = {row["file"]: row for row in manifest["restored"]}
    first = rows[delivered[0]]
    assert first["identity_before"] > 0.5 and first["kept"] == "unrestored"
    assert first["identity_after"] is None or first["identity_after"] < first["identity_before"]
    assert all(rows[f]["why"] == "0 faces" for f in delivered[1:])
