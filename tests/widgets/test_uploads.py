"""Uploads: pieces become the files that were chosen, all are counted, and too few of them are an error."""

import os
import stat
import sys
import types

import pytest

from headshotkit.core import run as run_module
from headshotkit.core.errors import UploadIncomplete
from headshotkit.core.run import Run
from headshotkit.widgets import review, uploads
from headshotkit.widgets.uploads import Inbox, keep_files, last_arrival, safe_name, upload_on_colab


class Sender:
    """What `upload.js` sends, message by message."""

    def __init__(self, inbox, name="one", files=()):
        self.inbox, self.name, self.files, self.number = inbox, name, dict(enumerate(files)), 0
        self.ask(what="chosen", files=[{"name": name, "bytes": len(content)} for name, content in files])

    def ask(self, pieces=(), **message):
        self.number += 1
        return self.inbox.answer(message | {"id": self.name, "n": self.number}, list(pieces))

    def piece(self, number, at=0, upto=None):
        return self.ask([memoryview(self.files[number][1][at:upto])], what="piece", file=number, at=at)


def there(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


@pytest.fixture
def inbox(tmp_path):
    return Inbox(tmp_path / "me" / "uploads")


def test_pieces_become_the_files_and_are_counted(inbox):
    sender = Sender(inbox, files=[("a.jpg", b"abcdef"), ("b.jpg", b""), ("c.jpg", b"123")])
    assert sender.piece(0, 0, 4)["next"] == 4 and there(inbox.folder) == {}
    assert (last_arrival(inbox.folder).chosen, last_arrival(inbox.folder).arrived) == (3, 0)
    assert sender.piece(0, 4)["next"] == 6 and sender.piece(1)["next"] == 0
    assert last_arrival(inbox.folder).arrived == 2 and not last_arrival(inbox.folder).complete
    sender.piece(2)
    assert there(inbox.folder) == {"a.jpg": b"abcdef", "b.jpg": b"", "c.jpg": b"123"}
    assert last_arrival(inbox.folder).complete and inbox.arrival == last_arrival(inbox.folder)


def test_a_message_may_come_twice_or_too_early(inbox):
    sender = Sender(inbox, files=[("a.jpg", b"abcdef"), ("b.jpg", b"")])
    sender.piece(0, 0, 2)
    assert sender.piece(0, 4)["next"] == 2, "the one between is missing"
    assert sender.piece(0, 0, 2)["next"] == 2 and sender.ask(what="where", file=0)["next"] == 2
    sender.piece(0, 2)
    assert sender.piece(0, 2)["next"] == 6
    sender.piece(1), sender.piece(1)
    sender.ask(what="chosen", files=[])  # again
    assert there(inbox.folder) == {"a.jpg": b"abcdef", "b.jpg": b""} and inbox.arrival.arrived == 2


def test_a_later_choice_takes_the_place_of_an_unfinished_one(inbox):
    first = Sender(inbox, files=[("a.jpg", b"abcdef")])
    first.piece(0, 0, 3)
    second = Sender(inbox, "two", files=[("c.jpg", b"c")])
    assert first.piece(0, 3)["failed"] and not second.piece(0)["failed"]
    assert sorted(file.name for file in inbox.folder.iterdir()) == [".chosen.json", "c.jpg"]


def test_what_the_browser_can_not_read_is_named(inbox):
    sender = Sender(inbox, files=[("a.jpg", b"abc"), ("b.jpg", b"b")])
    sender.piece(0, 0, 2)
    assert sender.ask(what="lost", file=0, why="NotReadableError")["next"] == 3
    sender.piece(1)
    assert there(inbox.folder) == {"b.jpg": b"b"} and not list(inbox.folder.glob("*.part"))
    arrival = last_arrival(inbox.folder)
    assert (arrival.arrived, arrival.lost) == (1, ("a.jpg (NotReadableError)",)) and not arrival.complete


def test_what_is_no_photo_by_its_size_is_not_taken(inbox, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 2)
    sender = Sender(inbox, files=[("film.mov", b"abc")])
    assert sender.piece(0, 0, 1)["next"] == 3 and last_arrival(inbox.folder).lost and there(inbox.folder) == {}


def test_uploads_are_the_persons_alone(inbox):
    sender = Sender(inbox, files=[("a.jpg", b"ab"), ("b.jpg", b"b")])
    sender.piece(0), sender.piece(1, 0, 0)
    modes = {stat.S_IMODE(one.stat().st_mode) for one in inbox.folder.iterdir()}
    assert modes == {0o600} and stat.S_IMODE(inbox.folder.stat().st_mode) == 0o700


def test_files_of_one_name_are_kept_apart_and_the_same_file_is_kept_once(tmp_path):
    kept = keep_files(tmp_path, [("me.jpg", b"1"), ("ME.jpg", b"2"), ("../me.jpg", b"1"), ("me.jpg", b"3")])
    assert [path.name for path in kept] == ["me.jpg", "ME-2.jpg", "me.jpg", "me-3.jpg"]
    assert there(tmp_path) == {"me.jpg": b"1", "ME-2.jpg": b"2", "me-3.jpg": b"3"}


@pytest.mark.parametrize(
    "name", ["../../me.jpg", "/etc/me.jpg", "C:\\photos\\me.jpg", "..\\me.jpg", ".me.jpg", "me.jpg. ", "photos/me.jpg"]
)
def test_an_upload_stays_in_its_folder(name):
    assert safe_name(name) == "me.jpg"


@pytest.mark.parametrize("name", ["", ".", "..", "photos/..", "a\0\n*.jpg", "nul", "\ud800.jpg", "x" * 999 + ".jpg"])
def test_every_name_can_be_a_file(name, tmp_path):
    (kept,) = keep_files(tmp_path, [(name, b"1")])
    assert kept.parent == tmp_path and not kept.name.startswith(".") and len(os.fsencode(kept.name)) <= 255


def test_with_less_than_was_chosen_nothing_goes_on(inbox):
    run = Run(inbox.folder.parent)
    sender = Sender(inbox, files=[("a.jpg", b"\xff\xd8\xff1"), ("b.jpg", b"\xff\xd8\xff2")])
    with pytest.raises(UploadIncomplete) as caught:
        review.photo_folder("", run)
    assert "0 of 2" in caught.value.happened
    sender.piece(0)
    with pytest.raises(UploadIncomplete) as caught:
        review.photo_folder("", run)
    assert "1 of 2" in caught.value.happened and str(inbox.folder) in caught.value.next_step
    assert review.photo_folder(str(inbox.folder), run)[0] == inbox.folder, "those that are there can be used"
    sender.piece(1)
    assert review.photo_folder("", run)[0] == inbox.folder


def test_a_full_disk_is_said_and_stops_the_rest(inbox, monkeypatch):
    """The error is put where the file is opened."""
    sender = Sender(inbox, files=[("a.jpg", b"abc")])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module.os, "open", full)
    failed = sender.piece(0)["failed"]
    monkeypatch.undo()
    assert "no space" in failed and not last_arrival(inbox.folder).complete


