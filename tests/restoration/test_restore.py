# ruff: noqa: F811 (fixtures that are imported)
"""The stage that restores the headshots of a run, with the embedded restorer, with CodeFormer and with none."""

import hashlib
import shutil

import numpy as np
import pytest
from codeformer_weights import bad_weights, random_codeformer, saved, stand_in  # noqa: F401 (fixtures)
from conftest import note_again
from PIL import Image

from headshotkit import pipeline
from headshotkit.cli import main
from headshotkit.config import RestoreConfig, RunSettings
from headshotkit.core import runtime
from headshotkit.core.errors import CannotRestore
from headshotkit.core.run import write_json
from headshotkit.restoration import codeformer, embedded, restore
from headshotkit.restoration.embedded_net import FaceRestorer, save_restorer
from headshotkit.restoration.restore import restore_headshots


def test_without_codeformer_headshots_are_handed_on_untouched(brief_run, monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "weights_of", lambda folder: (None, ""))
    manifest = restore_headshots(brief_run)
    assert "unchanged" in manifest["outcome"]
    said = " ".join(manifest["missing"])
    assert "$HEADSHOTKIT_CACHE/codeformer/codeformer.pth" in said and "https://" in said
    assert str(tmp_path) not in said
    for file in brief_run.manifest("headshots")["delivered"]:
        assert (brief_run.path("restored") / file).read_bytes() == (brief_run.path("headshots") / file).read_bytes()


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
    monkeypatch.setattr(runtime, "has_module", lambda name: name != codeformer.PACKAGE)
    (tmp_path / "own.pth").write_bytes(saved({}))
    with pytest.raises(CannotRestore) as caught:
        restore_headshots(brief_run, RestoreConfig(codeformer_weights=str(tmp_path / "own.pth")))
    assert codeformer.PIP in caught.value.next_step and handed_on(brief_run)


def test_bad_weights_in_the_cache_are_no_error(brief_run, stand_in, monkeypatch, tmp_path):
    """Nobody asked for them by name: the outcome says what is wrong."""
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path))
    (tmp_path / "codeformer").mkdir()
    data = bad_weights(tmp_path)["not finite"]
    (tmp_path / "codeformer" / "codeformer.pth").write_bytes(data)
    monkeypatch.setattr(codeformer, "WEIGHTS_SHA256", hashlib.sha256(data).hexdigest())
    manifest = restore_headshots(brief_run, RestoreConfig())
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


def test_the_real_network_class_runs_and_loses_no_identity(brief_run, random_codeformer, good_photo):
    delivered = brief_run.manifest("headshots")["delivered"]
    for file in delivered[1:]:  # the network takes 15 s a face, so one face is enough
        Image.new("RGB", (128, 128)).save(brief_run.path("headshots") / file)
    Image.fromarray(good_photo).resize((256, 256)).save(brief_run.path("headshots") / delivered[0])
    note_again(brief_run, "headshots")
    manifest = restore_headshots(brief_run, RestoreConfig(codeformer_weights=str(random_codeformer), fidelity=0.5))
    rows = {row["file"]: row for row in manifest["restored"]}
    first = rows[delivered[0]]
    assert first["kept"] == "unrestored" and first["tried"][0]["fidelity"] == 0.5
    assert "identity" in first["tried"][0]["harm"] and first["identity_before"] > 0.5
    assert all("tried" not in rows[f] for f in delivered[1:])  # there is no face
    assert handed_on(brief_run)


def test_copies_for_print_are_large_and_listed(brief_run, tmp_path):
    files = brief_run.manifest("headshots")["delivered"]
    manifest = restore_headshots(brief_run, RestoreConfig(restorer="none", print_px=2048))
    assert [row["file"] for row in manifest["print"]] == [f"print/{file}" for file in files]
    for row in manifest["print"]:
        with Image.open(brief_run.path("restored") / row["file"]) as picture:
            assert max(picture.size) == 2048 and "Enlarged" in picture.text and "headshotkit" in picture.text
    assert set(manifest["files"]) == {*files, *(f"print/{file}" for file in files)}


