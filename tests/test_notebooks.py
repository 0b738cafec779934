"""The notebooks: their form, each check shown to fail on a broken one, and that they run from the first to the last.

The runs use the embedded base, the sample person and real detectors; a few steps and headshots show that everything
fits together, not that the LoRA is good: that is asserted where it is trained to its end.
"""

import ast
import atexit
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from collections import Counter
from functools import partial
from pathlib import Path

import address
import nbformat
import pytest
from conftest import P1
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from headshotkit.config import CLASS_WORDS, METHODS, PickConfig, RestoreConfig
from headshotkit.config.run_settings import NAMES

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BADGE = f"{address.address().replace('github.com', 'colab.research.google.com/github')}/blob/main/notebooks/"
MOST_LINES = 12
TAGS = ("setup", "parameters", "results")


# --- the checks: each returns what is wrong, in words -------------------------------------------------------------


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def parsed(cell):
    """The cell as Python; its magics become `pass`."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE))


def knobs(notebook):
    """The names that the parameters cell sets."""
    statements = parsed(tagged(notebook, "parameters")[0]).body
    return [s.targets[0].id for s in statements if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]


def outputs(notebook):
    """An output may be somebody's face; counts and widget state come with outputs."""
    found = [f"cell {c.id} has an output" for c in code_cells(notebook) if c.outputs]
    found += [f"cell {c.id} has an execution count" for c in code_cells(notebook) if c.execution_count is not None]
    return found + (["the metadata hold widgets"] if "widgets" in notebook.metadata else [])


def foreign_kernel(notebook):
    """Colab, JupyterLab and papermill all have python3."""
    name = notebook.metadata.get("kernelspec", {}).get("name")
    found = [] if name == "python3" else [f"the kernel is {name}, not python3"]
    language = notebook.metadata.get("language_info", {}).get("name")
    return found + ([] if language == "python" else [f"language_info is {language}, papermill needs python"])


def wrong_tags(notebook):
    counts = {tag: len(tagged(notebook, tag)) for tag in TAGS}
    found = [f"{count} cells are tagged {tag}, not 1" for tag, count in counts.items() if count != 1]
    forms = [c for c in tagged(notebook, "setup") if c.metadata.get("cellView") != "form"]
    return found + ["the setup cell is not shown as a form" for _ in forms]


def long_cells(notebook):
    """Cells with more lines than are read; a knob's sentence counts as one with its knob."""
    lines = {c.id: [line for line in c.source.splitlines() if line.strip()] for c in code_cells(notebook)}
    for cell in tagged(notebook, "parameters"):
        lines[cell.id] = [line for line in lines[cell.id] if not line.startswith("# ")]
    lengths = {name: len(there) for name, there in lines.items()}
    return [f"cell {i} has {n} lines, at most {MOST_LINES} are read" for i, n in lengths.items() if n > MOST_LINES]


def definitions(notebook):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    return [
        f"cell {cell.id} defines a function or a class; it belongs into the package"
        for cell in code_cells(notebook)
        if any(isinstance(node, kinds) for node in ast.walk(parsed(cell)))
    ]


def wrong_parameters(notebook):
    """Literals, one knob a line, with a sentence above each and Colab's form behind it.

    Colab's documentation shows forms of plain assignments alone, so there is no annotation.
    """
    found = []
    for cell in tagged(notebook, "parameters"):
        lines = cell.source.splitlines()
        for statement in parsed(cell).body:
            words = lines[statement.lineno - 1]
            if not isinstance(statement, ast.Assign) or not _is_literal(statement.value):
                found.append(f"not a plain literal: {words}")
            elif not statement.targets[0].id.isupper() or "# @param " not in words:
                found.append(f"not an UPPER_CASE knob with an @param: {words}")
            elif statement.lineno < 2 or not lines[statement.lineno - 2].startswith("# "):
                found.append(f"no sentence above: {words}")
    return found


