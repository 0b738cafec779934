import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import open_picture, result_of
from jinja2 import UndefinedError
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.core.errors import StageMissing
from headshotkit.core.pages import embedded, template
from headshotkit.core.records import Headshot
from headshotkit.core.results import HeadshotsResult
from headshotkit.delivery import gallery
from headshotkit.delivery.gallery import SHOWN_PX, TILE_PX, build_gallery, contact_sheet
from headshotkit.evaluation.evaluate import evaluate_run
from headshotkit.restoration.restore import restore_headshots


@pytest.fixture(scope="module")
def page(briefly_trained, tmp_path_factory):
    import shutil

    from headshotkit.core.run import Run, write_json

    run = Run(shutil.copytree(briefly_trained, tmp_path_factory.mktemp("gallery") / "run"))
    made = run.manifest("headshots")  # after 6 steps nothing looks like anybody; here three of four nearly do
    for shot in made["headshots"]:
        shot["identity"] = 0.1 if shot["file"] == made["delivered"][-1] else 0.9 * made["pass_mark"]["mark"]
    write_json(run.path("headshots") / "manifest.json", made)
    restore_headshots(run, RestoreConfig(restorer="none"))
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
    links = [a for tag, a in tags.found if tag == "a"]
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    delivered = run.manifest("headshots")["delivered"][:3]
    for file, source, link in zip(delivered, sources, links, strict=True):
        whole = run.path("restored") / file
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == whole.read_bytes()
        assert base64.b64decode(link["href"].removeprefix("data:image/png;base64,")) == whole.read_bytes()
    assert len({link["download"] for link in links}) == len(delivered)
    assert "../" not in text and str(run.folder) not in text, "a page that is sent leads to no file of this machine"


def test_a_large_headshot_is_shown_small_and_saved_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    tags = Tags()
    tags.feed(page_of(tmp_path / "large.png", prompt_id='a"b'))
    (link,), (shown,) = ([a for tag, a in tags.found if tag == wanted] for wanted in ("a", "img"))
    sizes = []
    for uri in (link["href"], shown["src"]):
        (tmp_path / "x.jpg").write_bytes(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))
        sizes.append(open_picture(tmp_path / "x.jpg").size)
    assert sizes == [(900, 900), (SHOWN_PX, SHOWN_PX)] and link["download"] == '01_a"b.jpg'


def page_of(file, cause="", **facts):
    """Return the gallery of one headshot that nobody measured."""
    shot = replace(Headshot(file.name, "p", "p", "", 1, 1, 1.0, None, True), **facts)
    generated = result_of(
        HeadshotsResult, headshots=[], delivered=[file.name], pass_mark={"mark": 0.5, "reason": "r"},
        config={"base": "mini"}, causes=[{"why": cause, "next_step": cause}],
    )  # fmt: skip
    metrics = {"identity": {}, "accepted": 1, "attempted": 1, "seconds": {}}
    return gallery.page([shot], [file], generated, [], metrics)


def test_words_of_a_run_are_no_tags_in_the_page(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    evil, tags, plain = """'"><script>alert(1)</script>""", Tags(), Tags()
    tags.feed(page_of(tmp_path / "small.png", evil, prompt=evil, prompt_id=evil, reasons=[evil]))
    plain.feed(page_of(tmp_path / "small.png", prompt="p", reasons=["x"]))
    assert [tag for tag, _ in tags.found] == [tag for tag, _ in plain.found]
    (picture,) = (a for tag, a in tags.found if tag == "img")
    assert picture["title"].startswith(evil) and picture["alt"] == evil


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError):
        template("widgets/picture.html").render()


def luminance(colour):
    """WCAG's relative luminance of #rgb or #rrggbb."""
    digits = "".join(2 * d for d in colour) if len(colour) == 3 else colour
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return sum(w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
               for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True))  # fmt: skip


def test_all_words_and_signs_have_enough_contrast_on_both_themes():
    style = (Path(gallery.__file__).parents[1] / "templates" / "page.html").read_text()
    themes = [dict(re.findall(r"--(\w+):#(\w+)", root)) for root in re.findall(r":root{([^}]*)}", style)]
    assert len(themes) == 2 and "opacity" not in style
    assert set(re.findall(r"[\s:;{]color:([^;}]+)", style)) <= {f"var(--{name})" for name in themes[0]}
    for theme in themes:
        grounds = [luminance(theme.pop(name)) + 0.05 for name in ("page", "card")]
        for name, colour in theme.items():
            ink = luminance(colour) + 0.05
            assert min(max(ink, ground) / min(ink, ground) for ground in grounds) >= 4.5, name


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
    assert f"{passed} of 4 " in text and "not photographs" in text


def test_the_page_says_why_few_pass_and_leaves_out_who_looks_like_somebody_else(page):
    text, run = page
    causes = run.manifest("headshots")["causes"]
    assert causes[0]["code"] == "short_training"
    assert all(cause["next_step"] in text for cause in causes)
    assert text.count("<figure") == 3 and "1 of 4 " in text


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
    with pytest.raises(StageMissing, match="restore, evaluate"):
        build_gallery(brief_run)
