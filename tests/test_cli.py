"""The command line as a person uses it: good input, bad input, and what is left after an error."""

import json
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from conftest import P1
from PIL import Image

from headshotkit.cli import COMMAND_LINE, chosen_by, main, parse
from headshotkit.config import GenerateConfig, PickConfig, RunSettings
from headshotkit.config.run_settings import NAMES, flag, in_options
from headshotkit.pipeline import config_for


@pytest.fixture
def cli(capsys):
    """Runs a command; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def ten_photos(tmp_path):
    """Ten good photos of the sample person."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(1, 11):
        shutil.copy(P1 / f"p1_{n:02d}.jpg", folder)
    return folder


def test_check_prints_a_line_or_the_manifest(cli, ten_photos, tmp_path):
    code, out, _ = cli("check", ten_photos, "--out", tmp_path / "run")
    assert code == 0 and out.startswith("check      kept 10 of 10 photos (")
    code, out, err = cli("check", ten_photos, "--out", tmp_path / "run", "--json")
    manifest = json.loads(out)
    assert code == 0 and manifest["stage"] == "photos" and len(manifest["verdicts"]) == 10
    assert err.startswith("check      kept 10")


@pytest.mark.parametrize("command", [["generate"], ["run", "photos"]])
def test_how_headshots_are_drawn_can_be_said(command):
    drawing = ["--sampler-steps", "12", "--minutes", "20", "--guidance", "2", "--sampler", "dpmpp-2m-karras"]
    config = config_for(GenerateConfig, "mini", chosen_by(*parse([*command, *drawing])))
    assert (config.sampler_steps, config.minutes, config.guidance, config.sampler) == (12, 20.0, 2.0, "dpmpp-2m-karras")
    usual = config_for(GenerateConfig, "mini", RunSettings())
    assert usual == GenerateConfig.for_base("mini") and usual.minutes == 0


