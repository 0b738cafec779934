import numpy as np
import pytest
from conftest import note_again
from PIL import Image

from headshotkit import faces, restore, runtime
from headshotkit.config import RestoreConfig
from headshotkit.restore import restore_headshots


def test_without_codeformer_headshots_are_handed_on_untouched(brief_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    manifest = restore_headshots(brief_run)
    assert "untouched" in manifest["outcome"]
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
    path, missing = restore.find_codeformer(RestoreConfig())
    assert path is None and "sha256 differs" in missing[0]


def test_pasting_back_touches_the_face_alone(good_photo):
    photo = np.full((1400, 1200, 3), 128, np.uint8)
    photo[300:1068, 300:1068] = good_photo
    face = faces.detect_faces(photo)[0]
    aligned = faces.align_face(photo, face.points, restore.SIDE_PX, restore.TEMPLATE)
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
    manifest = restore_headshots(brief_run, RestoreConfig(weights=str(random_codeformer), fidelity=0.5))
    rows = {row["file"]: row for row in manifest["restored"]}
    first = rows[delivered[0]]
    assert first["identity_before"] > 0.5 and first["kept"] == "unrestored"
    assert first["identity_after"] is None or first["identity_after"] < first["identity_before"]
    assert all(rows[f]["why"] == "0 faces" for f in delivered[1:])