def _is_literal(node):
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def idle_knobs(notebook):
    read = {
        node.id
        for cell in code_cells(notebook)
        for node in ast.walk(parsed(cell))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    return [f"nothing uses the knob {name}" for name in knobs(notebook) if name not in read]


def repeated_ids(notebook):
    counts = Counter(cell.id for cell in notebook.cells)
    return [f"{count} cells have the id {name}" for name, count in counts.items() if count > 1]


def wrong_badge(notebook, path):
    links = re.findall(r"https://colab\.research\.google\.com/github/[^)\s]+", notebook.cells[0].source)
    return [] if links == [f"{BADGE}{path.name}"] else [f"the badge of {path.name} points to {links}"]


def broken_links(notebook, path):
    """The last cell names the next notebook; every link to a file leads to one."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    found = [f"the link {link} leads nowhere" for link in links if not (path.parent / link).is_file()]
    last = re.findall(r"\]\((\w+\.ipynb)\)", texts[-1])
    leads_on = len(last) == 1 and last != [path.name]
    return found + ([] if leads_on else [f"the last cell links to {last}, not to the next notebook"])


CHECKS = (outputs, foreign_kernel, wrong_tags, long_cells, definitions, wrong_parameters, idle_knobs, repeated_ids)
PATH_CHECKS = (wrong_badge, broken_links)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert [word for check in CHECKS for word in check(notebook)] == []
    assert [word for check in PATH_CHECKS for word in check(notebook, path)] == []


def test_all_stages_have_a_notebook():
    assert [p.stem[:2] for p in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", address.places(), ids=lambda p: p.stem)
def test_the_address_and_the_first_cells_are_as_written(path):
    """After an edit `make address` writes them anew."""
    assert path.read_text() == address.with_address(path)


@pytest.mark.parametrize("path", address.places(), ids=lambda p: p.stem)
def test_another_address_is_written_everywhere(path, monkeypatch):
    here, there = address.address(), "https://github.com/somebody/else"
    monkeypatch.setattr(address, "address", lambda: there)
    name, text = here.removeprefix("https://github.com/"), address.with_address(path)
    assert text.count("somebody/else") == path.read_text().count(name) > 0 and name not in text


# --- the first two cells, on Colab and elsewhere; `make test-colab` lets the real pip follow them ------------------


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython in an empty folder; its %pip only notes what it is asked for, in `asked`."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # which IPython replaces
    made = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    made.asked = []
    made.register_magic_function(made.asked.append, "line", "pip")
    yield made
    made.atexit_operations()
    atexit.unregister(made.atexit_operations)  # it can be done once


@pytest.fixture
def colab(monkeypatch):
    """A stand-in for Colab's own package, which can't be had; `mounted` holds the folders that were asked for."""
    package, drive = types.ModuleType("google.colab"), types.ModuleType("google.colab.drive")
    package.drive, package.mounted = drive, []
    drive.mount = package.mounted.append
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", package)
    return package


@pytest.mark.parametrize("place", [".", "drive/MyDrive", None])
def test_the_setup_cell_takes_a_wheel_before_the_address(place, shell, colab, tmp_path):
    source = f"git+{address.address()}"
    if place:
        wheel = tmp_path / place / "headshotkit-0.1.0-py3-none-any.whl"
        wheel.parent.mkdir(parents=True, exist_ok=True)
        wheel.touch()
        source = wheel.as_uri()
    assert shell.run_cell(address.SETUP.replace("ADDRESS", address.address())).success
    assert shell.asked == [f'install --quiet "headshotkit[faces,train] @ {source}"']


def test_elsewhere_the_setup_cell_installs_nothing(shell):
    assert shell.run_cell(address.SETUP).success and shell.asked == []


def test_the_setup_cell_says_that_nothing_was_installed(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "headshotkit.core", None)
    done = shell.run_cell(address.SETUP)
    assert isinstance(done.error_in_exec, ImportError) and ".whl" in str(done.error_in_exec)


def test_the_drive_is_mounted_where_it_is_ticked(shell, colab):
    assert shell.run_cell(address.DRIVE).success and colab.mounted == []
    assert shell.run_cell(ticked(address.DRIVE)).success and colab.mounted == ["/content/drive"]


def test_elsewhere_a_tick_for_the_drive_is_only_said(shell, capsys):
    assert shell.run_cell(ticked(address.DRIVE)).success
    assert "not on Colab" in capsys.readouterr().out


def ticked(code):
    assert code.count("MOUNT_DRIVE = False") == 1
    return code.replace("MOUNT_DRIVE = False", "MOUNT_DRIVE = True")


# --- what git takes of a notebook that was run --------------------------------------------------------------------


def test_git_takes_a_notebook_without_its_outputs(tmp_path):
    """A real clone with the real filter; the file that was saved keeps its outputs."""
    root = FOLDER.parent
    (tmp_path / "tests").mkdir()
    for name in ("Makefile", ".gitattributes", "tests/strip_outputs.py"):
        shutil.copy(root / name, tmp_path / name)
    saved, plain = tmp_path / "a.ipynb", NOTEBOOKS[1].read_text(encoding="utf-8")
    notebook = nbformat.reads(plain, 4)
    cell = code_cells(notebook)[1]
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="a face")], 1
    notebook.metadata["widgets"] = {}
    nbformat.write(notebook, saved)
    call = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True, encoding="utf-8")
    for command in ("git init -q", f"make strip PYTHON={sys.executable}", "git add a.ipynb"):
        call(command.split())
    assert call(["git", "show", ":a.ipynb"]).stdout == plain
    assert outputs(nbformat.read(saved, 4))


def test_what_notebooks_leave_beside_them_is_not_taken():
    ignored = (FOLDER.parent / ".gitignore").read_text().split()
    assert {"/runs/", "/notebooks/runs/", "/demo/", ".ipynb_checkpoints/"} <= set(ignored)


# --- each check fails on a notebook that is broken in its way -----------------------------------------------------


def sound_notebook():
    """The smallest notebook that passes every check; `broken` is named as its own next one."""
    cells = [
        new_markdown_cell(f"# A\n[badge]({BADGE}a.ipynb)", id="title"),
        new_code_cell("pass", id="setup", metadata={"tags": ["setup"], "cellView": "form"}),
        new_code_cell(
            '# How many.\nN = 3  # @param {type:"integer"}', id="parameters", metadata={"tags": ["parameters"]}
        ),
        new_code_cell("print(N)", id="results", metadata={"tags": ["results"]}),
        new_markdown_cell("Next: [b](b.ipynb)", id="next"),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "x"}, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "b.ipynb").touch()
    return tmp_path / "a.ipynb"


def commit_output(nb):
    nb.cells[3].outputs = [nbformat.v4.new_output("stream", text="3")]


def commit_count(nb):
    nb.cells[3].execution_count = 1


def commit_widgets(nb):
    nb.metadata["widgets"] = {}


def foreign_kernelspec(nb):
    nb.metadata.kernelspec.name = "my-env"


def no_language(nb):
    del nb.metadata["language_info"]


def thirteen_lines(nb):
    nb.cells[3].source = "print(N)\n\n" * 13


def define_function(nb):
    nb.cells[3].source = "def show():\n    return N"


def lose_tag(nb):
    nb.cells[3].metadata = {}


def computed_knob(nb):
    nb.cells[2].source = '# How many.\nN = len("abc")  # @param {type:"integer"}'


def annotated_knob(nb):
    nb.cells[2].source = nb.cells[2].source.replace("N = ", "N: int = ")


def knob_without_sentence(nb):
    nb.cells[2].source = 'N = 3  # @param {type:"integer"}'


def rename_knob(nb):
    nb.cells[2].source = nb.cells[2].source.replace("N = ", "NUMBER = ")


def repeat_id(nb):
    nb.cells[3].id = "setup"


def foreign_badge(nb):
    nb.cells[0].source = nb.cells[0].source.replace("a.ipynb", "b.ipynb")


def dead_link(nb):
    nb.cells[-1].source = "Next: [c](c.ipynb)"


def no_next(nb):
    nb.cells[-1].source = "That was it."


BREAKS = {
    commit_output: outputs, commit_count: outputs, commit_widgets: outputs, foreign_kernelspec: foreign_kernel,
    no_language: foreign_kernel, thirteen_lines: long_cells, define_function: definitions, lose_tag: wrong_tags,
    computed_knob: wrong_parameters, annotated_knob: wrong_parameters, knob_without_sentence: wrong_parameters,
    rename_knob: idle_knobs, repeat_id: repeated_ids, foreign_badge: wrong_badge, dead_link: broken_links,
    no_next: broken_links,
}  # fmt: skip


def complaints(notebook, path):
    found = {check: check(notebook) for check in CHECKS} | {check: check(notebook, path) for check in PATH_CHECKS}
    return {check for check, words in found.items() if words}


def test_a_sound_notebook_passes(place):
    assert complaints(sound_notebook(), place) == set()


@pytest.mark.parametrize("damage", BREAKS, ids=lambda d: d.__name__)
def test_a_broken_notebook_is_refused(damage, place):
    notebook = sound_notebook()
    damage(notebook)
    assert complaints(notebook, place) == {BREAKS[damage]}


# --- they run -----------------------------------------------------------------------------------------------------


class UnknownKnob(Exception):
    """A notebook is given a parameter that its parameters cell does not have; papermill would only warn."""


def run_notebook(path, folder, parameters):
    """Executes a notebook by papermill in `folder` and returns its results.json.

    Raises:
        UnknownKnob: a parameter has no knob.
    """
    unknown = sorted(set(parameters) - set(knobs(nbformat.read(path, 4))))
    if unknown:
        raise UnknownKnob(f"{path.name} has no knob {', '.join(unknown)}")
    import papermill

    papermill.execute_notebook(
        path, folder / path.name, parameters, cwd=folder, kernel_name="python3", progress_bar=False, log_output=False
    )
    return json.loads((folder / parameters["RUN"] / "results.json").read_text())


def test_a_renamed_knob_fails(tmp_path):
    notebook = nbformat.read(FOLDER / "02_train_lora.ipynb", 4)
    for cell in code_cells(notebook):
        cell.source = cell.source.replace("STEPS", "UPDATES")
    nbformat.write(notebook, tmp_path / "02_train_lora.ipynb")
    with pytest.raises(UnknownKnob, match="02_train_lora.ipynb has no knob STEPS"):
        run_notebook(tmp_path / "02_train_lora.ipynb", tmp_path, {"RUN": "me", "STEPS": 20})


SMALL = {
    "00_quickstart": {"STEPS": 4, "COUNT": 1},
    "01_check_photos": {"PHOTOS": "few", "MIN_PHOTOS": 3},
    "02_train_lora": {"STEPS": 4, "RANK": 4, "SNAPSHOTS": 1},
    "03_generate_headshots": {"COUNT": 2, "MAX_ATTEMPTS": 1, "SCALES": "1.0"},
    "04_restore_faces": {},
    "05_evaluate": {},
    "06_control": {"SAMPLER_STEPS": 4, "STYLE_STEPS": 2},
}
FEW = ("bad_01_blur", "bad_07_no_face", "p1_02", "p1_03", "p1_09", "p1_14", "p1_16")
"""Photos of the sample person, five of them good."""
ALL = SMALL | {
    "00_quickstart": {"STEPS": 20, "COUNT": 4},
    "01_check_photos": {},
    "02_train_lora": {"STEPS": 20},
    "03_generate_headshots": {"COUNT": 4, "MAX_ATTEMPTS": 1, "SCALES": "1.0"},
}


class Series:
    """The notebooks 01 to 06 in one run folder: a notebook is run after those before it, and once."""

    def __init__(self, folder, settings):
        self.folder, self.settings, self.done = folder, settings, {}

    def __call__(self, name):
        for earlier in sorted(self.settings)[1:]:
            if earlier <= name and earlier not in self.done:
                parameters = {"RUN": "me", **self.settings[earlier]}
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("HEADSHOTKIT_CACHE", str(self.folder / "cache"))  # a developer's may hold CodeFormer
                    self.done[earlier] = run_notebook(FOLDER / f"{earlier}.ipynb", self.folder, parameters)
        return self.done[name]


def photos_in(folder, names):
    folder.mkdir()
    for name in names:
        shutil.copy(P1 / f"{name}.jpg", folder)


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """The results of a notebook with few photos and small settings."""
    folder = tmp_path_factory.mktemp("notebooks")
    photos_in(folder / "few", FEW)
    return Series(folder, SMALL)


@pytest.fixture(scope="module")
def results_of_all(tmp_path_factory):
    """The results of a notebook with all photos of the sample person."""
    return Series(tmp_path_factory.mktemp("all"), ALL)


def test_01_judges_the_photos_and_builds_the_dataset(results_of, labels):
    results = results_of("01_check_photos")
    assert (results["kept"], results["photos"], results["pictures"], results["chosen"]) == (5, 7, 5, 5)
    assert results["reasons"] == {f"{name}.jpg": labels[f"{name}.jpg"]["code"] for name in FEW[:2]}


def test_02_trains(results_of):
    results = results_of("02_train_lora")
    assert results["steps"] == 4 and math.isfinite(results["loss"])
    assert (results_of.folder / "me" / "lora" / results["lora"]["path"]).is_file()
    assert [preview["step"] for preview in results["previews"]] == [0, 0, 4, 4]
    assert results["layer"]["rank"] == 4 and 0 < results["layer"]["share"] < 1
    trained = json.loads((results_of.folder / "me" / "lora" / "manifest.json").read_text())
    assert trained["planned"] and trained["config"]["schedule"] == [[256, 4]], "it goes by the plan that was shown"


@pytest.mark.slow
def test_02_and_03_go_by_a_method_without_a_lora(results_of):
    """What shows a LoRA says in a line that there is none; what needs snapshots, that there are none."""
    results_of("01_check_photos")
    shutil.copytree(results_of.folder / "me", results_of.folder / "tokens")
    parameters = {"RUN": "tokens", "METHOD": "textual-inversion", "STEPS": 2}
    results = run_notebook(FOLDER / "02_train_lora.ipynb", results_of.folder, parameters)
    assert (results["steps"], results["layer"], results["words"], results["previews"]) == (2, None, [], [])
    assert results["lora"]["method"] == "textual-inversion"
    parameters = {"RUN": "tokens", "COUNT": 1, "MAX_ATTEMPTS": 1}
    results = run_notebook(FOLDER / "03_generate_headshots.ipynb", results_of.folder, parameters)
    assert results["picked"] is None and results["headshots"] == 1


def test_03_generates(results_of):
    results = results_of("03_generate_headshots")
    assert results["headshots"] == results["attempted"] == len(results["identity"]) == 2
    assert 0.28 <= results["pass_mark"] <= 0.55
    assert results["picked"]["pictures"] == 6 and results["picked"]["scale"] == 1.0


def test_04_restores_with_the_embedded_restorer(results_of):
    """Whether a face is kept is a matter of luck after so few steps."""
    results = results_of("04_restore_faces")
    assert results["headshots"] == 2
    assert results["restorer"] == "the embedded restorer" and results["missing"] == [] and results["restored"] <= 2


def test_05_evaluates(results_of):
    results = results_of("05_evaluate")
    for recogniser in ("arcface", "dlib"):
        medians = results["metrics"]["identity"][recogniser]
        assert {"own_photos_median", "base_median", "lora_median"} <= set(medians)
    assert results["metrics"]["attempted"] == 2
    assert (results_of.folder / results["page"]).is_file()


def test_06_goes_every_road(results_of):
    results = results_of("06_control")
    counts = {mode: len(identity) for mode, identity in results["identity"].items()}
    assert counts == {"cold": 2, "lora": 2, "photo": 4, "style": 2, "control": 3, "styles": 6, "refiner": 4}
    assert len(set(results["edges"])) == 3 and results["class_images"] == 4 and results["apart"] == 0
    assert results["identity"]["photo"][0] > 0.28, "a quarter of the noise leaves the photo's person"


def pictures_in(folder):
    """The number of pictures in each executed notebook.

    A figure that can't be drawn is only a line in the output, so all outputs are looked through.
    """
    pictures = {}
    for path in sorted(folder.glob("*.ipynb")):
        found = [o for cell in code_cells(nbformat.read(path, 4)) for o in cell.outputs]
        assert not [o for o in found if o.output_type == "error" or "Traceback" in str(o.get("text", ""))]
        pictures[path.stem[:2]] = sum("image/png" in o.get("data", {}) for o in found)
    return pictures


PICTURES = {"01": 3, "02": 8, "03": 4, "04": 4, "05": 3, "06": 9}


def test_no_picture_of_a_notebook_failed(results_of):
    results_of("06_control")
    assert pictures_in(results_of.folder) == PICTURES


def test_00_does_all_of_it_in_a_fresh_run(tmp_path):
    photos_in(tmp_path / "ten", [f"p1_{number:02}" for number in range(1, 11)])
    results = run_notebook(
        FOLDER / "00_quickstart.ipynb", tmp_path, {"RUN": "quick", "PHOTOS": "ten", **SMALL["00_quickstart"]}
    )
    assert results["kept"].startswith("kept 10 of 10 photos")
    assert results["headshots"] == 1
    assert {"arcface", "dlib"} == set(results["metrics"]["identity"])
    assert (tmp_path / "quick" / "gallery" / "index.html").is_file()


@pytest.mark.slow
def test_the_series_with_all_photos(results_of_all, labels):
    results = results_of_all("06_control")
    checked, trained, generated = (results_of_all.done[name] for name in sorted(ALL)[1:4])
    refused = {photo: label["code"] for photo, label in labels.items() if label["code"] != "ok"}
    assert (checked["kept"], checked["photos"], checked["pictures"]) == (17, 30, 17)
    assert refused.items() <= checked["reasons"].items()
    assert (checked["requests"], checked["chosen"]) == (["pose", "framing"], 17)
    assert [preview["step"] for preview in trained["previews"]] == [0, 0, 7, 7, 13, 13, 20, 20]
    assert generated["headshots"] == generated["attempted"] == len(generated["identity"]) == 4
    assert results["identity"]["photo"][0] > 0.28 and pictures_in(results_of_all.folder) == PICTURES


@pytest.mark.slow
def test_00_takes_the_sample_person_by_default(tmp_path):
    results = run_notebook(FOLDER / "00_quickstart.ipynb", tmp_path, {"RUN": "quick", **ALL["00_quickstart"]})
    assert results["kept"].startswith("kept 17 of 30 photos") and results["headshots"] == 4


def test_notebooks_show_results_of_the_sample_person_by_pictures_of_data():
    """Without committed outputs they would be bare code; what a picture shows is said for those who can't see it."""
    shown = {}
    for path in NOTEBOOKS:
        texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        pictures = [found for text in texts for found in re.findall(r"!\[([^]]+)\]\(\.\./data/(\w+\.png)\)", text)]
        assert all(len(words) > 20 and (FOLDER.parent / "data" / file).is_file() for words, file in pictures)
        shown[path.stem[:2]] = len(pictures)
    assert shown == {"00": 1, "01": 3, "02": 1, "03": 1, "04": 0, "05": 1, "06": 0}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_only_the_first_two_notebooks_begin_a_run(path):
    """A slip in RUN would train the sample person for as long as a real run takes."""
    opened = [node for cell in code_cells(nbformat.read(path, 4)) for node in ast.walk(parsed(cell))
              if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "open_run"]  # fmt: skip
    begins = [keyword.arg for call in opened for keyword in call.keywords]
    assert len(opened) == 1 and begins == (["begins"] if path.stem[:2] in ("00", "01") else [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_class_word_is_a_knob_of_every_notebook_with_the_words_that_are_known(path):
    (line,) = re.findall(r"^CLASS_WORD = .*$", tagged(nbformat.read(path, 4), "parameters")[0].source, re.MULTILINE)
    value, choices = line.removeprefix("CLASS_WORD = ").split("  # @param ")
    assert json.loads(value) == "" and json.loads(choices) == ["", *CLASS_WORDS]


def test_every_method_can_be_chosen_where_training_is_taught():
    (line,) = re.findall(
        r"^METHOD = .*$", tagged(nbformat.read(FOLDER / "02_train_lora.ipynb", 4), "parameters")[0].source, re.MULTILINE
    )
    value, choices = line.removeprefix("METHOD = ").split("  # @param ")
    assert json.loads(value) == "" and json.loads(choices) == ["", *METHODS]


@pytest.mark.parametrize(
    ("book", "knob", "default"),
    [("03_generate_headshots", "SCALES", ",".join(map(str, PickConfig().scales))),
     ("04_restore_faces", "FIDELITY", RestoreConfig().fidelity)],
)  # fmt: skip
def test_a_knob_with_a_value_has_the_default_of_its_setting(book, knob, default):
    """A notebook's first cells hold literals, so a default stands there a second time."""
    source = tagged(nbformat.read(FOLDER / f"{book}.ipynb", 4), "parameters")[0].source
    (line,) = re.findall(rf"^{knob} = (.*?)  # @param", source, re.MULTILINE)
    assert ast.literal_eval(line) == default


def test_a_knob_of_a_setting_has_its_name():
    """Messages name an option, and a notebook shows it as a knob of that name."""
    known = {name.upper() for name in NAMES}
    own = {"RUN", "PHOTOS", "MOUNT_DRIVE", "STYLE", "STYLE_STEPS", "PICTURES", "PROMPT"}
    found = {knob for path in NOTEBOOKS for knob in knobs(nbformat.read(path, 4))}
    assert found - known - own == set()


@pytest.mark.slow
def test_05_does_the_stages_that_a_run_lacks(tmp_path):
    """With the default knobs, as somebody who opens only 01 and this notebook has them."""
    run_notebook(FOLDER / "01_check_photos.ipynb", tmp_path, {"RUN": "cold"})
    results = run_notebook(FOLDER / "05_evaluate.ipynb", tmp_path, {"RUN": "cold"})
    assert results["metrics"]["identity"]["arcface"]["lora_median"] is not None
    assert {p.name for p in (tmp_path / "cold").iterdir()} >= {"photos", "dataset", "lora", "headshots", "gallery"}