def test_an_upscaler_that_cannot_be_used_is_an_error_after_all_is_done(brief_run, tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("empty.pth", "none.pth"):
        config = RestoreConfig(restorer="none", print_px=600, upscaler_weights=str(tmp_path / name))
        with pytest.raises(CannotRestore):
            restore_headshots(brief_run, config)
        assert len(brief_run.manifest("restored")["print"]) == len(brief_run.manifest("headshots")["delivered"])


@pytest.fixture
def untrained(brief_run, monkeypatch, tmp_path, good_photo):
    """A run whose headshots are photos of 256 px; an untrained restorer, which lends half of a photo: plumbing."""
    save_restorer(FaceRestorer(), tmp_path / "restorer")
    monkeypatch.setattr(embedded, "weights_of", lambda folder: (tmp_path / "restorer", "0" * 64))
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    for number, file in enumerate(brief_run.manifest("headshots")["delivered"]):
        picture = Image.fromarray(np.roll(good_photo, 8 * number, axis=1)).resize((256, 256))
        picture.save(brief_run.path("headshots") / file)
    note_again(brief_run, "headshots")
    return brief_run


def test_the_embedded_restorer_hands_on_pictures_of_512_px(untrained):
    manifest = restore_headshots(untrained)
    kept = [verdict["photo"] for verdict in untrained.manifest("photos")["verdicts"] if verdict["kept"]]
    assert manifest["restorer"] and not manifest.get("missing")
    for row in manifest["restored"]:
        with Image.open(untrained.path("restored") / row["file"]) as picture:
            assert picture.size == (512, 512)
            assert ("Restored" in picture.text) == (row["kept"] == "restored")
        assert row["kept"] == "unrestored" or row["identity_after"] >= row["identity_before"] - 0.02
        assert ("photo" in row) == (row["kept"] == "restored"), "the photo that lent detail is named"
        assert row.get("photo", kept[0]) in kept


def test_the_restorer_sees_no_photo_that_is_held_out(untrained):
    """Headshots are compared with those photos, so nothing of them may be in a headshot."""
    kept = [verdict["photo"] for verdict in untrained.manifest("photos")["verdicts"] if verdict["kept"]]
    weights, _, _ = restore.choose_restorer(untrained, RestoreConfig())
    everything, _ = restore.open_restorer(untrained, weights)
    manifest = untrained.manifest("dataset") | {"held_out": kept[:1]}
    write_json(untrained.path("dataset") / "manifest.json", manifest)
    restorer, known = restore.open_restorer(untrained, weights)
    assert len(restorer.photos) == len(everything.photos) - 1 and len(known.embeddings) == len(kept)
    assert all(np.array_equal(a.marks, b.marks) for a, b in zip(restorer.photos, everything.photos[1:], strict=True))
    assert not np.array_equal(restorer.person, everything.person)


def test_an_interrupted_restoration_goes_on_with_the_next_headshot(untrained, monkeypatch):
    whole = restore_headshots(untrained)
    pictures = {row["file"]: (untrained.path("restored") / row["file"]).read_bytes() for row in whole["restored"]}
    shutil.rmtree(untrained.path("restored"))
    real, made = restore.best_of, []

    def stopped_at_the_third(*given):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*given)

    monkeypatch.setattr(restore, "best_of", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        restore_headshots(untrained)
    begun = untrained.peek("restored")["restored"]
    kept, lost = (untrained.path("restored") / row["file"] for row in begun)
    when = kept.stat().st_mtime_ns
    lost.unlink()
    monkeypatch.setattr(restore, "best_of", real)
    again = restore_headshots(untrained)
    assert len(begun) == 2 and again["restored"] == whole["restored"]
    assert {file: (untrained.path("restored") / file).read_bytes() for file in pictures} == pictures
    assert kept.stat().st_mtime_ns == when and lost.is_file()


def test_a_restorer_of_another_kind_than_the_base_has_is_bad_input(brief_run, monkeypatch):
    monkeypatch.setattr(embedded, "weights_of", lambda folder: (None, ""))
    for restorer in ("embedded", "codeformer"):
        monkeypatch.setattr(runtime, "has_module", lambda name: False)
        with pytest.raises(CannotRestore):
            restore_headshots(brief_run, RestoreConfig(restorer=restorer))
        assert handed_on(brief_run)
