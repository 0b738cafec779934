"""The rooms of the package: each imports only rooms to its left."""

import ast
from pathlib import Path

import headshotkit

PACKAGE = Path(headshotkit.__file__).parent
ROOMS = (
    "core", "config", "faces", "families", "photos", "dataset", "planning", "training", "scoring", "generation",
    "restoration", "evaluation", "delivery", "widgets", "pipeline", "cli",
)  # fmt: skip


def imported(file: Path) -> set[str]:
    """Return the rooms that a file imports, at its head or in a function."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [f"headshotkit.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom)
              and node.module == "headshotkit" for alias in node.names]  # fmt: skip
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("headshotkit.")}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_a_room_imports_only_rooms_to_its_left():
    wrong = {
        f"{room_of(file)} -> {room}: {file.relative_to(PACKAGE)}"
        for file in PACKAGE.rglob("*.py")
        if file != PACKAGE / "__init__.py"
        for room in imported(file) - {room_of(file)}
        if room not in ROOMS[: ROOMS.index(room_of(file))]
    }
    assert wrong == set()


def test_every_room_says_in_a_sentence_what_it_holds():
    rooms = [PACKAGE / room for room in ROOMS if (PACKAGE / room).is_dir()]
    assert len(rooms) == 14 and all(ast.get_docstring(ast.parse((r / "__init__.py").read_text())) for r in rooms)
