import html
import shutil

import pytest
from conftest import P1
from test_gallery import Tags

from headshotkit.cli import main
from headshotkit.config import CheckConfig
from headshotkit.core.pages import PAGE
from headshotkit.core.records import MOST_REFUSALS, Verdict, refusals
from headshotkit.core.run import Run, write_json
from headshotkit.photos.check import check_photos
from headshotkit.photos.override import override_verdict

ODD = 'a"><script>.jpg'


@pytest.fixture(scope="module")
def four_files(tmp_path_factory):
    """A folder with a judged run of two good photos, a dark one and one that is none, whose name is HTML."""
    place = tmp_path_factory.mktemp("four")
    photos = place / "photos"
    photos.mkdir()
    for name in ("p1_01.jpg", "p1_02.jpg", "bad_02_dark.jpg"):
        shutil.copy(P1 / name, photos)
    (photos / ODD).write_bytes(b"no photo")
    check_photos(photos, Run(place / "run"), CheckConfig(min_photos=1))
    return place


@pytest.fixture
def checked(four_files, tmp_path):
    """A run of one's own, and the photos' folder."""
    shutil.copytree(four_files, tmp_path, dirs_exist_ok=True)
    return Run(tmp_path / "run"), tmp_path / "photos"


def test_the_page_shows_every_photo_with_its_reasons_and_what_to_add(checked):
    run, _ = checked
    text, judged, tags = (run.path("photos") / PAGE).read_text(), run.manifest("photos"), Tags()
    tags.feed(text)
    assert tags.open == [] and "<script" not in text
    (policy,) = (a["content"] for tag, a in tags.found if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    names = {a["alt"] for tag, a in tags.found if tag == "img"}
    assert names == {"p1_01.jpg", "p1_02.jpg", "bad_02_dark.jpg"}  # what can't be read has no picture
    sources = [a["src"] for tag, a in tags.found if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources) and len(set(sources)) == 3
    assert [a["class"] for tag, a in tags.found if tag == "figure"] == ["pass", "pass", "near", "near"]
    said = html.unescape(text)
    assert ODD in said
    for verdict in judged["verdicts"]:
        assert all(reason["text"] in said for reason in verdict["reasons"])
    assert judged["requests"]
    assert all(one[part] in said for one in judged["requests"] for part in ("text", "why"))
    assert (run.path("photos") / PAGE).stat().st_mode & 0o077 == 0


def test_an_overridden_photo_moves_on_the_page_and_nothing_is_judged_anew(checked, monkeypatch):
    run, photos = checked
    page = run.path("photos") / PAGE
    override_verdict(run, "p1_02.jpg", False)
    assert page.read_text().count('class="near"') == 3 and "left out by you" in page.read_text()
    monkeypatch.setattr("headshotkit.photos.check.open_photo", lambda *_: pytest.fail("judged anew"))
    assert sum(v.kept for v in check_photos(photos, run, CheckConfig(min_photos=1))) == 1
    assert PAGE in run.manifest("photos")["files"] and run.files("photos", [PAGE], thorough=True)


def test_a_run_from_before_the_page_gets_one(checked):
    run, photos = checked
    made, text = run.manifest("photos"), (run.path("photos") / PAGE).read_text()
    del made["files"]  # as runs were before files were noted
    (run.path("photos") / PAGE).unlink()
    write_json(run.path("photos") / "manifest.json", made)
    check_photos(photos, run, CheckConfig(min_photos=1))
    assert (run.path("photos") / PAGE).read_text() == text


@pytest.mark.parametrize(("least", "code"), [("1", 0), ("9", 2)])
def test_the_terminal_has_a_line_for_each_refused_photo(checked, capsys, least, code):
    run, photos = checked
    assert main(["check", str(photos), "--min-photos", least, "--out", str(run.folder)]) == code
    said = capsys.readouterr()
    lines = [line.strip() for line in (said.err if code else said.out).splitlines()]
    for verdict in map(Verdict.from_dict, run.manifest("photos")["verdicts"]):
        about = [line for line in lines if line.startswith(f"{verdict.photo}: ")]
        assert len(about) == (not verdict.kept)
        if about:  # the name stands once
            assert about[0].endswith(verdict.reasons[0].text.removeprefix(f"{verdict.photo} "))
            assert about[0].count(verdict.photo) == 1
    assert PAGE in " ".join(lines)


def test_a_large_folder_does_not_flood_the_terminal():
    verdicts = [Verdict(f"{n}.jpg", n < 3) for n in range(MOST_REFUSALS + 5)]
    assert len(refusals(verdicts)) == MOST_REFUSALS + 1 and " 2 more" in refusals(verdicts)[-1]
