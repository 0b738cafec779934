"""A run holds somebody's face: only its owner can open it, and it says nothing of who and where that is."""

import getpass
import json
import os
import platform
import shutil
from pathlib import Path

import pytest
from conftest import P1

from headshotkit.cli import main
from headshotkit.config import RunSettings
from headshotkit.core.results import HeadshotsResult, PhotosResult
from headshotkit.core.run import Run, write_atomic
from headshotkit.delivery import gallery
from headshotkit.photos.check import check_photos
from headshotkit.photos.override import override_verdict
from headshotkit.pipeline import do_stage
from headshotkit.widgets.review import photo_folder


@pytest.fixture
def open_to_all():
    """The umask that most systems have."""
    before = os.umask(0o022)
    yield
    os.umask(before)


FEW = ("bad_02_dark", "p1_02", "p1_03")


@pytest.fixture(scope="module")
def whole_run(briefly_trained, tmp_path_factory):
    """A run whose every stage is finished, with a page; copy it, don't change it."""
    run, before = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("whole") / "run")), os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "embedded", lambda _: "data:,")  # pictures as text would hold any short word
        for stage in ("restored", "report", "gallery"):
            do_stage(stage, run, RunSettings())
    os.umask(before)
    return run


@pytest.fixture
def few_photos(tmp_path):
    """A folder of three photos, one of them bad."""
    (tmp_path / "photos").mkdir()
    for name in FEW:
        shutil.copy(P1 / f"{name}.jpg", tmp_path / "photos")
    return tmp_path / "photos"


def test_everything_in_a_run_is_its_owners_alone(whole_run, few_photos, open_to_all, tmp_path):
    run = Run(tmp_path / "made" / "run")
    check_photos(few_photos, run)
    assert main(["export", str(tmp_path / "out" / "me.safetensors"), "--out", str(whole_run.folder)]) == 0
    every = [run.folder.parent, *run.folder.rglob("*"), run.folder, tmp_path / "out", *(tmp_path / "out").iterdir()]
    every += [p for s in ("restored", "report", "gallery") for p in (whole_run.path(s), *whole_run.path(s).rglob("*"))]
    assert [str(path) for path in every if path.stat().st_mode & 0o077] == []
    assert len(every) > 30


def test_the_umask_of_a_command_is_that_of_private_files(monkeypatch, open_to_all, tmp_path):
    """What a library writes while a command works; the library's write is the monkeypatched one."""
    monkeypatch.setattr(
        "headshotkit.generation.prompts.load_prompts", lambda _: (tmp_path / "theirs").write_text("") and []
    )
    main(["prompts"])
    assert (tmp_path / "theirs").stat().st_mode & 0o077 == 0 and os.umask(0o022) == 0o022


def test_nothing_written_names_a_user_a_machine_or_a_place(whole_run):
    words = [str(whole_run.folder), str(P1), str(Path.home()) + "/"]
    words += [name for name in (getpass.getuser(), platform.node()) if len(name) > 5]  # "root" and "vm" are anywhere
    files = [file for file in whole_run.folder.rglob("*") if file.is_file() and file.suffix != ".png"]
    said = [(file.name, word) for file in files for word in words if word.encode() in file.read_bytes()]
    assert said == [] and len(files) > 25


def test_a_moved_run_knows_where_its_page_is(whole_run, tmp_path, capsys):
    moved = Path(shutil.copytree(whole_run.folder, tmp_path / "anna"))
    assert main(["gallery", "--out", str(moved)]) == 0
    said = capsys.readouterr().out
    assert str(moved / "gallery" / "index.html") in said and "gallery/index.html" in said.splitlines()[0]
    assert main(["gallery", "--out", str(moved), "--json"]) == 0
    assert str(tmp_path) not in capsys.readouterr().out


def test_where_photos_are_is_told_from_the_run_or_from_home(tmp_path, monkeypatch):
    home, other = tmp_path / "home" / "annakarenina", tmp_path / "disk" / "annakarenina" / "photos"
    (home / "selfies").mkdir(parents=True)
    other.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "annakarenina")
    run = Run(home / "runs" / "me")
    assert run.place_of(home / "selfies") == "../../selfies"
    assert run.placed("../../selfies").resolve() == (home / "selfies").resolve()
    away = Run(tmp_path / "elsewhere" / "me")
    assert away.place_of(home / "selfies") == "~/selfies" and away.placed("~/selfies") == home / "selfies"
    assert away.place_of(other) == "" and away.placed("") is None


def test_a_photo_is_kept_by_hand_from_where_it_was(few_photos, tmp_path):
    run = Run(tmp_path / "run")
    refused = next(v.photo for v in check_photos(few_photos, run) if not v.kept and "face_box_px" in v.measures)
    assert photo_folder("", run)[0].resolve() == few_photos.resolve()
    override_verdict(run, refused, True)
    assert run.files("photos", [f"kept/{refused}"], thorough=True)
    override_verdict(run, refused, False)
    assert f"kept/{refused}" not in run.manifest("photos")["files"]


def test_the_page_escapes_what_a_manifest_says_and_loads_nothing(whole_run, monkeypatch):
    monkeypatch.setattr(gallery, "embedded", lambda _: "data:,")
    evil = '"><script>alert(1)</script>'
    generated, judged = whole_run.manifest("headshots"), PhotosResult.load(whole_run)
    for shot in generated["headshots"]:
        shot |= {"prompt_id": evil, "prompt": evil, "reasons": [evil], "file": evil}
    generated["pass_mark"]["reason"] = evil
    generated["config"]["base"] = generated["finished"] = evil
    generated = HeadshotsResult.from_dict(generated)
    page = gallery.page(generated.headshots, [Path()] * len(generated.headshots), generated, judged.verdicts,
                        whole_run.manifest("report")["metrics"])  # fmt: skip
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page.split("<style>")[0]


def test_no_half_written_file_outlives_the_next_command(tmp_path):
    run = Run(tmp_path)
    stage = run.begin("photos", {}, {})
    halves = [
        stage.folder / "kept" / ".a.jpg.17.part",
        stage.folder / ".manifest.json.17.part",
        tmp_path / ".x.17.part",
    ]
    for half in halves:
        write_atomic(half, b"half")
    run.begin("photos", {}, {})
    assert not any(half.exists() for half in halves)
    for half in halves:
        write_atomic(half, b"half")
    run.begin("photos", {"limit": 1}, {})
    assert not list(tmp_path.rglob("*.part"))


def test_check_writes_the_manifest_that_readers_expect(few_photos, tmp_path):
    run = Run(tmp_path / "run")
    check_photos(few_photos, run)
    manifest = json.loads((run.path("photos") / "manifest.json").read_text())
    assert not os.path.isabs(manifest["folder"]) and len(manifest["files"]) >= 2 + len(FEW)
