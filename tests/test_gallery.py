import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import open_picture
from PIL import Image

from headshotkit.errors import StageMissing
from headshotkit.evaluate import evaluate_run
from headshotkit.gallery import TILE_PX, build_gallery, contact_sheet, embedded
from headshotkit.restore import restore_headshots


@pytest.fixture(scope="module")
def page(briefly_trained, tmp_path_factory):
    import shutil

    from headshotkit.run import Run, write_json

    run = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("gallery") / "run"))
    made = run.manifest("headshots")  # after 6 steps nothing looks like anybody; here three of four nearly do
    for shot in made["headshots"]:
        shot["identity"] = 0.1 if shot["file"] == made["delivered"][-1] else 0.9 * made["pass_mark"]["mark"]
    write_json(run.path("headshots") / "manifest.json", made)
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
    sources = [a["src"] for tag, a in tags.found if tag == "img"]
    links = [a["href"] for tag, a in tags.found if tag == "a"]
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    delivered = run.manifest("headshots")["delivered"][:3]
    for file, source, link in zip(delivered, sources, links, strict=True):
        whole = run.path("restored") / file
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == whole.read_bytes()
        assert (run.path("gallery") / link).resolve() == whole.resolve()


def test_a_large_picture_is_embedded_as_jpeg(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    source = embedded(tmp_path / "large.png")
    assert source.startswith("data:image/jpeg;base64,")
    (tmp_path / "again.jpg").write_bytes(base64.b64decode(source.split(",")[1]))
    assert open_picture(tmp_path / "again.jpg").size == (400, 400)


def test_the_page_says_what_passed_and_that_it_is_generated(page):
    text, run = page
    passed = sum(h["accepted"] for h in run.manifest("headshots")["headshots"])
    assert f"{passed} of 4 pass as surely you" in text and "not photographs" in text


def test_the_page_says_why_few_pass_and_leaves_out_who_looks_like_somebody_else(page):
    text, run = page
    causes = run.manifest("headshots")["causes"]
    assert causes[0]["code"] == "short_training"
    assert all(cause["next_step"] in text for cause in causes)
    assert text.count("<figure") == 3 and "1 of 4 are not shown" in text


def test_the_contact_sheet_shows_all(page):
    _, run = page
    sheet = open_picture(run.path("gallery") / "contact_sheet.png")
    assert sheet.size == (6 * TILE_PX, TILE_PX)


def test_a_wide_headshot_is_shown_whole(tmp_path):
    wide = Image.new("RGB", (192, 128), "red")
    wide.save(tmp_path / "wide.png")
    (tmp_path / "sheet.png").write_bytes(contact_sheet([tmp_path / "wide.png"]))
    tile = np.asarray(open_picture(tmp_path / "sheet.png").crop((0, 0, TILE_PX, TILE_PX)))
    red = (tile == [255, 0, 0]).all(2)
    assert red[TILE_PX // 2].all() and abs(red.mean() - 128 / 192) < 0.02 and (tile[0] == 255).all()


def test_without_a_report_there_is_no_gallery(brief_run):
    with pytest.raises(StageMissing, match="headshotkit evaluate"):
        build_gallery(brief_run)
