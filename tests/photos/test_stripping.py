"""Kept photos say nothing besides the picture, and are read as the same pixels."""

import contextlib
import io
import struct

import numpy as np
import pillow_heif
import pytest
from conftest import P1, open_picture
from damaged import encoded, valid_files
from PIL import Image, PngImagePlugin

from headshotkit.core.run import Run
from headshotkit.photos import stripping
from headshotkit.photos.check import check_photos
from headshotkit.photos.files import open_photo, read_photo

SECRETS = (b"ANNA-CAMERA", b"52.5200N", b"A private comment")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><who>52.5200N</who></x:xmpmeta>'
pillow_heif.register_heif_opener()


def told(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[271], exif[274] = "ANNA-CAMERA", turn
    exif.get_ifd(0x8825)[1] = "52.5200N"
    return exif


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return open_picture(P1 / "p1_02.jpg").resize((160, 120))


def files_with_secrets(photo: Image.Image) -> dict[str, bytes]:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "A private comment")
    made = {}
    for turn in range(1, 9):
        made[f"{turn}.jpg"] = encoded(photo, "JPEG", exif=told(turn), comment="A private comment", xmp=XMP, quality=90)
        made[f"{turn}.png"] = encoded(photo, "PNG", exif=told(turn), pnginfo=text)
        made[f"{turn}.webp"] = encoded(photo, "WEBP", exif=told(turn), xmp=XMP)
    made["print.jpg"] = encoded(photo.convert("CMYK"), "JPEG", comment="A private comment")
    made["steps.jpg"] = encoded(photo, "JPEG", progressive=True, comment="A private comment")
    made["trailing.jpg"] = made["1.jpg"] + b"A private comment" + encoded(photo, "JPEG", exif=told(1))
    made["two.mpo"] = encoded(photo, "MPO", save_all=True, append_images=[photo.rotate(90)], exif=told(1))
    made["plain.tif"] = encoded(photo, "TIFF", exif=told(6))
    made["plain.gif"] = encoded(photo, "GIF", comment=b"A private comment")
    made["plain.heic"] = encoded(photo, "HEIF", exif=told(1).tobytes(), xmp=XMP)
    made["plain.avif"] = encoded(photo, "AVIF", exif=told(6), xmp=XMP, speed=10)
    return made


def test_every_format_loses_its_metadata_and_keeps_its_pixels(photo, tmp_path):
    encoded_anew = []
    for name, data in files_with_secrets(photo).items():
        assert any(secret in data for secret in SECRETS) or name.endswith(".avif"), name
        source, place = tmp_path / name, tmp_path / f"bare {name}"
        source.write_bytes(data)
        stripping.write_stripped(source, data, place)
        bare = place.read_bytes()
        assert not any(secret in bare for secret in SECRETS), name
        assert np.array_equal(read_photo(source), read_photo(place)), name
        with Image.open(io.BytesIO(bare)) as again:
            assert set(again.getexif()) <= {274}
        if bare.startswith(b"\x89PNG") and not name.endswith(".png"):
            encoded_anew.append(name)
    assert encoded_anew == ["plain.tif", "plain.gif"]


def test_the_scanned_data_of_a_jpeg_is_the_very_same(photo):
    data = files_with_secrets(photo)["6.jpg"]
    bare = stripping.strip_jpeg(data, 6)
    start = data.index(b"\xff\xda")
    assert bare.endswith(data[start:]) and len(bare) < len(data)


def test_whatever_can_be_read_is_read_the_same(photo, tmp_path):
    """Among them a 16-bit PNG, moving pictures, alpha, and pictures turned in every way."""
    for name, data in valid_files(photo).items():
        source, place = tmp_path / name, tmp_path / f"bare {name}"
        source.write_bytes(data)
        stripping.write_stripped(source, data, place)
        one, other = open_photo(source), open_photo(place)
        assert np.array_equal(one.pixels, other.pixels), name
        assert other.taken_at is None, name


def test_a_file_that_is_cut_anywhere_ends_in_a_file_or_a_known_error(photo):
    """A property of the parsers; write_stripped then falls back to the pixels."""
    for data in files_with_secrets(photo).values():
        kind = stripping.kind_of(data[:64])
        for at in range(12, len(data), max(1, len(data) // 25)):
            with contextlib.suppress(ValueError, IndexError, struct.error):
                stripping.STRIPPERS.get(kind, lambda d, _: d)(data[:at], 1)


def test_the_check_keeps_no_metadata(photo, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in (1, 2, 3):
        picture = open_picture(P1 / f"p1_{number:02d}.jpg")
        picture.save(tmp_path / "photos" / f"{number}.jpg", exif=told(1), quality=95)
    run = Run(tmp_path / "run")
    kept = [v.photo for v in check_photos(tmp_path / "photos", run) if v.kept]
    assert kept
    for name in kept:
        file = run.path("photos") / "kept" / name
        assert not any(secret in file.read_bytes() for secret in SECRETS)
        assert np.array_equal(read_photo(file), read_photo(tmp_path / "photos" / name))
