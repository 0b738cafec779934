import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from headshotkit.core import locks
from headshotkit.core.errors import DamagedRun, DiskFull, RunFolderError, StageMissing
from headshotkit.core.records import Dataset, Lora
from headshotkit.core.run import Run, discard, write_atomic, write_json

VERDICTS = {"verdicts": [], "photos": [], "folder": "", "advice": ""}
DATASET = {"dataset": Dataset(Path("."), "ohwx", "man", 128, ()).to_dict()}
LORA = {"lora": Lora(Path("a.safetensors"), "mini", 4, 4, "ohwx", "man", 1).to_dict()}


def test_a_done_stage_is_found_done(tmp_path):
    run = Run(tmp_path / "run")
    stage = run.begin("photos", {"limit": 1}, {"a.jpg": "00"})
    assert not stage.done
    stage.finish("kept 1 of 1 photos", **VERDICTS)
    again = run.begin("photos", {"limit": 1}, {"a.jpg": "00"})
    assert again.done and again.manifest["outcome"] == "kept 1 of 1 photos"


def test_an_interrupted_stage_goes_on_with_what_it_had(tmp_path):
    run = Run(tmp_path)
    stage = run.begin("headshots", {}, {})
    (stage.folder / "half.png").write_bytes(b"x")
    again = run.begin("headshots", {}, {})
    assert not again.done and (again.folder / "half.png").exists()


@pytest.mark.parametrize(("config", "inputs"), [({"limit": 2}, {"a": "0"}), ({"limit": 1}, {"a": "1"})])
def test_other_settings_or_inputs_move_the_earlier_result_aside(tmp_path, config, inputs):
    run = Run(tmp_path)
    stage = run.begin("photos", {"limit": 1}, {"a": "0"})
    (stage.folder / "thumb.jpg").write_bytes(b"x")
    stage.finish("done", **VERDICTS)
    new = run.begin("photos", config, inputs)
    assert not new.done and not (new.folder / "thumb.jpg").exists()
    assert (tmp_path / "earlier" / "photos-1" / "thumb.jpg").read_bytes() == b"x"


def test_what_is_moved_aside_finds_a_place_where_an_older_one_was_deleted(tmp_path):
    run = Run(tmp_path)
    for limit in (1, 2, 3):
        run.begin("photos", {"limit": limit}, {}).finish(f"limit {limit}", **VERDICTS)
    shutil.rmtree(tmp_path / "earlier" / "photos-1")
    run.begin("photos", {"limit": 4}, {})
    kept = {p.parent.name: json.loads(p.read_text())["outcome"] for p in tmp_path.glob("earlier/*/manifest.json")}
    assert kept == {"photos-1": "limit 3", "photos-2": "limit 2"}


def first_of(run, stage):
    with pytest.raises(StageMissing) as caught:
        run.manifest(stage)
    return caught.value.next_step


def test_all_that_is_missing_is_named_at_once_with_one_whole_command(tmp_path):
    """The photos' folder is named where the run knows it."""
    run = Run(tmp_path / "run")
    said = first_of(run, "headshots")
    assert f"headshotkit run PHOTOS --out {run.folder}\n" in said and "check, prepare, train, generate" in said
    assert first_of(run, "photos") == f"Run first: headshotkit check PHOTOS --out {run.folder}"
    (tmp_path / "my photos").mkdir()
    run.begin("photos", {}, {}).finish("kept", **VERDICTS | {"folder": run.place_of(tmp_path / "my photos")})
    said = first_of(run, "lora")
    assert f"headshotkit run '{(tmp_path / 'my photos').resolve()}' --out" in said and "prepare, train" in said
    assert first_of(run, "dataset") == f"Run first: headshotkit prepare --out {run.folder}"
    assert "headshotkit pick" in first_of(run, "picked") and "prepare, train" in first_of(run, "picked")
    run.begin("dataset", {}, run.inputs_from("photos")).finish("made", **DATASET)
    run.begin("lora", {}, run.inputs_from("dataset")).finish("made", **LORA)
    assert first_of(run, "picked") == f"Run first: headshotkit pick --out {run.folder}"


def test_a_stage_made_from_what_the_run_no_longer_holds_is_out_of_date(tmp_path):
    run = Run(tmp_path)
    run.begin("photos", {"limit": 1}, {}).finish("first", **VERDICTS)
    run.begin("dataset", {}, run.inputs_from("photos")).finish("from the first", **DATASET)
    run.begin("lora", {}, run.inputs_from("dataset")).finish("from the first", **LORA)
    assert run.has("lora")
    run.begin("photos", {"limit": 2}, {}).finish("second", **VERDICTS)
    assert not run.has("dataset") and not run.has("lora")
    with pytest.raises(StageMissing, match=r"photos(.|\n)*prepare, train"):
        run.manifest("lora")
    run.begin("dataset", {}, run.inputs_from("photos")).finish("from the second", **DATASET)
    with pytest.raises(StageMissing, match=r"dataset(.|\n)*headshotkit train --out"):
        run.manifest("lora")


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    target = tmp_path / "manifest.json"
    write_atomic(target, "first")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="manifest.json"):
        write_atomic(target, "second")
    assert target.read_text() == "first"
    assert [f.name for f in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, RunFolderError), (errno.EROFS, RunFolderError),
     (errno.EACCES, RunFolderError), (errno.ENOTCONN, RunFolderError), (errno.ENXIO, RunFolderError)],
)  # fmt: skip
def test_each_refusal_of_the_system_has_its_own_words(tmp_path, monkeypatch, number, kind):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind) as failed:
        write_atomic(tmp_path / "a.bin", "x")
    assert failed.value.happened and failed.value.why and failed.value.next_step and not list(tmp_path.iterdir())
    connection = number in (errno.EIO, errno.ENOTCONN)
    assert ("Drive" in str(failed.value)) == (connection or number == errno.EDQUOT)
    assert ("permissions" in str(failed.value)) == (number == errno.EACCES)


