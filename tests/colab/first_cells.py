"""Runs the first two cells of a notebook as a person on Colab does: python tests/colab/first_cells.py WHEEL

Once without a wheel and without a network, which must end in a line that says what to do; then with Drive ticked and
the wheel in it, which must install headshotkit. The real %pip runs, for the Python that runs this; Colab's own package
is a stand-in.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE.parents[1] / "notebooks" / "00_quickstart.ipynb"


def run_first_cells(folder: Path, ticked: bool) -> str:
    """Execute the cells `drive` and `setup` in a folder; return what they print.

    Raises:
        CellExecutionError: one of them failed.
    """
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells = [cell for cell in notebook.cells if cell.id in ("drive", "setup")]
    start = nbformat.v4.new_code_cell("import google.colab", id="colab")  # a kernel of Colab's has done so
    notebook.cells.insert(0, start)
    if ticked:
        notebook.cells[1].source = notebook.cells[1].source.replace("MOUNT_DRIVE = False", "MOUNT_DRIVE = True")
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    os.environ["PYTHONPATH"] = str(HERE / "stand_in")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        offline = {"PIP_NO_INDEX": "1", "GIT_ALLOW_PROTOCOL": "none"}
        os.environ.update(offline)
        try:
            print(run_first_cells(folder, False))
            sys.exit("FAILED: nothing can be installed, and yet the cells ended well")
        except CellExecutionError as error:
            assert "headshotkit is missing" in str(error), error
            print("without a wheel and an address:", str(error).strip().splitlines()[-1])
        for variable in offline:
            del os.environ[variable]
        (folder / "drive" / "MyDrive").mkdir(parents=True)
        shutil.copy(wheel, folder / "drive" / "MyDrive")
        print(run_first_cells(folder, True))
