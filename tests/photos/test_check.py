import io
import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import P1, P2, SHARED, open_picture
from PIL import Image, ImageFilter, ImageOps

from headshotkit.config import CheckConfig, PrepareConfig, RunSettings
from headshotkit.core.errors import CannotKeep, NoPhotos, RunFolderError, StageMissing, TooFewPhotos
from headshotkit.core.records import REASON_CODES
from headshotkit.core.run import Run
from headshotkit.dataset.build import prepare_dataset
from headshotkit.photos import assess
from headshotkit.photos.check import check_photos, main_person, people, write_kept
from headshotkit.photos.files import Opened, digest_of, left_out, open_photo, png_bytes
from headshotkit.photos.metadata import ORIGIN
from headshotkit.photos.override import override_verdict
from headshotkit.pipeline import do_stage


@pytest.fixture(scope="module")
def verdicts(prepared, tmp_path_factory):
    """The verdicts on all photos of the sample person, and the run that holds them."""
    run = Run(shutil.copytree(prepared, tmp_path_factory.mktemp("gate") / "run"))
    return {v.photo: v for v in check_photos(P1, run)}, run


def test_every_bad_photo_is_refused_for_its_labelled_reason_alone(verdicts, labels):
    given = {name: [r.code for r in verdicts[0][name].reasons] for name in labels}
    assert given == {name: [label["code"]] for name, label in labels.items()}


def test_good_photos_are_kept_but_for_the_one_without_colour(verdicts, labels):
    good = {name: v for name, v in verdicts[0].items() if name not in labels}
    refused = {name: [r.code for r in v.reasons] for name, v in good.items() if not v.kept}
    assert len(good) == 18 and refused == {"p1_11.jpg": ["greyscale"]}


def test_reasons_carry_number_limit_and_words(verdicts):
    for verdict in verdicts[0].values():
        for reason in verdict.reasons:
            assert reason.code in REASON_CODES and reason.text
            if reason.code not in ("unreadable", "no_face"):
                assert reason.value != reason.limit and isinstance(reason.value, (int, float))


def test_kept_photos_are_copied_byte_for_byte(verdicts):
    kept, run = verdicts
    for name, verdict in kept.items():
        copy = run.path("photos") / "kept" / name
        assert copy.exists() == verdict.kept
        if verdict.kept:
            assert copy.read_bytes() == (P1 / name).read_bytes()


