"""The widgets, with whichever ipywidgets is installed: 8 here, 7 in `make test-colab`."""

import datetime
import io
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from headshotkit import widgets
from headshotkit.errors import StageMissing
from headshotkit.run import Run

AS_IN_7 = {
    "a.jpg": {"metadata": {"name": "a.jpg", "type": "image/jpeg", "size": 2}, "content": b"aa"},
    "b.jpg": {"metadata": {"name": "b.jpg", "type": "image/jpeg", "size": 1}, "content": b"b"},
}
WHEN = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
AS_IN_8 = (
    {"name": "a.jpg", "type": "image/jpeg", "size": 2, "content": memoryview(b"aa"), "last_modified": WHEN},
    {"name": "b.jpg", "type": "image/jpeg", "size": 1, "content": memoryview(b"b"), "last_modified": WHEN},
)


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("value", [AS_IN_7, AS_IN_8], ids=["ipywidgets 7", "ipywidgets 8"])
def test_uploads_are_the_same_in_both_forms(value):
    assert widgets.uploaded_files(value) == [("a.jpg", b"aa"), ("b.jpg", b"b")]


@pytest.mark.parametrize("value", [{}, ()])
def test_nothing_uploaded_is_no_file(value):
    assert widgets.uploaded_files(value) == []


@pytest.mark.parametrize("name", ["../../me.jpg", "/etc/me.jpg", "C:\\photos\\me.jpg", "..\\me.jpg"])
def test_an_upload_stays_in_its_folder(name, tmp_path):
    saved = widgets.save_uploads(({"name": name, "content": b"1"},), tmp_path / "uploads")
    assert saved == [tmp_path / "uploads" / "me.jpg"]
    assert [p.name for p in tmp_path.rglob("*.jpg")] == ["me.jpg"]


@pytest.mark.parametrize("name", ["", ".", "..", "photos/.."])
def test_an_upload_without_a_name_is_left_out(name):
    assert widgets.uploaded_files(({"name": name, "content": b"1"},)) == []


def test_photos_are_the_named_ones_then_the_uploads_then_the_sample(tmp_path):
    run = Run(tmp_path / "run")
    assert widgets.photo_folder("", run)[1] == "the sample person, for no photos were given"
    widgets.save_uploads(({"name": "me.jpg", "content": picture()},), run.folder / "uploads")
    assert widgets.photo_folder("", run) == (run.folder / "uploads", "the 1 uploaded photos")
    assert str(widgets.photo_folder("/photos", run)[0]) == "/photos"


def test_a_run_begun_with_a_folder_goes_on_with_it(tmp_path):
    run = Run(tmp_path / "run")
    run.begin("photos", {}, {}).finish("kept", folder="/my/photos")
    assert widgets.photo_folder("", run) == (Path("/my/photos"), "the folder that the run was begun with")


def test_the_upload_button_writes_what_it_is_given(tmp_path):
    button, line = widgets.upload_photos(Run(tmp_path)).children
    assert not (tmp_path / "uploads").exists()
    form = AS_IN_7 if ipywidgets.__version__ < "8" else AS_IN_8
    button.set_trait("value", form)
    assert sorted(p.name for p in (tmp_path / "uploads").iterdir()) == ["a.jpg", "b.jpg"]
    assert line.value.startswith("Took 2; 2 are in ")


def judged_run(folder):
    """A run folder with two verdicts and one thumbnail, as the gate leaves them."""
    run = Run(folder)
    stage = run.begin("photos", {}, {})
    (stage.folder / "thumbs").mkdir()
    (stage.folder / "thumbs" / "000.jpg").write_bytes(picture())
    reason = {"code": "blurred", "value": 2.0, "limit": 5.0, "text": "the face's sharpness is 2.0"}
    verdicts = [
        {"photo": "<good>.jpg", "kept": True, "reasons": [], "measures": {}},
        {"photo": "bad.jpg", "kept": False, "reasons": [reason], "measures": {}},
    ]
    stage.finish("kept 1 of 2 photos", verdicts=verdicts)
    return run


def test_the_review_shows_all_then_those_of_one_verdict(tmp_path):
    choice, page = widgets.review_verdicts(judged_run(tmp_path)).children
    assert [label for label, _ in choice.options] == ["all photos (2)", "kept (1)", "blurred (1)"]
    assert "&lt;good&gt;.jpg" in page.value and "bad.jpg" in page.value and "<good>" not in page.value
    choice.value = "blurred"
    assert "bad.jpg" in page.value and "good" not in page.value
    assert "the face&#x27;s sharpness is 2.0" in page.value


def test_the_review_needs_verdicts(tmp_path):
    with pytest.raises(StageMissing, match="headshotkit check"):
        widgets.review_verdicts(Run(tmp_path))
