"""The versions that `make demo` installs, and the ranges of pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
UNCAPPED = {"torch", "headshotkit"}
"""Torch never gets an upper limit: a GPU's own build decides."""


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> list[Requirement]:
    """What headshotkit asks for with these extras, those of extras that they name included."""
    asked = list(project()["dependencies"])
    for extra in extras:
        asked += project()["optional-dependencies"][extra]
    found = [Requirement(line) for line in asked]
    inner = [extra for one in found if one.name == "headshotkit" for extra in one.extras if extra not in extras]
    return requirements(*extras, *inner) if inner else [one for one in found if one.name != "headshotkit"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "tests" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_every_pin_is_in_the_range_that_is_promised(extra):
    known, asked = pins(), requirements(extra)
    assert len(asked) > 15
    for one in asked:
        name = canonicalize_name(one.name)
        assert name in known and one.specifier.contains(known[name], prereleases=True), one


def test_every_requirement_but_torch_has_an_upper_limit():
    asked = requirements("faces", "dlib", "train", "prodigy")
    open_ended = {one.name for one in asked if not any(part.operator in ("<", "==", "~=") for part in one.specifier)}
    assert open_ended <= UNCAPPED


def test_make_installs_what_is_pinned():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-e " in line]
    assert len(lines) == 2 and all("-c tests/constraints.txt" in line for line in lines)
