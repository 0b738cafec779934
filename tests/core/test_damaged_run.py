"""State files damaged in every way we could think of: an error that names the file, no traceback, nothing lost."""

import contextlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import P1

from headshotkit.cli import main
from headshotkit.core.errors import BadCaption, DamagedRun, HeadshotError
from headshotkit.core.records import Dataset
from headshotkit.core.run import CHECK_SUM, COMMANDS, MAX_DEPTH, MAX_JSON_BYTES, Run, read_json, write_json
from headshotkit.dataset.captions import with_edits
from headshotkit.evaluation import plots
from headshotkit.generation import previews
from headshotkit.photos.check import OVERRIDES, read_overrides
from headshotkit.photos.override import override_verdict

STATE = ("photos/manifest.json", "dataset/manifest.json", "lora/manifest.json", "headshots/manifest.json", OVERRIDES)
JUNK = (None, True, -1, 1e308, "", "../../etc/passwd", "\ud800", [], [[]], {}, {"a": {"b": []}}, 10**30)


def cut(rng, data):
    return data[: rng.randrange(len(data))]


def flipped(rng, data):
    changed = bytearray(data)
    for place in rng.choices(range(len(data)), k=3):
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(rng, data):
    start, end = sorted(rng.choices(range(len(data)), k=2))
    return data[:start] + bytes(end - start) + data[end:]


def of_another_kind(rng, _):
    deep, cut_off = b"[" * 100_000, b'{"a":' * 5000
    return rng.choice([b"", b'{"":0}', b"[]", b"null", b"3", b'"x"', deep, cut_off, b"\xff\xfe{}", b"NaN"])


def marked(_, data):
    return b"\xef\xbb\xbf" + data


def shuffled(rng, data):
    """Well-formed and without a check sum, but a value deep inside, or a whole key, is not what it was."""
    value = json.loads(data)
    value.pop(CHECK_SUM)
    for _ in range(rng.randrange(1, 3)):
        place = value
        while isinstance(place, (dict, list)) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
                if rng.random() < 0.3 and isinstance(place, dict):
                    del place[key]
                else:
                    place[key] = rng.choice(JUNK)
                break
            place = place[key]
    return json.dumps(value).encode()


WAYS = (cut, flipped, overwritten, of_another_kind, marked, shuffled)


@pytest.fixture(scope="module")
def whole(briefly_trained, tmp_path_factory):
    """A run whose every state file exists."""
    run = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("whole") / "run"))
    write_json(run.folder / OVERRIDES, {"p1_01.jpg": {"sha256": "00", "kept": False, "at": "2026-11-29"}})
    return run.folder


def everything_but(folder: Path, name: str) -> dict[str, bytes]:
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file() and not f.is_symlink()}
    return {place: file.read_bytes() for place, file in files.items() if not f"{place}/".startswith(f"{name}/")}


def changed(folder: Path, name: str, before: dict[str, bytes]) -> list[str]:
    """Return which other files are not as they were."""
    now = everything_but(folder, name)
    return [place for place in {**before, **now} if before.get(place) != now.get(place)]