# --- Colab, with a stand-in for its package, which can't be had --------------------------------------------------


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Colab's button; `chosen` is what a person chooses, or the error that it ends with."""
    package, files = types.ModuleType("google.colab"), types.ModuleType("google.colab.files")

    def upload():
        if isinstance(files.chosen, Exception):
            raise files.chosen
        for name, content in files.chosen.items():
            with open(name, "wb") as file:  # as Colab's does, where it is
                file.write(content)
        return files.chosen

    package.files, files.upload, files.chosen = files, upload, {}
    modules = {"google": types.ModuleType("google"), "google.colab": package, "google.colab.files": files}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    return files


def test_on_colab_its_own_button_is_used(colab, tmp_path, capsys):
    run, colab.chosen = Run("me"), {"a.jpg": b"\xff\xd8\xff1", "b (1).jpg": b"\xff\xd8\xff2"}
    assert review.upload_photos(run) is None
    assert there(run.folder / "uploads") == colab.chosen and "2 photos" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["me"], "no copy is left where the notebook is"
    assert review.photo_folder("", run)[0] == run.folder / "uploads"


def test_a_cancelled_choice_is_none(colab, tmp_path):
    assert upload_on_colab(tmp_path / "uploads") == []
    assert review.photo_folder("", Run(tmp_path))[1].startswith("the sample person")


def test_an_upload_that_breaks_off_on_colab_is_an_error_then_and_later(colab, tmp_path):
    colab.chosen = RuntimeError("the connection is gone")
    for again in (lambda: review.upload_photos(Run(tmp_path)), lambda: review.photo_folder("", Run(tmp_path))):
        with pytest.raises(UploadIncomplete) as caught:
            again()
        assert "the connection is gone" in caught.value.happened
