"""The widgets, with whichever ipywidgets is installed: 8 here, 7 in `make test-colab`."""

import atexit
import datetime
import io
import re
import sys
import types
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.errors import DamagedRun, NoPhotos, NoRun, StageMissing, TooFewPhotos
from headshotkit.core.run import Run, write_json
from headshotkit.widgets import review
from headshotkit.widgets.uploads import keep_files

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
    assert review.uploaded_files(value) == [("a.jpg", b"aa"), ("b.jpg", b"b")]


@pytest.mark.parametrize("value", [{}, ()])
def test_nothing_uploaded_is_no_file(value):
    assert review.uploaded_files(value) == []


@pytest.mark.parametrize("name", ["", ".", "..", "photos/.."])
def test_an_upload_without_a_name_is_left_out(name):
    assert review.uploaded_files(({"name": name, "content": b"1"},)) == []


def test_photos_are_the_named_ones_then_the_uploads_then_the_sample(tmp_path):
    run = Run(tmp_path / "run")
    assert review.photo_folder("", run)[1].startswith("the sample person")
    keep_files(run.folder / "uploads", [("me.jpg", picture())])
    assert review.photo_folder("", run) == (run.folder / "uploads", "the 1 uploaded photos")
    assert str(review.photo_folder("/photos", run)[0]) == "/photos"


def test_a_run_begun_with_a_folder_goes_on_with_it(tmp_path):
    run = Run(tmp_path / "run")
    run.begin("photos", {}, {}).finish("kept", folder="../my", photos=[], verdicts=[], advice="")
    folder, why = review.photo_folder("", run)
    assert folder.resolve() == (tmp_path / "my").resolve() and "began" in why
    run.begin("photos", {"limit": 1}, {}).finish("kept", folder="", photos=[], verdicts=[], advice="")
    with pytest.raises(NoPhotos, match=str(tmp_path)):  # no word of the sample person
        review.photo_folder("", run)


def test_the_upload_button_says_what_is_there_and_takes_pieces(tmp_path, monkeypatch):
    button, sent = review.upload_photos(Run(tmp_path)), []
    assert str(tmp_path / "uploads") in button.said and button.piece_bytes <= 2 * 2**20, "Jupyter drops above 10 MiB"
    monkeypatch.setattr(button, "send", sent.append)
    chosen = {"what": "chosen", "id": "1", "n": 1, "files": [{"name": "a.jpg", "bytes": 2}]}
    piece = {"what": "piece", "id": "1", "n": 2, "file": 0, "at": 0}
    for message, pieces in ((chosen, []), (piece, [memoryview(b"aa")])):  # as the page's messages come
        button._handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": pieces})
    assert [reply["next"] for reply in sent] == [0, 2] and "1 of 1" in button.said
    assert (tmp_path / "uploads" / "a.jpg").read_bytes() == b"aa"
    (tmp_path / "uploads" / ".ipynb_checkpoints").mkdir()
    assert review.upload_photos(Run(tmp_path)).said.startswith("1 photo in "), "what is there is said at once"


def test_without_anywidget_there_is_a_plain_button(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    button, line = review.upload_photos(Run(tmp_path)).children
    assert line.value.startswith(f"No photos in {tmp_path / 'uploads'}. ") and "anywidget" in line.value
    assert review.photo_folder("", Run(tmp_path))[1].startswith("the sample person")
    button.set_trait("value", AS_IN_7 if ipywidgets.__version__ < "8" else AS_IN_8)
    assert sorted(p.name for p in (tmp_path / "uploads").iterdir()) == ["a.jpg", "b.jpg"]
    assert line.value.startswith("2 photos in ")


NO_VERDICTS = {"verdicts": [], "photos": [], "advice": ""}


def test_a_mistyped_run_is_an_error_that_names_the_others(tmp_path):
    for name in ("me", "you"):
        Run(tmp_path / name).begin("photos", {}, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRun) as caught:
        review.open_run(tmp_path / "mee")
    assert str(tmp_path / "mee") in caught.value.happened and caught.value.why.endswith("me, you.")
    assert not (tmp_path / "mee").exists()
    assert review.open_run(tmp_path / "mee", begins=True).folder == tmp_path / "mee"


def test_a_run_is_opened_with_its_place_its_photos_and_its_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Run("me")
    run.begin("photos", {}, {}).finish("kept", folder="/my/photos", **NO_VERDICTS)
    run.begin("dataset", {}, run.inputs_from("photos"))
    review.open_run("me")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":", 1)[1].strip() for line in lines] == [str(tmp_path / "me"), "/my/photos", "photos"]
    Run("stranger").begin("photos", {}, {}).finish("kept", folder=str(runtime.sample_person()), **NO_VERDICTS)
    review.open_run("stranger")
    assert "photos:     the sample person" in capsys.readouterr().out


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython, as in a notebook's kernel."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # which IPython replaces
    made = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    yield made
    made.atexit_operations()
    atexit.unregister(made.atexit_operations)  # it can be done once
    InteractiveShell.clear_instance()


