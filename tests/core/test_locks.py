"""The run folder's lock, with real processes and threads; a file system without locks is a monkeypatched flock."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from conftest import P1, P2

from headshotkit.cli import main
from headshotkit.core import locks
from headshotkit.core.errors import RunBusy, RunFolderError
from headshotkit.core.run import COMMANDS, Run, write_atomic
from headshotkit.dataset.captions import edit_caption
from headshotkit.generation.pictures import PictureRequest, render_pictures
from headshotkit.generation.previews import render_previews
from headshotkit.photos.override import override_verdict

HOLDING = """
import sys, time
from headshotkit.core import locks
with locks.working(__import__("pathlib").Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(params=["flock", "lease"])
def kind(request, monkeypatch):
    """With the operating system's lock, and where the file system says that it has none."""
    if request.param == "lease":

        def flock(*_):
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


def test_a_second_process_is_refused_and_told_who_is_at_work(tmp_path, holder):
    with pytest.raises(RunBusy) as refused, locks.working(tmp_path / "run", "check"):
        pass
    assert f"process {holder.pid}" in refused.value.happened and "headshotkit train" in refused.value.happened
    assert time.strftime("%Y-%m-%d") in refused.value.happened


def test_after_a_kill_the_next_command_works_and_leaves_nothing_of_the_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / locks.LOCK).exists()
    with locks.working(tmp_path / "run", "check"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_verb_inside_another_shares_the_lock_and_a_second_thread_does_not(tmp_path, kind):
    refused = []

    def second():
        try:
            with locks.working(tmp_path / "run", "check"):
                pass
        except RunBusy as error:
            refused.append(error)

    with locks.working(tmp_path / "run", "run"):
        with locks.working(tmp_path / "run", "check"):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert (tmp_path / "run").exists()
    assert len(refused) == 1 and "headshotkit run, process" in refused[0].happened
    assert not (tmp_path / "run").exists()  # made for the lock, and empty
    second()
    assert len(refused) == 1


def test_two_paths_of_one_folder_are_one_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locks.working(tmp_path / "run", "run"), locks.working(tmp_path / "link", "check"):
        assert len(locks._held) == 1


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, False),
        ({"beat": -70.0}, True),
        ({"machine": "another"}, False),
        ({"machine": "another", "beat": -70.0}, True),
        ({"pid": 2**22 + 1}, True),
        ({"beat": None}, True),
    ],
)
def test_a_lease_holds_until_it_is_not_renewed_or_its_process_is_gone(tmp_path, monkeypatch, changes, taken):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOTSUP, "not supported")))
    lease = {"token": "t", "pid": os.getppid(), "command": "train", "since": "x", "machine": locks.machine()}
    beat = changes.pop("beat", 0.0)
    lease |= {"beat": beat if beat is None else time.time() + beat} | changes
    (tmp_path / locks.HOLDER).write_text(json.dumps(lease))
    if taken:
        with locks.working(tmp_path, "check"):
            pass
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(RunBusy), locks.working(tmp_path, "check"):
            pass


def test_a_lease_is_renewed_and_who_lost_it_writes_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "")))
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    run = Run(tmp_path / "run")
    with locks.working(run.folder, "check"):
        first = locks._read(run.folder)
        stage = run.begin("photos", {}, {})
        until = time.monotonic() + 20
        while locks._read(run.folder)["beat"] == first["beat"] and time.monotonic() < until:
            time.sleep(0.02)
        again = locks._read(run.folder)
        assert again["beat"] > first["beat"] and again["since"] == first["since"]
        (run.folder / locks.HOLDER).write_text(json.dumps(again | {"token": "another"}))
        with pytest.raises(RunFolderError, match="took over"):
            write_atomic(run.folder / "photos" / "a", b"")
        with pytest.raises(RunFolderError, match="took over"):
            stage.finish("kept")
    assert (run.folder / locks.HOLDER).exists()  # the other's


def test_a_run_folder_removed_during_work_does_not_come_back(tmp_path, kind):
    run = Run(tmp_path / "run")
    with locks.working(run.folder, "check"):
        stage = run.begin("photos", {}, {})
        shutil.rmtree(run.folder)
        with pytest.raises(RunFolderError, match="removed"):
            write_atomic(stage.folder / "kept" / "a.jpg", b"x")
        with pytest.raises(RunFolderError, match="removed"):
            stage.finish("kept")
    assert not run.folder.exists()


def test_a_stage_begun_anew_by_another_is_not_written_over(tmp_path):
    run = Run(tmp_path)
    first = run.begin("photos", {"limit": 1}, {})
    second = run.begin("photos", {"limit": 1}, {})
    for write in (first.note_seconds, lambda: first.finish("the first")):
        with pytest.raises(RunFolderError, match="restarted"):
            write()
    assert second.finish("the second")["outcome"] == "the second"


def test_a_folder_that_nobody_can_write_needs_no_lock(tmp_path, monkeypatch):
    """What is finished there can be used; the refusal is a monkeypatched open, for root may write anywhere."""
    real = os.open

    def refusing(path, *rest, **more):
        if str(path).endswith(locks.LOCK):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    with locks.working(tmp_path, "gallery"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_every_command_that_writes_is_refused_while_another_process_works(brief_run, capsys):
    """Whatever the other one does, it holds the same lock, so this is every pair of commands."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(brief_run.folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        before = {f: f.stat().st_mtime_ns for f in brief_run.folder.rglob("*") if f.is_file()}
        for command in [*COMMANDS.values(), "run"]:
            photos = [str(P1)] if command in ("check", "run") else []
            code = main([command, *photos, "--out", str(brief_run.folder), "--base", "mini"])
            assert code == 2 and capsys.readouterr().err.startswith("RunBusy"), command
        for verb in (
            lambda: override_verdict(brief_run, "p1_01.jpg", False),
            lambda: edit_caption(brief_run, "p1_01_0.png", "words"),
            lambda: render_previews(brief_run),
            lambda: render_pictures(brief_run, PictureRequest.for_base("mini", "photo")),
        ):
            with pytest.raises(RunBusy):
                verb()
        assert brief_run.manifest("headshots")["delivered"]  # whoever only reads needs no lock
        assert {f: f.stat().st_mtime_ns for f in brief_run.folder.rglob("*") if f.is_file()} == before
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_two_people_checked_at_once_into_one_run_are_not_mixed(tmp_path):
    """Both commands are real processes, started at the same moment."""
    people = {"p1": P1, "p2": P2}
    for name, source in people.items():
        (tmp_path / name).mkdir()
        for photo in sorted(source.glob(f"{name}_*.jpg"))[:3]:
            shutil.copy(photo, tmp_path / name)
    call = [sys.executable, "-m", "headshotkit.cli", "check", "--min-photos", "1", "--out", str(tmp_path / "run")]
    both = [subprocess.Popen([*call, str(tmp_path / name)], stderr=subprocess.PIPE, text=True) for name in people]
    errors = [one.communicate()[1] for one in both]
    codes = [one.returncode for one in both]
    verdicts = Run(tmp_path / "run").manifest("photos")["verdicts"]
    kept = {f.name for f in (tmp_path / "run" / "photos" / "kept").iterdir()}
    assert kept == {v["photo"] for v in verdicts if v["kept"]} and len({name[:2] for name in kept}) == 1
    if codes == [0, 0]:  # one came after the other's end: then it began anew
        assert (tmp_path / "run" / "earlier").exists()
    else:
        assert sorted(codes) == [0, 2] and any(error.startswith("RunBusy") for error in errors)