def try_damage(whole: Path, seed: int, capsys) -> int:
    """Damages a file by a seed, and reads it as a person would; returns the exit code."""
    rng = random.Random(seed)
    name, how = STATE[seed % len(STATE)], WAYS[seed // len(STATE) % len(WAYS)]
    file = whole / name
    kept, before = file.read_bytes(), everything_but(whole, name)
    damaged = how(rng, kept)
    file.write_bytes(damaged)
    try:
        code, said = read_by_hand(whole, name, capsys)
        assert code in (0, 2), f"{how.__name__} ended in {code}: {said}"
        if how is not shuffled:
            named = name in said or str(file.parent) in said  # a manifest may name a file next to it as changed
            assert code == 2 and named or json.loads(damaged) == json.loads(kept)
        assert file.read_bytes() == damaged and not changed(whole, name, before), "something was lost"
    finally:
        file.write_bytes(kept)
    return code


def read_by_hand(folder: Path, name: str, capsys) -> tuple[int, str]:
    """Gives the command that reads a state file and writes nothing in the run: (exit code, what it said)."""
    if name not in (OVERRIDES, "headshots/manifest.json"):  # the LoRA's manifest leads to those that it is made from
        code = main(["export", str(folder.parent / "x.safetensors"), "--out", str(folder)])
        return code, capsys.readouterr().err
    try:
        read_overrides(Run(folder)) if name == OVERRIDES else Run(folder).manifest("headshots")
    except HeadshotError as error:
        return 2, str(error)
    return 0, ""


@pytest.mark.parametrize("seed", [*range(30), *(pytest.param(n, marks=pytest.mark.slow) for n in range(30, 60))])
def test_a_damaged_state_file_is_named_and_costs_nothing(whole, seed, capsys):
    try_damage(whole, seed, capsys)


@pytest.mark.slow
def test_five_hundred_damages_cost_nothing(whole, capsys):
    codes = [try_damage(whole, seed, capsys) for seed in range(60, 560)]
    assert len(codes) == 500 and codes.count(2) >= 350


def test_a_damaged_manifest_costs_no_training(whole, five_photos, tmp_path, capsys):
    run = Run(shutil.copytree(whole, tmp_path / "run"))
    (run.folder / OVERRIDES).unlink()  # the photos were judged without it, so `run` would judge them anew
    manifest = run.path("lora") / "manifest.json"
    data = manifest.read_bytes()
    for damaged in (data[:300], b"\xef\xbb\xbf" + data):
        manifest.write_bytes(damaged)
        for command in ("train", "generate", "pick", "run"):
            more = [str(five_photos), "--class-word", "man"] if command == "run" else []
            code = main([command, *more, "--out", str(run.folder), "--base", "mini"])
            said = capsys.readouterr().err
            assert code == 2 and said.startswith("DamagedRun") and str(manifest) in said, command
        assert manifest.read_bytes() == damaged and (run.path("lora") / "person.safetensors").exists()
        assert not (run.folder / "earlier").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "huge", "closed"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path, kind):
    place = tmp_path / "state.json"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "huge":
        with open(place, "wb") as file:
            file.truncate(10**12)
    else:
        place.symlink_to(place)  # in a circle
    with pytest.raises(DamagedRun, match="state.json can't be used"):
        read_json(place, {})
    assert read_json(tmp_path / "nothing.json", {}) is None