def test_what_is_discarded_is_emptied_first(tmp_path, monkeypatch):
    """A kill in between leaves no half file under the file's name; here one comes before the last step."""
    (tmp_path / "folder").mkdir()
    for name in ("folder/000002.pt", "000004.pt"):
        (tmp_path / name).write_bytes(b"x" * 1000)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "unlink", killed)
        patched.setattr(Path, "unlink", killed)
        discard(tmp_path / "000004.pt")
    (left,) = (p for p in tmp_path.iterdir() if p.is_file())
    assert left.stat().st_size == 0 and left.name.startswith(".") and left.suffix == ".part"
    discard(left)
    discard(tmp_path / "folder")
    discard(tmp_path / "never there")
    assert not list(tmp_path.iterdir())


def test_a_file_clears_away_its_halves_of_dead_processes(tmp_path):
    """Process numbers end at 2**22, so one above it is nobody's."""
    here, another = locks.machine(), "0" * 16
    dead, living = f".a.safetensors.{here}-{2**22 + 1}.part", f".a.safetensors.{here}-{os.getppid()}.part"
    unknown, old = (f".a.safetensors.{another}-{pid}.part" for pid in (1, 2))
    other_file = f".b.safetensors.{here}-{2**22 + 1}.part"
    for name in (dead, living, unknown, old, other_file):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / dead).with_name(f".a.safetensors.{here}-{2**22 + 2}.part").mkdir()
    os.utime(tmp_path / old, (0, 0))
    write_atomic(tmp_path / "a.safetensors", b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", living, unknown, other_file}


def test_what_has_other_names_is_not_emptied(tmp_path):
    (tmp_path / "own").write_text("kept")
    os.link(tmp_path / "own", tmp_path / "hard")
    (tmp_path / "soft").symlink_to(tmp_path / "own")
    discard(tmp_path / "soft")
    discard(tmp_path / "hard")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"own": "kept"}


def test_a_file_in_the_way_is_explained(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(RunFolderError, match="--out"):
        Run(tmp_path / "run").begin("photos", {}, {})


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MiB; needs the right to mount."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    yield Path(place)
    subprocess.run(["umount", place], check=True)


def test_a_real_full_disk_keeps_what_was_finished(small_disk):
    run = Run(small_disk / "run")
    run.begin("photos", {}, {}).finish("kept", **VERDICTS)
    with pytest.raises(DiskFull, match=r"2\.0 MiB.* \d+\.\d MiB"):
        write_atomic(run.path("dataset") / "a.png", b"x" * 2**21)
    assert run.manifest("photos")["outcome"] == "kept"
    assert not list(run.path("dataset").iterdir())


def test_a_path_that_is_no_utf8_can_be_written_and_read_again(tmp_path):
    odd = os.fsdecode(b"/photos/caf\xe9")
    write_json(tmp_path / "a.json", {"folder": odd})
    assert json.loads((tmp_path / "a.json").read_text())["folder"] == odd


def test_a_finished_stage_knows_its_files(tmp_path):
    run = Run(tmp_path)
    stage = run.begin("gallery", {}, {})
    for name in ("index.html", "sub/a.png", "caption.txt"):
        write_atomic(stage.folder / name, name)
    made = stage.finish("made")
    assert sorted(made["files"]) == ["index.html", "sub/a.png"]
    assert made["files"]["index.html"]["bytes"] == 10
    assert run.files("gallery", ["index.html"], thorough=True) == [stage.folder / "index.html"]
    assert run.begin("gallery", {}, {}).done


@pytest.mark.parametrize("how", ["missing", "cut", "same size", "folder", "link"])
def test_what_is_missing_or_changed_is_named_and_its_stage_goes_on(tmp_path, how):
    run = Run(tmp_path)
    stage = run.begin("gallery", {}, {})
    page = stage.folder / "index.html"
    write_atomic(page, "a page")
    stage.finish("made")
    page.unlink()
    if how == "folder":
        page.mkdir()
    elif how == "link":
        (tmp_path / "outside").write_text("a page")
        page.symlink_to(tmp_path / "outside")
    elif how != "missing":
        page.write_text("a" if how == "cut" else "A page")
    with pytest.raises(DamagedRun, match="index.html"):
        run.files("gallery", ["index.html"])
    again = run.begin("gallery", {}, {})
    assert not again.done and again.spoilt == ["index.html"]
    assert run.begin("gallery", {}, {}).spoilt == ["index.html"]  # after a kill it still is


def test_a_stage_from_before_files_were_noted_is_believed(tmp_path):
    run = Run(tmp_path)
    stage = run.begin("gallery", {}, {})
    write_atomic(stage.folder / "index.html", "a page")
    made = stage.finish("made")
    write_json(stage.folder / "manifest.json", {name: value for name, value in made.items() if name != "files"})
    assert run.begin("gallery", {}, {}).done and run.files("gallery", ["index.html"])
    with pytest.raises(DamagedRun):
        run.files("gallery", ["nothing.html"])
