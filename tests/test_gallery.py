import base64
import io
import re
from html.parser import HTMLParser

import pytest
from conftest import open_picture

from headshotkit.errors import StageMissing
from headshotkit.evaluate import evaluate_run
from headshotkit.gallery import TILE_PX, build_gallery
from headshotkit.restore import restore_headshots


@pytest.fixture(scope="module")
def page(briefly_trained, tmp_path_factory):
    import shutil

    from headshotkit.run import Run

    run = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("gallery") / "run"))
    restore_headshots(run)
    evaluate_run(run)
    return build_gallery(run).read_text(), run


class Tags(HTMLParser):
    """Collects the page's tags, and whether each that opens is closed."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_its_pictures_and_loads_nothing(page):
    text, run = page
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    places = [a.get("src") or a.get("href") for _, a in tags.found if a.get("src") or a.get("href")]
    assert len(places) == 8 and all(p.startswith("data:image/png;base64,") for p in places)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    delivered = run.manifest("headshots")["delivered"]
    for file, (_, attrs) in zip(delivered, [t for t in tags.found if t[0] == "a"], strict=True):
        data = base64.b64decode(attrs["href"].split(",")[1])
        assert data == (run.path("restored") / file).read_bytes() and attrs["download"] == file


def test_the_page_says_what_passed_and_that_it_is_generated(page):
    text, run = page
    passed = sum(h["accepted"] for h in run.manifest("headshots")["headshots"])
    assert f"{passed} of 4 pass as surely you" in text and "not photographs" in text


def test_the_contact_sheet_shows_all(page):
    _, run = page
    sheet = open_picture(run.path("gallery") / "contact_sheet.png")
    assert sheet.size == (6 * TILE_PX, TILE_PX)


def test_without_a_report_there_is_no_gallery(brief_run):
    with pytest.raises(StageMissing, match="headshotkit evaluate"):
        build_gallery(brief_run)