def test_the_stop_button_ends_a_cell_in_a_line(shell, tmp_path, capsys):
    review.open_run(tmp_path, begins=True)
    capsys.readouterr()
    done = shell.run_cell("raise KeyboardInterrupt")
    said = capsys.readouterr()
    assert not done.success, "cells below are not run"
    assert len((said.out + said.err).splitlines()) == 1 and "Traceback" not in said.out + said.err


def test_an_error_is_shown_in_a_notebooks_words(shell, capsys):
    error = "headshotkit.core.errors.TooFewPhotos('kept 2.', 'too few', 'Add photos, or pass --min-photos 6.')"
    assert not shell.run_cell(f"import headshotkit.core.errors; raise {error}").success
    said = capsys.readouterr().out
    assert said.count("TooFewPhotos") == 1 and "Traceback" not in said and "MIN_PHOTOS = 6" in said
    assert "--min-photos 6" in str(TooFewPhotos("kept 2.", "", "Add photos, or pass --min-photos 6."))


@pytest.mark.parametrize("say", [runtime.say, runtime.tell])
def test_what_is_said_beforehand_is_no_error_in_a_notebook(say, shell, capsys):
    """Standard error is a red box there."""
    say("done anew; to be rid of it: headshotkit check PHOTOS")
    said = capsys.readouterr()
    assert said.err == "" and "01_check_photos" in said.out


@pytest.fixture
def generated(tmp_path):
    run = Run(tmp_path / "me")
    stage = run.begin("headshots", {"base": "mini"}, {})
    facts = {"prompt": "photo", "negative": "", "seed": 1, "attempt": 1, "lora_scale": 1.0, "identity": 0.6}
    shots = [facts | {"file": f"{i}.png", "prompt_id": f"p{i}", "accepted": i != 1} for i in range(3)]
    for one in shots:
        Image.new("RGB", (64, 64), "orange").save(stage.folder / one["file"])
    stage.finish("3", headshots=shots, delivered=[one["file"] for one in shots], pass_mark={"mark": 0.5})
    return run


def test_accepted_headshots_are_shown_whole_and_linked(generated, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.chdir(generated.folder.parent)
    link = review.take_headshots(generated)
    assert shown[0].data.count("<img") == 2 and "02_p2.png" in shown[0].data and "p1.png" not in shown[0].data
    assert re.search('href="(.*?)"', link.data)[1] == "me/headshots.zip" and Path("me/headshots.zip").is_file()


@pytest.fixture
def colab(monkeypatch):
    """A stand-in for Colab's own package, which can't be had; `saved` holds the files that the browser was given."""
    package, files = types.ModuleType("google.colab"), types.ModuleType("google.colab.files")
    package.files, package.saved = files, []
    files.download = package.saved.append
    for name, module in (("google", types.ModuleType("google")), ("google.colab", package)):
        monkeypatch.setitem(sys.modules, name, module)
    return package


def test_on_colab_the_browser_saves_the_zip(generated, colab):
    assert review.take_headshots(generated) is None
    assert colab.saved == [str(generated.folder / "headshots.zip")]


@pytest.fixture(params=["photos", "gallery"])
def with_page(request, tmp_path, monkeypatch):
    """A run whose stage left a page, in a folder whose name a link has to quote, and the stage."""
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "Jo & me")
    stage = run.begin(request.param, {}, {})
    (stage.folder / "index.html").write_text("<h1>page</h1>")
    stage.finish("1", **{"photos": {"verdicts": [], "photos": [], "folder": "", "advice": ""}}.get(request.param, {}))
    return run, request.param