def test_depth_types_and_check_sum_are_checked(tmp_path):
    place = tmp_path / "state.json"
    write_json(place, {"n": 1, "text": "caf\udce9", "nan": float("nan")})
    assert read_json(place, {"n": int, "text": str})["text"] == "caf\udce9"
    for shape in ({"n": str}, {"other": int}, {"n": bool}, str):
        with pytest.raises(DamagedRun):
            read_json(place, shape)
    place.write_text(place.read_text().replace('"n": 1', '"n": 2'))
    with pytest.raises(DamagedRun, match=CHECK_SUM):
        read_json(place, {})
    place.write_text('{"n": 2}')  # edited on purpose, and the check sum removed
    assert read_json(place, {"n": int}) == {"n": 2}
    place.write_text('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1))
    with pytest.raises(DamagedRun, match="nested"):
        read_json(place, {})


@pytest.mark.parametrize("text", ["", "[]", "null", '{"p1_01.jpg": 3}', '{"p1_01.jpg": {}}', "[" * 100_000])
def test_what_a_person_decided_is_not_dropped_in_silence(whole, tmp_path, text, capsys):
    run = Run(shutil.copytree(whole, tmp_path / "run"))
    (run.folder / OVERRIDES).write_text(text)
    assert main(["check", str(P1), "--out", str(run.folder)]) == 2
    assert OVERRIDES in capsys.readouterr().err
    with pytest.raises(DamagedRun):
        override_verdict(run, "p1_02.jpg", False)
    assert (run.folder / OVERRIDES).read_text() == text


def test_names_that_lead_out_of_the_run_are_refused(whole, tmp_path):
    for stage, field, record in (
        ("headshots", "headshots", "file"), ("photos", "verdicts", "photo"), ("headshots", "delivered", None),
    ):  # fmt: skip
        run = Run(shutil.copytree(whole, tmp_path / f"{stage}{record}"))
        for name in ("../../../etc/passwd", "/etc/passwd", "a\0b", "sub/../../x"):
            found = Run(whole).peek(stage)
            if record:
                found[field][0][record] = name
            else:
                found[field][0] = name
            write_json(run.path(stage) / "manifest.json", found)
            with pytest.raises(DamagedRun):
                run.manifest(stage)


# --- every state file, every way, every verb that reads it ----------------------------------------------------------


READ_BY = {
    "photos/manifest.json": ("check", "prepare", "train", "generate", "restore", "evaluate", "gallery", "run"),
    "dataset/manifest.json": ("prepare", "train", "pick", "generate", "export", "run"),
    "lora/manifest.json": ("train", "pick", "generate", "evaluate", "export", "run"),
    "lora/losses.json": ("plot_losses",),
    "lora/previews/previews.json": ("read_previews", "render_previews"),
    "picked/manifest.json": ("pick", "generate", "run"),
    "headshots/manifest.json": ("generate", "restore", "evaluate", "gallery", "run"),
    "restored/manifest.json": ("restore", "evaluate", "gallery", "run"),
    "report/manifest.json": ("evaluate", "gallery", "run"),
    "report/metrics.json": ("plot_evaluation",),
    "gallery/manifest.json": ("gallery", "run"),
    OVERRIDES: ("check", "run", "override"),
}
"""State file -> the verbs that read it and are refused while it is damaged."""
VERBS = {
    "plot_losses": lambda run: plots.plot_losses(run),
    "plot_evaluation": lambda run: plots.plot_evaluation(run),
    "read_previews": lambda run: previews.read_previews(run),
    "render_previews": lambda run: previews.render_previews(run),
    "override": lambda run: override_verdict(run, "p1_02.jpg", False),
}
"""What is no command."""


def with_text(text):
    return lambda path: path.write_text(text)


def with_bytes(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def in_its_place(make):
    def place(path):
        path.unlink()
        make(path)

    return place


def folder_with_a_file(path):
    path.mkdir()
    (path / "a.json").write_text("{}")


def as_large_as_a_disk(path):
    with open(path, "wb") as file:
        file.truncate(10**12)


def nested(depth, start="[", end="]"):
    return with_text(start * depth + "1" * (start != "[") + end * depth)


DAMAGES = {
    "empty": with_text(""),
    "blank": with_text(" \n"),
    "half": with_bytes(lambda data: data[: len(data) // 2]),
    "without its end": with_bytes(lambda data: data.rstrip()[:-1]),
    "one byte": with_bytes(lambda data: data[:1]),
    "a bit flipped": with_bytes(lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:]),
    "zeros": with_bytes(lambda data: bytes(len(data))),
    "zeros at its end": with_bytes(lambda data: data[: len(data) // 2] + bytes(len(data) // 2)),
    "a picture": with_bytes(lambda _: b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "utf-16": with_bytes(lambda data: data.decode().encode("utf-16")),
    "latin-1": with_bytes(lambda data: b'{"name": "caf\xe9"}'),
    "marked": with_bytes(lambda data: b"\xef\xbb\xbf" + data),
    "twice": with_bytes(lambda data: data + data),
    "with a comment": with_bytes(lambda data: b"// mine\n" + data),
    "conflict": with_bytes(lambda data: b"<<<<<<< mine\n" + data + b"=======\n" + data + b">>>>>>> theirs\n"),
    "a list": with_text("[]"),
    "null": with_text("null"),
    "true": with_text("true"),
    "a number": with_text("-3"),
    "a long number": with_text("9" * 5000),
    "not a number": with_text("NaN"),
    "a text": with_text('"x"'),
    "a web page": with_text("<!doctype html><title>404</title>"),
    "another table": with_text('{"a": [1, {"b": null}]}'),
    "a list of itself": with_bytes(lambda data: b"[" + data + b"]"),
    "deep lists": nested(100_000),
    "deep tables": nested(100_000, '{"a":', "}"),
    "deep, not closed": nested(100_000, "[", ""),
    "deep inside": with_text('{"stage": ' + "[" * 900 + "]" * 900 + "}"),
    "large": with_bytes(lambda data: data + b" " * MAX_JSON_BYTES),
    "as large as a disk": as_large_as_a_disk,
    "a folder": in_its_place(Path.mkdir),
    "a folder with a file": in_its_place(folder_with_a_file),
    "a pipe": in_its_place(os.mkfifo),
    "endless": in_its_place(lambda path: path.symlink_to("/dev/zero")),
    "nothing": in_its_place(lambda path: path.symlink_to("/dev/null")),
    "a circle": in_its_place(lambda path: path.symlink_to(path)),
    "a link to nowhere": in_its_place(lambda path: path.symlink_to(path.parent / "gone")),
    "another file's": in_its_place(lambda path: path.symlink_to("/etc/hostname")),
}
"""What can become of a state file; none of it can be used."""


JUNK_VALUES = {"absent": None, "null": None, "list": [], "table": {}, "text": "x", "number": -1, "nan": float("nan")}
"""What can stand in the place of a value, in a file that is well-formed and has no check sum."""


@pytest.fixture(scope="module")
def every_state_file(tmp_path_factory):
    """A run with each file of READ_BY, whose verbs find nothing to do: (its folder, how each verb is given).

    The tests damage it and mend it again.
    """
    root = tmp_path_factory.mktemp("every")
    run, photos = Run(root / "run"), root / "photos"
    photos.mkdir()
    for photo in sorted(P1.glob("p1_*.jpg"))[:4]:
        shutil.copy(photo, photos)
    out = ["--out", str(run.folder)]
    verbs = {command: [command, *out] for command in COMMANDS.values()}
    verbs |= {"check": ["check", str(photos), *out], "run": ["run", str(photos), "--base", "mini", *out],
              "export": ["export", str(root / "x.safetensors"), *out]}  # fmt: skip
    drawing = ["--sampler-steps", "3"]
    first = {"check": ["--min-photos", "3"], "prepare": ["--base", "mini", "--class-word", "man"],
             "train": ["--steps", "4", "--snapshots", "2"], "pick": ["--scales", "1", "--pick-prompts", "2", *drawing],
             "generate": ["--count", "2", "--max-attempts", "1", *drawing]}  # fmt: skip
    order = ("check", "prepare", "train", "pick", "generate", "restore", "evaluate", "gallery")
    with contextlib.redirect_stdout(io.StringIO()):
        for command in order:
            assert main([*verbs[command], *first.get(command, [])]) == 0
            if command == "check":
                override_verdict(run, "p1_04.jpg", False)
        previews.render_previews(run)
    return run.folder, verbs


def give(verb: str, folder: Path, verbs: dict[str, list[str]]) -> tuple[int, str]:
    """Give a command, or call a verb: (exit code, what was said)."""
    if verb in VERBS:
        try:
            VERBS[verb](Run(folder))
        except HeadshotError as error:
            return 2, str(error)
        return 0, ""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = main(verbs[verb])
    return code, said.getvalue()


def facts_of_place(path: Path) -> tuple:
    """Return what tells a damaged file from another, whatever kind it is of."""
    found = path.lstat()
    plain = stat.S_ISREG(found.st_mode) and found.st_size < 2**24
    return found.st_mode, found.st_ino, found.st_size, path.read_bytes() if plain else b""


def refused_by_all(folder: Path, verbs: dict, name: str, damage) -> int:
    """Damages a state file; every verb that reads it names it and touches nothing. Returns how many verbs."""
    file, before = folder / name, everything_but(folder, name)
    kept = file.read_bytes()
    damage(file)
    try:
        damaged = facts_of_place(file)
        for verb in READ_BY[name]:
            code, said = give(verb, folder, verbs)
            assert code == 2 and said.startswith("DamagedRun") and name in said, f"{verb}: {code} {said[:400]}"
            assert facts_of_place(file) == damaged and not changed(folder, name, before), f"{verb} lost something"
    finally:
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        file.write_bytes(kept)
    return len(READ_BY[name])


@pytest.mark.parametrize("way", DAMAGES)
def test_each_way_of_damage_is_named(whole, way, capsys):
    """The short series: one file a way, read by what loads nothing."""
    name = STATE[list(DAMAGES).index(way) % len(STATE)]
    file, before = whole / name, everything_but(whole, name)
    kept = file.read_bytes()
    DAMAGES[way](file)
    try:
        code, said = read_by_hand(whole, name, capsys)
        assert code == 2 and name in said and not changed(whole, name, before)
    finally:
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        file.write_bytes(kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", READ_BY)
def test_every_verb_refuses_every_damage(every_state_file, name):
    folder, verbs = every_state_file
    for verb in READ_BY[name]:
        if verb != "override":  # which always has something to do
            before = everything_but(folder, "")
            assert give(verb, folder, verbs) == (0, ""), verb
            assert not changed(folder, "", before), f"{verb} has something to do"
    tried = [refused_by_all(folder, verbs, name, damage) for damage in DAMAGES.values()]
    print(f"{name}: {len(tried)} damaged states, {sum(tried)} calls refused")


@pytest.mark.slow
@pytest.mark.parametrize("name", READ_BY)
def test_a_value_of_any_other_kind_is_refused_or_does_no_harm(every_state_file, name):
    """A key is gone or holds another type, and the file has no check sum: no traceback, and nothing is set aside."""
    folder, verbs = every_state_file
    file = folder / name
    kept, whole_run = file.read_bytes(), everything_but(folder, name)
    value = json.loads(kept)
    value.pop(CHECK_SUM)
    codes = Counter()
    states = [(key, junk) for key in value for junk in JUNK_VALUES if type(value[key]) is not type(JUNK_VALUES[junk])]
    if name == OVERRIDES:  # without a note it says another thing, and is whole
        states = [(key, junk) for key, junk in states if junk != "absent"]
    for number, (key, junk) in enumerate(states):
        junked = {one: JUNK_VALUES[junk] if one == key else kept for one, kept in value.items()}
        if junk == "absent":
            del junked[key]
        file.write_text(json.dumps(junked))
        try:
            verb = READ_BY[name][number % len(READ_BY[name])]
            code, said = give(verb, folder, verbs)
            assert code in (0, 2), f"{key} {junk}, {verb}: {code} {said[:400]}"
            assert not changed(folder, name, whole_run), f"{key} {junk}, {verb}: {said[:400]}"
        finally:
            file.write_bytes(kept)
        codes[code] += 1
    print(f"{name}: {len(states)} damaged states, {codes[2]} refused")
    assert codes[2]


# --- captions -----------------------------------------------------------------------------------------------------


def test_captions_are_read_as_windows_saves_them_and_other_bytes_are_named(whole, tmp_path, capsys):
    run = Run(shutil.copytree(whole, tmp_path / "run"))
    dataset = Dataset.from_dict(run.peek("dataset")["dataset"])
    file = (run.path("dataset") / dataset.photos[0].file).with_suffix(".txt")
    words = "photo of ohwx man, in a caf\u00e9, smiling"
    for kind in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes(words.encode(kind))
        assert with_edits(run.path("dataset"), dataset).photos[0].caption == words
    for data in (
        "it\u2019s sunny \u2013 in a caf\u00e9".encode("cp1252"), "\u7b11\u9854".encode("shift_jis"),
        words.encode("utf-16-le"), b"\xff\xfea", b"a\0b", b"\x1b[31m", b"a" * 20_000,
    ):  # fmt: skip
        file.write_bytes(data)
        with pytest.raises(BadCaption, match=file.name):
            with_edits(run.path("dataset"), dataset)
        for command in ("prepare", "train"):
            assert main([command, "--out", str(run.folder), "--base", "mini"]) == 2
            assert file.name in capsys.readouterr().err
    assert not (run.folder / "earlier").exists()


# --- the command line ---------------------------------------------------------------------------------------------


def test_an_unforeseen_error_is_a_line_and_a_log(monkeypatch, tmp_path, capsys):
    """The error is a monkeypatched raise in the library that lists the bank."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("headshotkit.generation.prompts.load_prompts", lambda _: 1 / 0)
    assert main(["prompts"]) == 3
    said = capsys.readouterr().err
    (log,) = tmp_path.glob("headshotkit-*.log")
    assert said.startswith("ZeroDivisionError") and str(log) in said and "Traceback" not in said
    assert "Traceback" in log.read_text() and log.stat().st_mode & 0o077 == 0


def test_whoever_stops_reading_ends_the_command_quietly():
    call = f"{sys.executable} -m headshotkit.cli prompts --json | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.endswith("141\n")


def test_a_console_without_a_letter_shows_its_number(tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(P1 / "p1_01.jpg", tmp_path / "photos" / "ich \U0001f600 selfie.jpg")
    call = [sys.executable, "-m", "headshotkit.cli", "crop", str(tmp_path / "photos"), str(tmp_path / "out")]
    done = subprocess.run(call, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and done.stderr == b"" and b"ich \\U0001f600 selfie.jpg" in done.stdout
