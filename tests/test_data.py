"""What data/ holds is what data/README.md says."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from headshotkit.core.records import REASON_CODES

DATA = Path(__file__).resolve().parents[1] / "data"
SCRIPTS = (".py", ".md", ".csv")


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    """The README's list: path in data/ -> sha256."""
    text = (DATA / "README.md").read_text()
    return {path: digest for digest, path in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.M)}


def test_every_data_file_is_listed_with_its_sha256(listed):
    files = [f for f in DATA.rglob("*") if f.is_file() and f.suffix not in SCRIPTS and "__pycache__" not in f.parts]
    assert {f.relative_to(DATA).as_posix() for f in files} == set(listed)
    wrong = [f for f in files if hashlib.sha256(f.read_bytes()).hexdigest() != listed[f.relative_to(DATA).as_posix()]]
    assert not wrong


def test_the_wheel_holds_what_the_package_reads(listed):
    """The pictures beside data/README.md are for the README alone."""
    build = tomllib.loads((DATA.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert all(there == here.replace("data/", "headshotkit/_data/") for here, there in included.items())
    read = [f"data/{path}" for path in listed if "/" in path]
    assert [path for path in read if not any(path.startswith(f"{here}/") for here in included)] == []


def test_the_labels_name_photos_and_codes():
    labels = json.loads((DATA / "people" / "p1_labels.json").read_text())
    assert len(labels) == 12
    for name, label in labels.items():
        assert (DATA / "people" / "p1" / name).is_file() and label["code"] in REASON_CODES


def test_the_embedded_base_is_small():
    size = sum(f.stat().st_size for f in (DATA / "mini" / "base").rglob("*") if f.is_file())
    assert size <= 60e6