def test_every_command_has_help_and_json(capsys):
    for command in COMMAND_LINE:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0 and "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["--help"], set()),
        (["train", "--help"], set()),
        (["prompts"], set()),
        (["plan"], set()),
        (["gallery", "--out", "{out}"], set()),
        (["crop", "{photos}", "{out}"], {"onnxruntime"}),
        (["check", "{photos}", "--out", "{out}", "--min-photos", "1"], {"onnxruntime", "jinja2"}),
        (["restore", "--out", "{out}"], set()),
        (["evaluate", "--out", "{out}"], {"matplotlib"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_loads_only_what_it_needs(command, heavy, tmp_path):
    """Torch and diffusers take seconds to load and half a gigabyte; most commands have no use for them."""
    (tmp_path / "photos").mkdir()
    shutil.copy(P1 / "p1_02.jpg", tmp_path / "photos")
    places = {"photos": tmp_path / "photos", "out": tmp_path / "out"}
    code = (
        "import sys; from headshotkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    words = [word.format(**places) for word in command]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "headshotkit" in loaded
    assert (
        loaded & {"torch", "diffusers", "transformers", "matplotlib", "huggingface_hub", "onnxruntime", "jinja2"}
        == heavy
    )


def photo_folder(tmp_path, kind):
    """A folder of bad input of some kind."""
    folder = tmp_path / "photos"
    if kind == "missing":
        return folder
    folder.mkdir()
    if kind == "texts":
        (folder / "a.txt").write_text("hello")
        (folder / "b.json").write_text("{}")
    if kind == "truncated":
        (folder / "a.jpg").write_bytes((P1 / "p1_01.jpg").read_bytes()[:20_000])
    if kind == "one":
        shutil.copy(P1 / "p1_01.jpg", folder)
    if kind == "faceless":
        rng = np.random.default_rng(0)
        for n in range(3):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).resize((400, 400)).save(folder / f"{n}.png")
    return folder


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("missing", "NoPhotos", "/photos"),
        ("empty", "NoPhotos", " 0 files"),
        ("texts", "NoPhotos", " 2 files"),
        ("truncated", "TooFewPhotos", "0 of 1 "),
        ("one", "TooFewPhotos", "1 of 1 "),
        ("faceless", "TooFewPhotos", "3 no_face"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_photos_are_an_error_with_advice(cli, tmp_path, command, kind, error, said):
    code, _, err = cli(command, photo_folder(tmp_path, kind), "--out", tmp_path / "run", "--base", "mini")
    assert code == 2 and err.startswith(f"{error}: ") and said in err
    assert "Traceback" not in err and len(err.strip().splitlines()) >= 2


def test_an_unknown_base_is_an_error_before_any_work(cli, ten_photos, tmp_path):
    code, _, err = cli("run", ten_photos, "--out", tmp_path / "run", "--base", "sd15")
    assert code == 2 and err.startswith("UnknownBase: ") and not (tmp_path / "run").exists()


def test_an_out_folder_that_cannot_be_written_is_an_error(cli, ten_photos, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        code, _, err = cli("check", ten_photos, "--out", out)
        assert code == 2 and err.startswith("RunFolderError: ") and "--out" in err


def test_a_stage_too_early_says_what_comes_first(cli, tmp_path):
    """All of it at once, with the one command that does it."""
    code, _, err = cli("prepare", "--out", tmp_path / "run", "--base", "mini")
    assert code == 2 and f"Run first: headshotkit check PHOTOS --out {tmp_path / 'run'}" in err
    for command, needed in (("train", "prepare"), ("generate", "train"), ("restore", "generate"),
                            ("evaluate", "generate"), ("gallery", "generate")):  # fmt: skip
        code, _, err = cli(command, "--out", tmp_path / "run", "--base", "mini")
        first, does = err.splitlines()[-2:]
        assert code == 2 and first.endswith(f"headshotkit run PHOTOS --out {tmp_path / 'run'}")
        assert {"check", "prepare", needed} <= {*does.replace(",", " ").split()}


def test_bad_settings_are_errors_and_lose_nothing(cli, brief_run):
    before = {f: f.stat().st_mtime_ns for f in brief_run.folder.rglob("*") if f.is_file()}
    for arguments in (
        ("train", "--steps", "0"),
        ("generate", "--count", "-1"),
        ("generate", "--prompts", brief_run.folder / "nowhere.toml"),
        ("restore", "--fidelity", "7"),
        ("prepare", "--token", " "),
    ):
        code, _, err = cli(*arguments, "--out", brief_run.folder)
        assert code == 2 and "Traceback" not in err
    assert {f: f.stat().st_mtime_ns for f in brief_run.folder.rglob("*") if f.is_file()} == before


def test_a_full_disk_is_an_error_and_the_run_goes_on_elsewhere(cli, ten_photos, tmp_path):
    """A real disk of 1 MiB: the check fails half way; with the same command on a larger one it is done."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    made = subprocess.run(mount, capture_output=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    try:
        code, _, err = cli("check", ten_photos, "--out", disk / "run")
        assert code == 2 and err.startswith("DiskFull: ") and "MiB" in err
        subprocess.run([*mount[:4], "remount,size=30m", "tmpfs", disk], check=True)
        code, out, _ = cli("check", ten_photos, "--out", disk / "run")
        assert code == 0 and "kept 10 of 10 photos" in out
    finally:
        subprocess.run(["umount", disk], check=True)


def test_as_a_process_an_error_is_exit_code_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "headshotkit.cli", "check", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("NoPhotos: ") and "Traceback" not in done.stderr


def test_gallery_does_what_is_missing_of_the_short_stages(cli, brief_run):
    code, out, err = cli("gallery", "--out", brief_run.folder)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines() if line[:1] != " "] == ["restore", "evaluate", "gallery"]


def options_named(command):
    """The names of a command's options, those in groups too."""
    made = COMMAND_LINE[command].options()
    kinds = [typing.get_args(typing.get_args(hint)[0] if "Required" in str(hint) else hint) for hint in made.values()]
    groups = [kind[0].__annotations__ for kind in kinds if kind and typing.is_typeddict(kind[0])]
    return {*made, *(name for group in groups for name in group)}


def test_a_run_takes_the_settings_of_its_stages_alone(capsys):
    """It does not pick, so the settings of picking would do nothing."""
    for command in ("run", "demo"):
        names = options_named(command)
        assert {name for name, homes in NAMES.items() if homes[0][0] is not PickConfig} <= names
        assert not names & {"scales", "pick_prompts", "pick"}
        with pytest.raises(SystemExit) as stopped:
            parse([command, *["photos"] * (command == "run"), "--scales", "1"])
        assert stopped.value.code == 2
    assert parse(["pick", "--scales", "1"])[1] == {"scales": (1.0,)}
    capsys.readouterr()


def test_the_list_of_settings_has_every_default_as_it_is_typed(cli):
    rows = {line.split(":")[0].split()[-1]: line for line in cli("settings")[1].splitlines() if " --" in line}
    wanted = {"seed": 0, "checkpointing": False, "snapshots": 0, "minutes": 0.0, "scales": "0.6 0.8", "packs": "none"}
    wanted["face-fractions"] = "0.45 0.62; 0.55 0.65 with base mini"
    assert {name for name, default in wanted.items() if f"default: {default}" not in rows[f"--{name}"]} == set()


def test_messages_name_options_and_settings_that_exist(cli, tmp_path):
    """And examples that can be typed."""
    text = (Path(__file__).with_name("messages.txt")).read_text(encoding="utf-8")
    known = {flag(name) for command in COMMAND_LINE for name in options_named(command)}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) - {"--no-deps", "--force-reinstall"} <= known
    settings = set(re.findall(r"\w+Config\.[a-z]\w+", text))
    assert len(settings) > 20 and not [name for name in settings if not in_options(name).startswith("--")]
    example = re.search(r"(--schedule \d[^)]*)\)", text)[1].split()
    assert parse(["train", *example])[1]["schedule"] == ((768, 1000),)
    code, _, err = cli("check", tmp_path, "--min-photos", 30, "--out", tmp_path / "run")
    assert code == 2 and "--max-photos" in err and "CheckConfig" not in err
