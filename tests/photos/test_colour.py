"""A photo's colours by whatever its file says of them: the numbers count, never a profile's name."""

import io
import struct

import numpy as np
import pytest
from conftest import P1, open_picture
from damaged import encoded, png_chunk
from PIL import Image, ImageCms

from headshotkit.photos import colour
from headshotkit.photos.files import open_photo

P3, BT709 = colour.PRIMARIES[12], colour.BT709


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return open_picture(P1 / "p1_12.jpg").resize((64, 64))


@pytest.fixture
def opened(tmp_path):
    def write_and_open(data: bytes):
        (tmp_path / "photo").write_bytes(data)
        return open_photo(tmp_path / "photo")

    return write_and_open


def coded(picture: Image.Image, profile: bytes, mode: str = "RGB") -> Image.Image:
    """The same colours as the numbers that a profile gives them."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    stored = ImageCms.profileToProfile(picture.convert(mode), colour.SRGB, target, outputMode=mode)
    stored.info.clear()  # Pillow would write the profile into the file
    return stored


def off(pixels: np.ndarray, picture: Image.Image) -> float:
    return float(np.abs(pixels.astype(int) - np.asarray(picture.convert("RGB"))).mean())


def with_chunks(picture: Image.Image, *chunks: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    data = encoded(picture, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def gamma(value: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chromaticity(points) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for xy in (points[3], *points[:3]) for v in xy)))


def linear(x):
    return x


NAMES = ("GIMP built-in Linear sRGB", "sRGB Transfer with DCI-P3 Gamut", "sRGB IEC61966-2.1", "Display P3", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("points", "curve"), [(BT709, linear), (P3, colour.srgb_curve), (P3, linear), (BT709, lambda x: x**1.8)]
)
def test_a_profile_counts_by_its_numbers_whatever_its_name(opened, picture, name, points, curve):
    profile = colour.make_profile(name, points, curve)
    stored = coded(picture, profile)
    assert off(np.asarray(stored), picture) > 2
    assert off(opened(encoded(stored, "PNG", icc_profile=profile)).pixels, picture) < 1.5


@pytest.mark.parametrize("name", NAMES)
def test_srgb_by_any_name_leaves_every_pixel(opened, picture, name):
    profile = colour.make_profile(name, BT709, colour.srgb_curve)
    assert off(opened(encoded(picture, "PNG", icc_profile=profile)).pixels, picture) == 0


def test_a_grey_profile_counts_too(opened, picture):
    white, curve = colour._xyz(colour.D50_XYZ), b"curv" + bytes(4) + struct.pack(">I", 0)
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"g\0" + bytes(78), b"wtpt": white, b"kTRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    for key, data in tags.items():
        table += key + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = (bytes(4) + b"\x02\x40\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + white[8:]).ljust(124, b"\0")
    profile = struct.pack(">I", 4 + len(head) + len(table) + len(body)) + head + table + body
    grey = picture.convert("L")
    light = colour.srgb_curve(np.asarray(grey) / 255)
    stored = Image.fromarray((light * 255).round().astype(np.uint8))
    assert (
        off(opened(encoded(stored, "PNG", icc_profile=profile)).pixels, grey)
        < 2
        < off(np.asarray(stored.convert("RGB")), grey)
    )


@pytest.mark.parametrize("value", [1.0, 0.5, 1 / 1.8])
def test_a_png_tells_its_gamma(opened, picture, value):
    light = colour.srgb_curve(np.asarray(picture) / 255)
    stored = Image.fromarray((light**value * 255).round().astype(np.uint8))
    assert off(opened(with_chunks(stored, gamma(value))).pixels, picture) < 1.5 < off(np.asarray(stored), picture)


@pytest.mark.parametrize(
    "chunks", [[gamma(0.45455)], [gamma(0.45455), chromaticity(BT709)], [gamma(0.0)], [gamma(40.0)]]
)
def test_the_usual_gamma_and_a_senseless_one_change_nothing(opened, picture, chunks):
    assert off(opened(with_chunks(picture, *chunks)).pixels, picture) == 0


def test_a_png_tells_its_primaries(opened, picture):
    stored = coded(picture, colour.make_profile("", P3, colour.srgb_curve))
    data = with_chunks(stored, gamma(0.45455), chromaticity(P3))
    assert off(opened(data).pixels, picture) < 1 < off(np.asarray(stored), picture)


def test_of_what_a_png_says_the_first_of_the_standards_list_counts(opened, picture):
    srgb, p3 = png_chunk(b"sRGB", b"\0"), png_chunk(b"cICP", bytes((12, 13, 0, 1)))
    profile = colour.make_profile("sRGB", BT709, colour.srgb_curve)
    stored = coded(picture, colour.make_profile("", P3, colour.srgb_curve))
    assert off(opened(with_chunks(picture, gamma(1.0), srgb)).pixels, picture) == 0
    for other in ([], [gamma(1.0)], [srgb]):
        assert off(opened(with_chunks(stored, p3, *other)).pixels, picture) < 1
    data = encoded(stored, "PNG", icc_profile=profile)
    assert off(opened(data[:33] + p3 + data[33:]).pixels, picture) < 1


@pytest.mark.parametrize("transfer", [4, 8, 13, 16, 18])
@pytest.mark.parametrize("primaries", [1, 9, 12])
def test_code_points_become_colours(opened, picture, primaries, transfer):
    """Pixels are coded by the same numbers, 8 bit, so HDR's dark ones are coarse."""
    profile = colour.profile_from_cicp(primaries, transfer)
    stored = coded(picture, profile) if profile else picture
    chunk = png_chunk(b"cICP", bytes((primaries, transfer, 0, 1)))
    assert off(opened(with_chunks(stored, chunk)).pixels, picture) < 3


