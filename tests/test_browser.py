"""The notebooks' controls in a real browser: chromium in front of JupyterLab, both on this machine, without a network.

`make browser` installs chromium and its driver where it can; without them these tests are skipped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import P1
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from headshotkit.core.run import Run
from headshotkit.photos.check import check_photos

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
LACKING = [
    name
    for name, there in {
        "chromium": CHROMIUM,
        "chromedriver": DRIVER,
        **{package: importlib.util.find_spec(package) for package in ("selenium", "jupyterlab", "anywidget")},
    }.items()
    if not there
]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not here: {', '.join(LACKING)}; `make browser` installs them")

PATIENCE_S = 120
PHOTO_BYTES = 4_000_000
ERRORS = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'
LAB = [
    "--no-browser", "--ServerApp.root_dir=.", "--ServerApp.open_browser=False", "--LabApp.expose_app_in_browser=True",
    "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly", "--ServerApp.allow_root=True",
]  # fmt: skip
QUIET = [
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1000",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that JupyterLab shows."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(place, tmp_path_factory):
    """A JupyterLab of its own with nobody's settings; yields its address and token."""
    own = tmp_path_factory.mktemp("own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, folders = os.urandom(16).hex(), ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    kept = {f"JUPYTER_{name}": str(own / name) for name in folders} | {"IPYTHONDIR": str(own / "ipython")}
    kept |= {f"JUPYTERLAB_{name}_DIR": str(own / name) for name in ("SETTINGS", "WORKSPACES")}
    news = own / "SETTINGS" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # or a question lies over the page
    kept |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", f"--IdentityProvider.token={token}", *LAB]
    with open(own / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=place, env=os.environ | kept, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/api/status?token={token}"), (own / "log").read_text)
        yield address, token
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads, tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def wait_for(holds, otherwise=lambda: ""):
    """Return what `holds` returns as soon as it is true."""
    until = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < until, f"waited {PATIENCE_S} s; {otherwise()}"
        time.sleep(0.1)
    return found


class Notebook:
    """A notebook in the browser, made of these cells."""

    def __init__(self, browser, lab, place, *cells):
        self.browser, (address, token) = browser, lab
        self.name = f"{os.urandom(4).hex()}.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=kernel), place / self.name)
        browser.get(f"{address}/lab/tree/{self.name}?token={token}&reset")
        wait_for(lambda: self.script("return window.jupyterapp?.shell.currentWidget?.content?.widgets?.length > 0"))
        wait_for(lambda: self.script(
            "return window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
        ))  # fmt: skip

    def script(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def run(self, number, wait=True):
        """Run a cell by the toolbar's command and wait for its end."""
        self.script(
            "const book = window.jupyterapp.shell.currentWidget; book.content.activeCellIndex = arguments[0];"
            "book.content.deselectAll(); window.jupyterapp.commands.execute('notebook:run-cell');",
            number,
        )
        if wait:
            self.wait_for_end(number)

    def wait_for_end(self, number):
        wait_for(lambda: self.prompt(number).strip("[]: ").isdigit(), lambda: self.text(number))

    def prompt(self, number):
        return self.script(
            "return window.jupyterapp.shell.currentWidget.content.widgets[arguments[0]]"
            ".node.querySelector('.jp-InputPrompt').textContent",
            number,
        )

    def cell(self, number):
        return self.script("return window.jupyterapp.shell.currentWidget.content.widgets[arguments[0]].node", number)

    def text(self, number):
        """What a cell's output says."""
        return self.script(
            "const cell = window.jupyterapp.shell.currentWidget.content.widgets[arguments[0]];"
            "return cell.node.querySelector('.jp-Cell-outputArea')?.innerText ?? ''",
            number,
        )

    def troubles(self):
        """The outputs that are an error or came by standard error."""
        return [one.text for one in self.browser.find_elements("css selector", ERRORS)]


@pytest.fixture
def notebook(browser, lab, place):
    return lambda *cells: Notebook(browser, lab, place, *cells)


def phone_photos(folder, count):
    """Photos of the sample person, each filled up to PHOTO_BYTES behind the picture's end."""
    random, photos = np.random.default_rng(0), sorted(P1.glob("p1_*.jpg"))[:count]
    folder.mkdir()
    for photo in photos:
        picture = photo.read_bytes()
        (folder / photo.name).write_bytes(picture + random.bytes(PHOTO_BYTES - len(picture)))
    return sorted(folder.iterdir())


def digests(files):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.name[0] != "."}


UPLOAD = (
    "from headshotkit.widgets import review\nrun = review.open_run('me', begins=True)\nreview.upload_photos(run)",
    "print(*review.photo_folder('', run), sep=': ')",
)


@pytest.mark.parametrize("count", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_phone_photos_arrive_by_the_button(notebook, place, tmp_path, count):
    photos = phone_photos(tmp_path / "phone", count)
    book = notebook(UPLOAD[0].replace("'me'", f"'run{count}'"), UPLOAD[1])
    assert len(photos) == count
    book.run(0)
    chooser = wait_for(lambda: book.cell(0).find_elements("css selector", 'input[type="file"]'))[0]
    chooser.send_keys("\n".join(map(str, photos)))
    wait_for(lambda: f"{count} of {count} photos arrived" in book.text(0), lambda: book.text(0))
    assert digests((place / f"run{count}" / "uploads").iterdir()) == digests(photos)
    book.run(1)
    assert book.text(1).startswith(f"run{count}/uploads: the {count} uploaded photos") and not book.troubles()


def test_pieces_and_answers_that_get_lost_are_sent_again(notebook, place, tmp_path):
    """Every third message is dropped before it is read, and every fifth answer; the button waits 0.2 s, not 10."""
    photos = phone_photos(tmp_path / "phone", 2)
    book = notebook(
        "from headshotkit.widgets import review, uploads\n"
        "class Leaky(uploads.Inbox):\n"
        "    heard = 0\n"
        "    def answer(self, message, pieces):\n"
        "        self.heard += 1\n"
        "        lost = {'id': '', 'n': 0}\n"
        "        answer = lost if self.heard % 3 == 0 else super().answer(message, pieces)\n"
        "        return lost if self.heard % 5 == 0 else answer\n"
        "review.Inbox = Leaky\n"
        "button = review.upload_photos(review.open_run('leaky', begins=True))\nbutton.patience_ms = 200\nbutton",
    )
    book.run(0)
    chooser = wait_for(lambda: book.cell(0).find_elements("css selector", 'input[type="file"]'))[0]
    chooser.send_keys("\n".join(map(str, photos)))
    wait_for(lambda: "2 of 2 photos arrived" in book.text(0), lambda: book.text(0))
    assert digests((place / "leaky" / "uploads").iterdir()) == digests(photos)


@pytest.mark.slow
def test_a_stage_is_stopped_and_goes_on_without_a_traceback(notebook, place):
    (place / "ten").mkdir()
    for photo in sorted(P1.glob("p1_*.jpg"))[:10]:
        shutil.copy(photo, place / "ten")
    book = notebook(
        "from headshotkit.widgets import review\nfrom headshotkit.config import RunSettings\n"
        "from headshotkit.pipeline import do_stage\n"
        "run = review.open_run('stopped', begins=True)\noptions = RunSettings(photos='ten')",
        "print(do_stage('photos', run, options)['outcome'])",
    )
    book.run(0)
    book.run(1, wait=False)
    wait_for(lambda: "/10" in book.text(1), lambda: book.text(1))
    stop = book.browser.find_element("css selector", '[data-jp-item-name="interrupt"] jp-button')
    stop.click()
    book.wait_for_end(1)
    assert "Stopped." in book.text(1) and "of 10 photos" not in book.text(1)
    book.run(1)
    assert "kept 10 of 10 photos" in book.text(1) and not book.troubles()


def test_the_page_of_a_check_opens_in_a_tab(notebook, place):
    (place / "two").mkdir()
    for photo in sorted(P1.glob("p1_*.jpg"))[:2]:
        shutil.copy(photo, place / "two")
    check_photos(place / "two", Run(place / "paged"))
    book = notebook(
        "from headshotkit.widgets import review\nrun = review.open_run('paged')", "review.link_page(run, 'photos')"
    )
    book.run(0)
    book.run(1)
    book.cell(1).find_element("css selector", "a").click()
    opened = "return window.jupyterapp.shell.currentWidget?.context?.path"
    wait_for(lambda: book.script(opened) == "paged/photos/index.html", lambda: str(book.script(opened)))
    frame = wait_for(lambda: book.browser.find_elements("css selector", ".jp-HTMLViewer iframe"))[0]
    book.browser.switch_to.frame(frame)
    try:
        wait_for(lambda: len(book.browser.find_elements("css selector", "figure img")) == 2)
    finally:
        book.browser.switch_to.default_content()


def test_the_zip_is_taken_home_with_the_accepted_headshots(notebook, place, downloads):
    run = Run(place / "made")
    stage = run.begin("headshots", {"base": "mini"}, {})
    facts = {"prompt": "photo", "negative": "", "seed": 1, "attempt": 1, "lora_scale": 1.0, "identity": 0.6}
    shots = [facts | {"file": f"{i}.png", "prompt_id": f"p{i}", "accepted": i != 1} for i in range(3)]
    for number, one in enumerate(shots):
        Image.new("RGB", (64, 64), (number, 90, 90)).save(stage.folder / one["file"])
    stage.finish("3", headshots=shots, delivered=[one["file"] for one in shots], pass_mark={"mark": 0.5})
    book = notebook(
        "from headshotkit.widgets import review\nrun = review.open_run('made')", "review.take_headshots(run)"
    )
    book.run(0)
    book.run(1)
    shown = book.cell(1).find_elements("css selector", ".jp-RenderedHTMLCommon img")
    assert [image.get_property("naturalWidth") for image in shown] == [64, 64]
    book.cell(1).find_element("css selector", "a").click()
    packed = wait_for(lambda: list(downloads.glob("*.zip")), lambda: str(list(downloads.iterdir())))[0]
    with zipfile.ZipFile(packed) as archive:
        found = {one: archive.read(one) for one in archive.namelist()}
    files = {f"{n:02d}_p{i}.png": (stage.folder / f"{i}.png").read_bytes() for n, i in enumerate((0, 2), 1)}
    assert found == files and not book.troubles()
