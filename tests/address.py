"""Writes the repository's address, which stands in pyproject.toml, wherever it is shown: `make address`.

That is the README, core/runtime.py, and in each notebook the Colab badge and the first two cells. These are the same in
all notebooks, so they stand here.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^)\s]+")
DRIVE = """\
# @title Google Drive
# @markdown On Colab, tick this to keep your runs after the session: it mounts your Drive.
# @markdown Then set RUN, further down, to a folder there, such as /content/drive/MyDrive/me.
MOUNT_DRIVE = False  # @param {type:"boolean"}
if MOUNT_DRIVE:
    try:
        from google.colab import drive
    except ImportError:
        print("not on Colab: there is no Drive to mount")
    else:
        drive.mount("/content/drive")
"""
SETUP = """\
# @title Setup
import sys
from pathlib import Path

if "google.colab" in sys.modules:  # what Colab lacks is added; nothing that it has is replaced
    wheels = [wheel for place in (".", "drive/MyDrive") for wheel in Path(place).resolve().glob("headshotkit-*.whl")]
    source = wheels[0].as_uri() if wheels else "git+ADDRESS"
    %pip install --quiet "headshotkit[faces,train] @ {source}"
try:
    from headshotkit.core import runtime
except ImportError:
    raise ImportError("headshotkit is missing. Put its .whl into the Files pane and run this cell again.") from None
print(runtime.report())
"""


def address() -> str:
    """Return the repository's URL, as pyproject.toml has it."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def with_address(path: Path) -> str:
    """Return the text of a notebook, the README or core/runtime.py as it is with the address in it."""
    text, url = path.read_text(), address()
    on_colab = f"{url.replace('github.com', 'colab.research.google.com/github')}/blob/main/notebooks"
    if path.suffix == ".py":
        return re.sub(r'(?<=^REPOSITORY = ")[^"]+', url, text, flags=re.MULTILINE)
    if path.suffix == ".md":
        text = re.sub(r"(?<=git clone )\S+|(?<=git\+)https://[^\s\"]+", url, text)
        return COLAB.sub(f"{on_colab}/00_quickstart.ipynb", text)
    notebook = json.loads(text)
    title, *cells = notebook["cells"]
    title["source"] = [COLAB.sub(f"{on_colab}/{path.name}", line) for line in title["source"]]
    others = [cell for cell in cells if cell["id"] not in ("drive", "setup")]
    made = [form_cell("drive", DRIVE), form_cell("setup", SETUP.replace("ADDRESS", url))]
    notebook["cells"] = [title, *made, *others]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def form_cell(name: str, code: str) -> dict:
    """Return a code cell that Colab shows as a form."""
    shape = {"cell_type": "code", "execution_count": None, "id": name, "metadata": {"cellView": "form", "tags": [name]}}
    return shape | {"outputs": [], "source": code.rstrip("\n").splitlines(keepends=True)}


def places() -> list[Path]:
    """Return the files that show the address."""
    return [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "README.md", ROOT / "headshotkit" / "core/runtime.py"]


if __name__ == "__main__":
    for place in places():
        place.write_text(with_address(place))