def test_hdr_white_is_white():
    """203 nits are 58 % of PQ's range and 75 % of HLG's (ITU-R BT.2408)."""
    assert colour.TRANSFERS[16](np.array(0.58)) == pytest.approx(1, abs=0.03)
    assert colour.TRANSFERS[18](np.array(0.75)) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_an_avif_and_a_heic_tell_their_code_points(opened, picture, kind):
    stored = coded(picture, colour.profile_from_cicp(12, 13))
    if kind == "HEIF":
        data = encoded(stored, kind, quality=100, chroma=444, color_primaries=12, transfer_characteristics=13)
    else:
        data = encoded(stored, kind, quality=100, subsampling="4:4:4", speed=10)
        at = data.index(b"colrnclx") + 8
        data = data[:at] + struct.pack(">2H", 12, 13) + data[at + 4 :]
    found = opened(data)
    assert off(found.pixels, picture) < 1.5 < off(np.asarray(stored), picture) and found.profile == "CICP 12/13"


def exif_of(colour_space: int, index: bytes) -> bytes:
    """An EXIF block of three directories: the first, EXIF's own, interoperability's."""

    def folder(*entries) -> bytes:
        return struct.pack("<H", len(entries)) + b"".join(struct.pack("<2H2I", *entry) for entry in entries) + bytes(4)

    first, own = folder((0x8769, 4, 1, 26)), folder((0xA001, 3, 1, colour_space), (0xA005, 4, 1, 56))
    return b"Exif\0\0II*\0\x08\0\0\0" + first + own + folder((1, 2, 4, int.from_bytes(index, "little")))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("said", [(0xFFFF, b"R03\0"), (2, b"\0\0\0\0")])
def test_adobe_rgb_by_exif_alone(opened, picture, kind, said):
    stored = coded(picture, colour.adobe_rgb())
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    found = opened(encoded(stored, kind, exif=exif_of(*said), **options))
    expected = stored if kind == "PNG" else picture  # a PNG speaks by its chunks
    assert off(found.pixels, expected) < 1.5
    same = opened(encoded(picture, kind, exif=exif_of(1, b"R98\0"), **options))
    assert off(same.pixels, picture) < 1.5 and same.profile is None


def test_a_broken_profile_says_nothing(opened, picture):
    for points in (((0.3, 0.0),) * 4, ((0.3, 0.3),) * 4):
        assert colour.make_profile("", points, linear) is None
    assert colour.profile_from_png(1.0, (0.0,) * 8) is None and colour.profile_from_cicp(200, 99) is None
    assert off(opened(with_chunks(picture, chromaticity(((0.3, 0.3),) * 4))).pixels, picture) == 0