def test_a_second_judging_does_nothing_again(verdicts):
    _, run = verdicts
    before = (run.path("photos") / "manifest.json").stat().st_mtime_ns
    check_photos(P1, run)
    assert (run.path("photos") / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("make", ["missing", "file", "empty", "texts"])
def test_a_folder_without_photos_is_an_error(tmp_path, make):
    folder = tmp_path / "photos"
    if make == "file":
        folder.write_text("")
    elif make != "missing":
        folder.mkdir()
    if make == "texts":
        (folder / "notes.txt").write_text("hello")
        (folder / "more.md").write_text("hello")
    said = {"missing": "photos", "file": "a file", "empty": " 0 files", "texts": " 2 files"}[make]
    with pytest.raises(NoPhotos, match=said):
        check_photos(folder, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["photos", "photos/kept", "lora/mine"])
def test_photos_in_a_stages_own_folder_stay_where_they_are(tmp_path, good_photo, place):
    (tmp_path / place).mkdir(parents=True)
    Image.fromarray(good_photo).save(tmp_path / place / "me.png")
    with pytest.raises(RunFolderError, match="--out"):
        check_photos(tmp_path / place, Run(tmp_path))
    assert [p.name for p in (tmp_path / place).iterdir()] == ["me.png"]


def test_so_does_a_link_to_photos_in_a_stages_folder(tmp_path):
    (tmp_path / "run" / "photos").mkdir(parents=True)
    (tmp_path / "run" / "photos" / "mine").symlink_to(P1)
    with pytest.raises(RunFolderError, match="--out"):
        check_photos(tmp_path / "run" / "photos" / "mine", Run(tmp_path / "run"))
    assert (tmp_path / "run" / "photos" / "mine").is_dir()


def test_the_main_person_is_the_majority():
    rng = np.random.default_rng(0)
    people = np.eye(512, dtype=np.float32)[:2]
    faces = np.concatenate([np.tile(people[0], (5, 1)), np.tile(people[1], (3, 1))])
    faces = faces + rng.normal(0, 0.01, faces.shape).astype(np.float32)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    assert main_person(faces, 0.35).tolist() == [True] * 5 + [False] * 3


def test_the_minority_of_a_mixed_folder_is_somebody_else(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in (1, 4, 8, 12, 16):
        shutil.copy(P2 / f"p2_{n:02d}.jpg", folder)
    for n in (1, 4):
        shutil.copy(P1 / f"p1_{n:02d}.jpg", folder)
    verdicts = check_photos(folder, Run(tmp_path / "run"))
    assert [v.reasons[0].code for v in verdicts if not v.kept] == ["other_person", "other_person"]
    assert all(v.photo.startswith("p2") == v.kept for v in verdicts)


AS_BURST = CheckConfig(max_hash_distance=0, min_duplicate_structure=2)
"""Pieces of one photo stand for a burst's, so that they must not count as one picture."""


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_format_of_one_good_photo_is_readable(tmp_path, good_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.fromarray(good_photo)
    deep = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    made = {
        "plain.png": encoded(image, "PNG"), "clear.png": encoded(image.convert("RGBA"), "PNG"),
        "palette.png": encoded(image.quantize(64), "PNG"), "deep.png": encoded(deep, "PNG"),
        "a.webp": encoded(image, "WEBP"), "a.tiff": encoded(image, "TIFF"), "a.bmp": encoded(image, "BMP"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"), "moving.gif": encoded(image, "GIF", save_all=True),
        "no_suffix": encoded(image, "JPEG"),
    }  # fmt: skip
    for name, data in made.items():
        (folder / name).write_bytes(data)
    verdicts = check_photos(folder, Run(tmp_path / "run"))
    assert len(verdicts) == len(made)
    codes = {v.photo: [r.code for r in v.reasons] for v in verdicts if not v.kept}
    assert codes.pop("deep.png") == ["greyscale"]  # 16 bit, read as it should be: it has no colour
    assert len(codes) == len(made) - 2 and all(code == ["duplicate"] for code in codes.values())


@pytest.mark.parametrize("files", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_any_byte_soup_ends_in_a_verdict(tmp_path, good_photo, files):
    """A property: whatever bytes lie in the folder, each file gets a verdict and nothing is raised."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    valid = {
        k: encoded(Image.fromarray(good_photo).resize((96, 96)), k) for k in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
    }
    for number in range(files):
        kind = list(valid)[number % 5]
        soup = bytearray(valid[kind])
        if number % 3 == 0:
            soup = soup[: rng.integers(0, len(soup))]
        for place in rng.integers(0, max(1, len(soup)), 12):
            if soup:
                soup[min(place, len(soup) - 1)] = rng.integers(0, 256)
        (folder / f"{number:03d}.{kind.lower()}").write_bytes(bytes(soup))
    (folder / "zeros.jpg").write_bytes(bytes(5000))
    (folder / "nothing.png").write_bytes(b"")
    (folder / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    verdicts = check_photos(folder, Run(tmp_path / "run"), CheckConfig())
    assert len(verdicts) == files + 3 and all(v.kept or v.reasons for v in verdicts)


def test_a_decompression_bomb_is_refused_by_its_claim(tmp_path):
    bomb = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bomb.png").write_bytes(bytes(bomb))
    verdict = check_photos(tmp_path / "photos", Run(tmp_path / "run"))[0]
    assert verdict.reasons[0].code == "unreadable" and "3600000000 pixels" in verdict.reasons[0].text


# --- the set ------------------------------------------------------------------------------------------------------


def folder_of(tmp_path, **photos) -> Path:
    """A photo folder: name -> file to copy, or encoded bytes."""
    folder = tmp_path / "photos"
    folder.mkdir(parents=True)
    for name, source in photos.items():
        data = source if isinstance(source, bytes) else source.read_bytes()
        (folder / f"{name}.jpg").write_bytes(data)
    return folder


def test_two_people_are_named_with_the_photos_of_each(tmp_path):
    folder = folder_of(
        tmp_path, **{f"p{p}_{n}": (P1, P2)[p - 1] / f"p{p}_{n:02d}.jpg" for p in (1, 2) for n in (1, 3, 4, 5)}
    )
    run = Run(tmp_path / "run")
    check_photos(folder, run)
    first = run.manifest("photos")["requests"][0]
    assert first["code"] == "two_people"
    assert all(f"p{p}_{n}.jpg" in first["text"] for p in (1, 2) for n in (1, 3, 4, 5))


def test_three_people_get_three_numbers():
    rng = np.random.default_rng(1)
    faces = np.repeat(np.eye(512, dtype=np.float32)[:3], (4, 6, 2), axis=0) + rng.normal(0, 0.01, (12, 512))
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    assert people(faces, 0.35).tolist() == [1] * 4 + [0] * 6 + [2] * 2


def test_a_burst_is_one_scene(tmp_path):
    with Image.open(P1 / "p1_04.jpg") as image:
        bursts = {f"burst_{n}": encoded(image.crop((n * 9, n * 7, 700 + n * 9, 700 + n * 7)), "JPEG") for n in range(4)}
    folder = folder_of(tmp_path, other=P1 / "p1_08.jpg", **bursts)
    verdicts = check_photos(folder, Run(tmp_path / "run"), AS_BURST)
    scenes = {v.photo: v.measures["moment"] for v in verdicts}
    assert len({scenes[name] for name in scenes if name.startswith("burst")}) == 1
    assert scenes["other.jpg"] not in {scenes[name] for name in scenes if name.startswith("burst")}


def test_a_second_photo_of_a_scene_is_kept_only_where_there_are_too_few(tmp_path):
    with Image.open(P1 / "p1_04.jpg") as image:
        bursts = {f"burst_{n}": encoded(image.crop((n * 9, n * 7, 700 + n * 9, 700 + n * 7)), "JPEG") for n in range(4)}
    folder = folder_of(tmp_path, other=P1 / "p1_08.jpg", **bursts)
    few, enough = (
        check_photos(folder, Run(tmp_path / f"run{least}"), AS_BURST.replace(min_photos=least)) for least in (4, 2)
    )
    assert sum(v.kept for v in few) == 4 and sum(v.kept for v in enough) == 2
    assert all("better photo" in v.reasons[0].text for v in enough if not v.kept)


def test_of_more_photos_than_needed_the_best_are_chosen(tmp_path):
    good = {f"n{n:02d}": P1 / f"p1_{n:02d}.jpg" for n in range(1, 10)}
    verdicts = check_photos(folder_of(tmp_path, **good), Run(tmp_path / "run"), CheckConfig(max_photos=4, min_photos=3))
    assert sum(v.kept for v in verdicts) == 4
    surplus = [r for v in verdicts for r in v.reasons if r.code == "surplus"]
    assert len(surplus) == 5 and all("4 of 9" in r.text for r in surplus)


def test_names_that_are_no_utf8_end_in_a_verdict_that_can_be_written(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    raw = os.fsencode(folder) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:
        file.write((P1 / "p1_04.jpg").read_bytes())
    run = Run(tmp_path / "run")
    (verdict,) = check_photos(folder, run)
    assert verdict.kept and verdict.photo == r"caf\xe9.jpg"
    assert (run.path("photos") / "kept" / verdict.photo).exists()


# --- overriding ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged_five(tmp_path_factory):
    """A judged run of three good photos, one greyscale, one without a face, and the photos beside it."""
    place = tmp_path_factory.mktemp("five")
    names = {"a": "p1_04", "b": "p1_08", "c": "p1_12", "grey": "p1_11", "nobody": "bad_07_no_face"}
    folder = folder_of(place, **{name: P1 / f"{file}.jpg" for name, file in names.items()})
    check_photos(folder, Run(place / "run"), CheckConfig(min_photos=2))
    return place


@pytest.fixture
def small_run(judged_five, tmp_path):
    shutil.copytree(judged_five, tmp_path, dirs_exist_ok=True)
    return Run(tmp_path / "run"), tmp_path / "photos"


def test_a_refused_photo_can_be_kept_and_it_is_noted(small_run):
    run, folder = small_run
    before = run.manifest("photos")["fingerprint"]
    verdict = override_verdict(run, "grey.jpg", kept=True)
    assert verdict.kept and verdict.overridden and verdict.reasons[0].code == "greyscale"
    assert (run.path("photos") / "kept" / "grey.jpg").read_bytes() == (folder / "grey.jpg").read_bytes()
    manifest = run.manifest("photos")
    assert manifest["fingerprint"] != before and "1 overridden" in manifest["outcome"]
    notes = json.loads((run.folder / "overruled.json").read_text())
    assert "grey.jpg" in notes and notes["grey.jpg"]["kept"]


def test_an_override_holds_when_the_photos_are_judged_again(small_run):
    run, folder = small_run
    override_verdict(run, "grey.jpg", kept=True)
    override_verdict(run, "b.jpg", kept=False)
    written = (run.path("photos") / "manifest.json").stat().st_mtime_ns
    check_photos(folder, run, CheckConfig(min_photos=2))
    assert (run.path("photos") / "manifest.json").stat().st_mtime_ns == written  # nothing is done again
    shutil.copy(P1 / "p1_15.jpg", folder / "d.jpg")
    again = {v.photo: v for v in check_photos(folder, run, CheckConfig(min_photos=2))}
    assert {name for name, v in again.items() if v.kept} == {"a.jpg", "c.jpg", "d.jpg", "grey.jpg"}
    assert again["b.jpg"].overridden and not again["b.jpg"].reasons


def test_saying_the_opposite_takes_it_back(small_run):
    run, _ = small_run
    before = run.manifest("photos")
    override_verdict(run, "b.jpg", kept=False)
    assert not (run.path("photos") / "kept" / "b.jpg").exists()
    override_verdict(run, "b.jpg", kept=True)
    after = run.manifest("photos")
    assert after["verdicts"] == before["verdicts"] and (run.path("photos") / "kept" / "b.jpg").exists()
    assert after["fingerprint"] == before["fingerprint"]  # so nothing that was made from it is out of date


def test_a_moved_photo_folder_is_found_again(small_run, tmp_path):
    run, folder = small_run
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CannotKeep, match="again"):
        override_verdict(run, "grey.jpg", kept=True)
    check_photos(tmp_path / "elsewhere", run, CheckConfig(min_photos=2))
    assert override_verdict(run, "grey.jpg", kept=True).kept


def test_a_later_stage_notices_the_override(small_run):
    run, _ = small_run
    prepare_dataset(run, PrepareConfig.for_base("mini"))
    assert run.has("dataset")
    override_verdict(run, "b.jpg", kept=False)
    assert not run.has("dataset")


def test_a_photo_without_a_face_cannot_be_kept(small_run):
    run, folder = small_run
    with pytest.raises(CannotKeep, match="no face"):
        override_verdict(run, "nobody.jpg", kept=True)
    with pytest.raises(StageMissing, match="'x.jpg'"):
        override_verdict(run, "x.jpg", kept=True)
    (folder / "grey.jpg").unlink()
    with pytest.raises(CannotKeep, match="again"):
        override_verdict(run, "grey.jpg", kept=True)
    assert not run.manifest("photos")["verdicts"][-2]["kept"]


# --- photos as people have them -----------------------------------------------------------------------------------


def codes_of(folder, tmp_path, **limits) -> dict[str, list[str]]:
    verdicts = check_photos(folder, Run(tmp_path / "run"), CheckConfig(**limits))
    return {v.photo.removesuffix(".jpg"): [r.code for r in v.reasons] for v in verdicts}


def test_pictures_that_were_generated_are_refused_and_can_be_kept_all_the_same(tmp_path):
    drawn = png_bytes(open_picture(P1 / "p1_08.jpg"), Software=ORIGIN)
    folder = folder_of(tmp_path, a=P1 / "p1_04.jpg", drawn=drawn)
    assert codes_of(folder, tmp_path) == {"a": [], "drawn": ["generated"]}
    assert override_verdict(Run(tmp_path / "run"), "drawn.jpg", kept=True).kept


def test_upside_down_lying_tinted_and_framed_photos_are_named_as_such(tmp_path):
    photo = open_picture(P1 / "p1_13.jpg")
    framed = Image.new("RGB", (photo.width, photo.height + 300), (30, 120, 220))
    framed.paste(photo.convert("L").convert("RGB"), (0, 150))
    folder = folder_of(
        tmp_path, down=encoded(photo.rotate(180), "JPEG"), left=encoded(photo.rotate(90), "JPEG"),
        right=encoded(photo.rotate(-90), "JPEG"), sepia=encoded(ImageOps.colorize(photo.convert("L"), (0, 0, 0),
        (255, 221, 172)), "JPEG"), screen=encoded(framed, "JPEG"), fine=encoded(photo, "JPEG"),
    )  # fmt: skip
    assert codes_of(folder, tmp_path) == {
        "down": ["tilted"], "left": ["tilted"], "right": ["tilted"], "sepia": ["greyscale"],
        "screen": ["greyscale", "framed"], "fine": [],
    }  # fmt: skip


def from_paper(photo: Image.Image) -> Image.Image:
    """A photo as somebody photographs its print from a side: dull, warm, soft, in perspective."""
    corners = (-90, -70, -60, photo.height + 90, photo.width + 100, photo.height + 50, photo.width + 70, -40)
    seen = photo.transform(photo.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC, fillcolor=(90, 80, 70))
    dull = Image.blend(seen.filter(ImageFilter.GaussianBlur(1.2)), Image.new("RGB", seen.size, (140, 120, 90)), 0.2)
    return dull.point(lambda value: value * 0.95)


def test_a_picture_is_a_duplicate_however_it_was_changed(tmp_path):
    photo = open_picture(P1 / "p1_04.jpg")
    changed = {
        "small": photo.resize((500, 500)), "mirrored": photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cut": photo.crop((60, 40, 740, 720)), "leaning": photo.rotate(5, Image.Resampling.BICUBIC),
        "bright": photo.point(lambda value: min(255, value * 1.1)), "narrow": photo.resize((560, 800)),
        "wide": photo.resize((800, 600)), "paper": from_paper(photo),
    }  # fmt: skip
    folder = folder_of(
        tmp_path, a=encoded(photo, "JPEG", quality=97), other=P1 / "p1_08.jpg",
        **{name: encoded(image, "JPEG", quality=85) for name, image in changed.items()},
    )  # fmt: skip
    assert codes_of(folder, tmp_path) == {"a": [], "other": [], **dict.fromkeys(changed, ["duplicate"])}


def test_a_face_far_darker_than_on_the_others_is_dark_whatever_its_skin(tmp_path):
    """A gate that lets dark faces pass on their own still compares them with the person's other photos."""
    limit = {"max_stops_below": 3.5, "min_visible": 0.5, "min_contrast": 0.5}
    for share in (1.0, 0.5):  # the same photos as of a darker skin
        folder = folder_of(
            tmp_path / str(share),
            **{name: encoded(open_picture(P1 / f"p1_{name[1:]}.jpg").point(lambda v, s=share: v * s), "PNG")
               for name in ("n04", "n08", "n12")},
            dim=encoded(open_picture(P1 / "p1_15.jpg").point(lambda v, s=share: v * s * 0.4), "PNG"),
            dark=encoded(open_picture(P1 / "p1_16.jpg").point(lambda v, s=share: v * s * 0.2), "PNG"),
        )  # fmt: skip
        found = codes_of(folder, tmp_path / str(share), **limit)
        assert found == {"n04": [], "n08": [], "n12": [], "dim": [], "dark": ["dark"]}


def test_what_is_not_looked_at_is_said(tmp_path):
    folder = folder_of(tmp_path, a=P1 / "p1_04.jpg")
    for name in ("more/b.jpg", "more/deep/c.heic", "run/photos/manifest.json", "run/photos/kept/d.jpg", ".cache/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for name in ("x.CR3", "y.jxl", "z.mov", ".IMG_3.HEIC.icloud", "notes.txt", "._a.jpg"):
        (folder / name).write_bytes(b"x")
    said = "2 photos in 1 subfolder, 1 JPEG XL, 1 film, 1 placeholder of a file that is only in the cloud"
    said += ", 1 raw file (CR3)"
    assert left_out(folder) == said
    run = Run(tmp_path / "run")
    check_photos(folder, run)
    assert said in run.manifest("photos")["outcome"]
    for stage in ("photos", "dataset"):
        with pytest.raises(TooFewPhotos) as error:
            do_stage(stage, run, RunSettings(photos=folder, base="mini"))
        assert said in error.value.why
    (folder / "y.jxl").unlink()
    check_photos(folder, run)  # nothing is judged again
    assert "JPEG XL" not in run.manifest("photos")["outcome"]
    (folder / "a.jpg").unlink()
    with pytest.raises(NoPhotos, match="2 photos in 1 subfolder"):
        check_photos(folder, run)


def test_kept_photos_that_were_edited_are_copied_again_and_strange_ones_named(small_run, capsys):
    run, folder = small_run
    kept = run.path("photos") / "kept"
    open_picture(kept / "a.jpg").resize((99, 99)).save(kept / "a.jpg")
    (kept / "b.jpg").unlink()
    (kept / "mine.jpg").write_bytes(b"x")
    capsys.readouterr()
    check_photos(folder, run, CheckConfig(min_photos=2))
    said = capsys.readouterr().err
    assert all((kept / name).read_bytes() == (folder / name).read_bytes() for name in ("a.jpg", "b.jpg", "c.jpg"))
    assert "a.jpg" in said and "b.jpg" in said and "mine.jpg" in said and (kept / "mine.jpg").exists()
    check_photos(folder, run, CheckConfig(min_photos=2))
    assert "a.jpg" not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_photo_that_becomes_a_pipe_before_it_is_copied_does_not_hang(tmp_path):
    shutil.copy(sorted(P1.glob("*.jpg"))[-1], tmp_path / "a.jpg")
    digest = digest_of(tmp_path / "a.jpg")
    assert write_kept(tmp_path / "a.jpg", digest, tmp_path / "copy.jpg")
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    assert not write_kept(tmp_path / "a.jpg", digest, tmp_path / "second.jpg")
    assert not (tmp_path / "second.jpg").exists()


@pytest.mark.skipif(not (SHARED / "london").is_dir(), reason="needs ../shared/assets/london")
def test_low_light_refuses_no_skin_more_than_another():
    """The lightest and the darkest of four real people, 3 stops down: ArcFace knows all, and all pass."""
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    from skin_tones import KNOWN, dimmed

    for person in ("003", "038", "011", "018"):
        image = open_photo(SHARED / "london" / f"{person}_neutral.jpg", assess.LEAST_PX).pixels
        seen, dim = (assess.measure_photo(Opened(x, *x.shape[1::-1], 1.0, None)) for x in (image, dimmed(image, 3)))
        assert float(seen.embedding @ dim.embedding) > KNOWN
        assert assess.reasons_against(dim.measures, CheckConfig()) == []
