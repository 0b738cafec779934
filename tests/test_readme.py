"""The README is short, and the commands, flags, rooms and files that it names exist."""

import re
from pathlib import Path

import pytest
from test_rooms import ROOMS

from headshotkit.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BENCHMARKS = ROOT / "tests" / "benchmarks"
PAGES = (ROOT / "README.md", BENCHMARKS / "README.md", ROOT / "data" / "mini" / "README.md")


def help_of(capsys, *command: str) -> str:
    """Return the help of the command line or of one command."""
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


def section(title: str) -> str:
    """Return a section of the README."""
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 120


def test_its_commands_are_those_of_the_command_line(capsys):
    cells = [row.split("|")[1] for row in section("Commands").splitlines() if row.startswith("| `")]
    named = {found.split()[0] for cell in cells for found in re.findall(r"`([^`]+)`", cell)} | {"run", "demo"}
    known = set(re.findall(r"^[│• ]{4,}([a-z]+) {2,}\w", help_of(capsys), re.MULTILINE))
    assert named == known


def test_its_flags_are_those_of_run(capsys):
    flags = set(re.findall(r"`(--[a-z-]+)`", section("Commands")))
    known = set(re.findall(r"--[a-z-]+", help_of(capsys, "run")))
    assert "--minutes" in flags and flags - {"--help"} <= known


def test_its_rooms_are_in_their_order():
    rows = [row.split("|")[1] for row in section("How to change it").splitlines() if row.startswith("| `")]
    rooms = [room.removesuffix("/").removesuffix(".py") for row in rows for room in re.findall(r"`([^`]+)`", row)]
    assert tuple(rooms) == ROOMS


def test_the_files_to_edit_exist():
    for row in section("How to change it").splitlines():
        if row.startswith("| `") and (room := re.match(r"\| `(\w+)/`", row)):
            files = re.findall(r"`([\w.]+)`", row.split("|", 2)[2])
            assert [f for f in files if not (ROOT / "headshotkit" / room[1] / f).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name)
def test_its_links_lead_somewhere(page):
    anchors = {p: {anchor_of(line) for line in p.read_text().splitlines() if line.startswith("#")} for p in PAGES}
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            place = (page.parent / file).resolve() if file else page
            assert place.exists() and (not anchor or anchor in anchors[place]), link


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def test_every_benchmark_has_its_heading():
    headings = [line for line in (BENCHMARKS / "README.md").read_text().splitlines() if line.startswith("## ")]
    scripts = [file.name for file in BENCHMARKS.glob("*.py") if "__main__" in file.read_text()]
    text = (BENCHMARKS / "README.md").read_text()
    own = [name for name in scripts if name not in ("paced_training.py",)]  # a part of speed_of_training.py
    assert [name for name in own if not any(f"`{name}`" in line for line in headings)] == []
    assert [file.name for file in BENCHMARKS.glob("*.py") if f"`{file.name}`" not in text] == []