def test_a_page_is_linked_relative_to_the_notebook(with_page, capsys):
    run, stage = with_page
    link = review.link_page(run, stage)
    assert (
        re.search('href="(.*?)"', link.data)[1] == f"Jo%20%26%20me/{stage}/index.html" and "download" not in link.data
    )
    assert str(run.path(stage) / "index.html") in capsys.readouterr().out


def test_on_colab_it_is_said_where_the_page_lies(with_page, colab, capsys):
    run, stage = with_page
    assert review.link_page(run, stage) is None
    said = capsys.readouterr().out
    assert str(run.path(stage) / "index.html") in said and "Files pane" in said


def test_a_page_that_is_gone_or_was_never_made_is_not_linked(with_page):
    run, stage = with_page
    (run.path(stage) / "index.html").unlink()
    with pytest.raises(DamagedRun):
        review.link_page(run, stage)
    with pytest.raises(StageMissing):
        review.link_page(run, "photos" if stage == "gallery" else "gallery")


def test_with_none_accepted_it_is_said_why(generated, capsys):
    manifest = generated.manifest("headshots")
    write_json(generated.path("headshots") / "manifest.json", manifest | {"delivered": ["1.png"]})
    assert review.take_headshots(generated) is None
    assert "0 of 1" in capsys.readouterr().out and not (generated.folder / "headshots.zip").exists()


def judged_run(folder, more=()):
    """A run folder with verdicts and one thumbnail, as the gate leaves them."""
    run = Run(folder)
    stage = run.begin("photos", {}, {})
    (stage.folder / "thumbs").mkdir()
    (stage.folder / "thumbs" / "000.jpg").write_bytes(picture())
    reason = {"code": "blurred", "value": 2.0, "limit": 5.0, "text": "the face's sharpness is 2.0"}
    face = {"face_box_px": [0, 0, 8, 8]}
    verdicts = [
        {"photo": "<good>.jpg", "kept": True, "reasons": [], "measures": {"sharpness": 9.0, **face}},
        {"photo": "bad.jpg", "kept": False, "reasons": [reason], "measures": {"sharpness": 2.0, **face}},
        *more,
    ]
    stage.finish("kept 1 of 2 photos", verdicts=verdicts, photos=[], folder="", advice="")
    return run


def shown(box):
    """The HTML and the button of each card on the page."""
    return [tuple(card.children) for card in box.children[-1].children[1].children]


def control(box, description):
    return next(c for c in box.children[0].children if c.description == description)


def test_the_review_shows_all_then_those_of_one_verdict(tmp_path):
    box = review.review_verdicts(judged_run(tmp_path))
    assert control(box, "Show").options == ("all photos", "kept", "blurred")
    (good, _), (bad, _) = shown(box)
    assert "&lt;good&gt;.jpg" in good.value and "<good>" not in good.value and "data:image/jpeg" in good.value
    assert "the face&#39;s sharpness is 2.0" in bad.value and "data:image/jpeg" not in bad.value
    control(box, "Show").value = "blurred"
    assert shown(box) == [(bad, shown(box)[0][1])]


def test_a_verdict_is_told_by_sign_and_frame_not_by_colour_alone(tmp_path):
    (good, _), (bad, _) = shown(review.review_verdicts(judged_run(tmp_path)))
    assert "solid" in good.value and "\u2713" in good.value
    assert "dashed" in bad.value and "\u2717" in bad.value


def test_the_review_is_sorted_by_name_verdict_or_a_number(tmp_path):
    nothing = {"photo": "a.jpg", "kept": False, "reasons": [REASON], "measures": {"faces": 0}}
    box = review.review_verdicts(judged_run(tmp_path, [nothing]))
    order, falling = control(box, "Sort by"), control(box, "largest first")
    assert order.options == ("verdict", "name", "faces", "sharpness")
    assert names(box) == ["&lt;good&gt;.jpg", "bad.jpg", "a.jpg"]
    order.value = "name"
    assert names(box) == ["&lt;good&gt;.jpg", "a.jpg", "bad.jpg"]
    order.value = "sharpness"
    assert names(box) == ["bad.jpg", "&lt;good&gt;.jpg", "a.jpg"]
    falling.value = True
    assert names(box) == ["&lt;good&gt;.jpg", "bad.jpg", "a.jpg"]


REASON = {"code": "no_face", "value": 0, "limit": 1, "text": "no face was found in it"}


