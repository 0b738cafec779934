import io
import shutil
import zlib

import numpy as np
import pytest
from conftest import P1, P2
from PIL import Image

from headshotkit.config import GateConfig
from headshotkit.errors import NoPhotos
from headshotkit.gate import judge_photos, main_person
from headshotkit.records import REASON_CODES
from headshotkit.run import Run


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("gate"))
    return {v.photo: v for v in judge_photos(P1, run)}, run


def test_every_bad_photo_is_refused_for_its_labelled_reason_alone(verdicts, labels):
    given = {name: [r.code for r in verdicts[0][name].reasons] for name in labels}
    assert given == {name: [label["code"]] for name, label in labels.items()}


def test_good_photos_are_kept(verdicts, labels):
    good = [v for name, v in verdicts[0].items() if name not in labels]
    assert len(good) == 18 and sum(v.kept for v in good) >= 16


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
    judge_photos(P1, run)
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
    said = {"missing": "does not exist", "file": "is a file", "empty": "its 0 files", "texts": "its 2 files"}[make]
    with pytest.raises(NoPhotos, match=said):
        judge_photos(folder, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
    verdicts = judge_photos(folder, Run(tmp_path / "run"))
    assert [v.reasons[0].code for v in verdicts if not v.kept] == ["other_person", "other_person"]
    assert all(v.photo.startswith("p2") == v.kept for v in verdicts)


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
    verdicts = judge_photos(folder, Run(tmp_path / "run"))
    assert len(verdicts) == len(made)
    codes = {r.code for v in verdicts for r in v.reasons}
    assert codes == {"duplicate"} and sum(v.kept for v in verdicts) == 1


def test_any_byte_soup_ends_in_a_verdict(tmp_path, good_photo):
    """A property: whatever bytes lie in the folder, each file gets a verdict and nothing is raised."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    valid = {
        k: encoded(Image.fromarray(good_photo).resize((96, 96)), k) for k in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
    }
    for number in range(120):
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
    verdicts = judge_photos(folder, Run(tmp_path / "run"), GateConfig())
    assert len(verdicts) == 122 and all(v.kept or v.reasons for v in verdicts)


def test_a_decompression_bomb_is_refused_by_its_claim(tmp_path):
    bomb = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bomb.png").write_bytes(bytes(bomb))
    verdict = judge_photos(tmp_path / "photos", Run(tmp_path / "run"))[0]
    assert verdict.reasons[0].code == "unreadable" and "3600000000 pixels" in verdict.reasons[0].text