def names(box):
    return [re.search(r"<b>\S (.*?)</b>", page.value).group(1) for page, _ in shown(box)]


def test_many_photos_are_shown_by_the_page(tmp_path):
    more = [{"photo": f"p{i:03d}.jpg", "kept": False, "reasons": [REASON], "measures": {}} for i in range(50)]
    box = review.review_verdicts(judged_run(tmp_path, more))
    number = box.children[-1].children[0]
    assert (number.max, len(shown(box))) == (3, review.PAGE)
    number.value = 3
    assert names(box)[-1] == "p049.jpg" and len(shown(box)) == 52 - 2 * review.PAGE
    control(box, "Show").value = "blurred"
    assert (number.value, number.max, names(box)) == (1, 1, ["bad.jpg"])


def test_a_photo_without_a_face_can_not_be_kept(tmp_path):
    nothing = {"photo": "a.jpg", "kept": False, "reasons": [REASON], "measures": {}}
    buttons = [button for _, button in shown(review.review_verdicts(judged_run(tmp_path, [nothing])))]
    assert [b.description for b in buttons] == ["leave it out", "keep it anyway", "keep it anyway"]
    assert [b.disabled for b in buttons] == [False, False, True]


def test_the_button_overrides_and_the_run_remembers(prepared_run):
    run, box = prepared_run, review.review_verdicts(prepared_run)
    before = sum(v["kept"] for v in run.manifest("photos")["verdicts"])
    control(box, "Show").value = "blurred"
    ((page, button),) = shown(box)
    button.click()
    assert "kept by you" in page.value and button.description == "leave it out"
    assert next(v for v in run.manifest("photos")["verdicts"] if v["photo"] == "bad_01_blur.jpg")["kept"]
    assert (run.path("photos") / "kept" / "bad_01_blur.jpg").is_file()
    assert box.children[1].value == f"{before + 1} of 30 photos are kept; overridden by you: 1."
    assert not run.has("dataset")
    button.click()
    assert box.children[1].value == f"{before} of 30 photos are kept." and button.description == "keep it anyway"
    assert not (run.path("photos") / "kept" / "bad_01_blur.jpg").exists()


def test_a_kept_photo_can_be_left_out(prepared_run):
    box = review.review_verdicts(prepared_run)
    before = sum(v["kept"] for v in prepared_run.manifest("photos")["verdicts"])
    page, button = shown(box)[0]
    button.click()
    assert "left out by you" in page.value and "dashed" in page.value
    assert box.children[1].value == f"{before - 1} of 30 photos are kept; overridden by you: 1."
    assert "left out by you" in control(review.review_verdicts(prepared_run), "Show").options


def test_what_goes_wrong_in_overriding_is_said(prepared_run):
    box = review.review_verdicts(prepared_run)
    _, button = shown(box)[0]
    for file in (prepared_run.path("photos") / "kept").iterdir():
        file.unlink()
    kept = prepared_run.path("photos") / "kept"
    kept.rmdir()
    kept.write_text("a file stands in the folder's place")
    control(box, "Show").value = "blurred"
    shown(box)[0][1].click()
    assert "can&#x27;t write" in box.children[1].value


def test_the_review_needs_verdicts(tmp_path):
    with pytest.raises(StageMissing, match="headshotkit check"):
        review.review_verdicts(Run(tmp_path))


def test_captions_are_edited_in_place(prepared_run):
    editor = review.edit_captions(prepared_run)
    picture, field = shown(editor)[0]
    first = prepared_run.manifest("dataset")["dataset"]["photos"][0]
    assert field.value == first["caption"] and "data:image/jpeg" in picture.value
    field.value = "photo of ohwx man, in a garden"
    file = prepared_run.path("dataset") / first["file"]
    assert file.with_suffix(".txt").read_text() == "photo of ohwx man, in a garden\n"
    assert editor.children[0].value == f"The caption of {first['file']} is saved."
    assert shown(review.edit_captions(prepared_run))[0][1].value == "photo of ohwx man, in a garden"


def test_an_empty_caption_is_refused_in_words(prepared_run):
    editor = review.edit_captions(prepared_run)
    shown(editor)[0][1].value = " "
    assert "at least one word" in editor.children[0].value


def test_the_editor_needs_a_dataset(tmp_path):
    with pytest.raises(StageMissing):
        review.edit_captions(Run(tmp_path))
