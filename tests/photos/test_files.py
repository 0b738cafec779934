import io
import os
import stat
import struct
import time

import cv2
import numpy as np
import pytest
from conftest import P1
from damaged import awkward_entries, damage, encoded, hostile_files, jpeg_of_many_scans, png_of, tiff_of, valid_files
from PIL import Image, ImageCms

from headshotkit.core.errors import NoPhotos
from headshotkit.photos import decoding, files
from headshotkit.photos.files import Unreadable, digest_of, find_photos, kind_of, open_photo, plain_name, read_photo

BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""Pillow's transposition that takes an upright picture to how a camera held like this stores it."""
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY = {"JPEG": {"quality": 95}, "MPO": {"quality": 95}, "AVIF": {"speed": 10}, "HEIF": {}}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A photo without any symmetry, RGB, 96 x 64."""
    with Image.open(P1 / "p1_02.jpg") as image:
        return image.resize((96, 96)).crop((0, 0, 96, 64))


@pytest.fixture
def opened(tmp_path):
    """Writes bytes to a file and opens it as a photo."""

    def write_and_open(data: bytes, least_px: int | None = None, name: str = "photo") -> files.Opened:
        (tmp_path / name).write_bytes(data)
        return open_photo(tmp_path / name, least_px)

    return write_and_open


def stored(picture: Image.Image, turn: int) -> tuple[Image.Image, Image.Exif]:
    """How a camera that is held in one of the eight ways stores an upright picture."""
    exif = Image.Exif()
    exif[274] = turn
    turned = picture if turn == 1 else picture.transpose(Image.Transpose(BACK[turn]))
    return turned, exif


def off(pixels: np.ndarray, expected) -> float:
    """Mean absolute difference of two pictures of the same size, grey levels."""
    expected = np.asarray(expected)
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    return float(np.abs(pixels.astype(int) - expected).mean())


# --- orientation, scale, facts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_a_photo_is_upright_however_the_camera_was_held(opened, picture, kind, turn):
    turned, exif = stored(picture, turn)
    found = opened(encoded(turned, kind, exif=exif.tobytes(), **(LOSSLESS | LOSSY)[kind]))
    assert off(found.pixels, picture) <= (0 if kind in LOSSLESS else 5)
    assert (found.width_px, found.height_px, found.scale) == (96, 64, 1.0)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize(
    ("least_px", "side"),
    [(1600, 1600), (801, 1600), (800, 800), (500, 800), (399, 400), (150, 200), (70, 100), (50, 50)],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices(opened, picture, turn, least_px, side):
    whole = picture.resize((1600, 1056), Image.Resampling.BICUBIC)
    turned, exif = stored(whole, turn)
    found = opened(encoded(turned, "JPEG", quality=95, exif=exif), least_px)
    assert found.pixels.shape[1] == side >= least_px
    assert (found.width_px, found.height_px) == (1600, 1056)
    assert found.scale == side / 1600
    assert off(found.pixels, whole.resize(found.pixels.shape[1::-1], Image.Resampling.BOX)) < 3


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_what_has_no_scaled_decoding_is_reduced_to_the_mean_of_its_pixels(opened, picture, mode):
    whole = picture.resize((960, 640), Image.Resampling.NEAREST).convert(mode)
    found = opened(encoded(whole, "PNG"), 96)
    assert found.scale == 0.1 and found.width_px == 960
    assert off(found.pixels, whole.convert("RGB").reduce(10)) <= (0 if mode != "RGBA" else 0.5)


def test_read_photo_is_the_full_size(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(encoded(picture, "PNG"))
    assert off(read_photo(tmp_path / "a.png"), picture) == 0


@pytest.mark.parametrize(
    ("moment", "part", "said"),
    [
        ("2024:05:01 12:30:00", None, "2024-05-01T12:30:00"),
        ("2024:05:01 12:30:00", "250", "2024-05-01T12:30:00.250"),
        ("2024:05:01 12:30:00", "x", "2024-05-01T12:30:00"),
        ("0000:00:00 00:00:00", None, None),
        ("yesterday", None, None),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_the_time_of_taking_is_read(opened, picture, kind, moment, part, said):
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    details[36867] = moment
    if part:
        details[37521] = part
    assert opened(encoded(picture, kind, exif=exif.tobytes())).taken_at == said


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_makers_large_block_hides_neither_orientation_nor_time(opened, picture, kind, order):
    turned, _ = stored(picture, 6)
    entries = struct.pack(f"{order}2HIHH", 274, 3, 1, 6, 0) + struct.pack(f"{order}2H2I", 0x8769, 4, 1, 38)
    own = struct.pack(f"{order}2H2I", 0x9003, 2, 20, 56)
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 2) + entries + bytes(4)
    block += struct.pack(f"{order}H", 1) + own + bytes(4) + b"2024:05:01 12:30:00\0" + bytes(3 * 2**20)
    found = opened(encoded(turned, kind, exif=b"Exif\0\0" + block, **LOSSLESS[kind]))
    assert off(found.pixels, picture) == 0 and found.taken_at == "2024-05-01T12:30:00"


def test_orientation_from_xmp_where_there_is_no_exif(opened, picture):
    turned, _ = stored(picture, 8)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    assert off(opened(encoded(turned, "WEBP", xmp=xmp, lossless=True)).pixels, picture) == 0


@pytest.mark.parametrize("quality", [20, 50, 75, 92, 100])
def test_jpeg_quality_is_read_from_the_tables(opened, picture, quality):
    assert abs(opened(encoded(picture, "JPEG", quality=quality)).jpeg_quality - quality) <= 1
    assert opened(encoded(picture, "PNG")).jpeg_quality is None


# --- formats and modes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_plain_modes_are_exact(opened, picture, kind, mode):
    image = picture.quantize(32) if mode == "P" else picture.convert(mode)
    assert off(opened(encoded(image, kind)).pixels, image.convert("RGB")) == 0


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_tiff_compressions_are_exact(opened, picture, options):
    assert off(opened(encoded(picture, "TIFF", **options)).pixels, picture) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_transparent_parts_become_white(opened, picture, kind):
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, 32:64], alpha[:, 64:] = 128, 255
    clear = picture.copy()
    clear.putalpha(Image.fromarray(alpha))
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}.get(kind, {"quality": 100})
    pixels, colours = opened(encoded(clear, kind, **options)).pixels, np.asarray(picture)
    slack = 0 if kind in LOSSLESS else 6
    assert off(pixels[:, :30], np.full((64, 30, 3), 255)) <= slack
    assert off(pixels[:, 66:], colours[:, 66:]) <= slack
    assert off(pixels[:, 34:62], colours[:, 34:62] / 2 + 127.5) <= 1 + slack


def test_a_transparent_colour_becomes_white(opened, picture):
    palette = picture.quantize(8)
    found = opened(encoded(palette, "PNG", transparency=2)).pixels
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[np.asarray(palette) == 2] = 255
    assert (np.asarray(palette) == 2).any() and off(found, expected) == 0
    key = tuple(int(v) for v in np.asarray(picture)[0, 0])
    assert (opened(encoded(picture, "PNG", transparency=key)).pixels[0, 0] == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colour", [True, False])
def test_16_bit_keeps_the_upper_eight(opened, picture, suffix, colour):
    image = np.asarray(picture if colour else picture.convert("L"))
    deep = image.astype(np.uint16) * 256 + 77
    data = cv2.imencode(suffix, deep[:, :, ::-1] if colour else deep)[1].tobytes()
    assert off(opened(data).pixels, image if colour else np.repeat(image[:, :, None], 3, 2)) == 0


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_of_either_byte_order_keeps_its_white(opened, picture, order):
    grey = np.asarray(picture.convert("L"), np.uint16) // 2 * 257  # a dark one must not be brightened
    size = [(256, 4, 1, 96), (257, 4, 1, 64), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122),
            (277, 3, 1, 1), (278, 4, 1, 64), (279, 4, 1, 2 * grey.size)]  # fmt: skip
    if order == "<":
        data = tiff_of(size, grey.astype("<u2").tobytes())
    else:
        entries = [struct.pack(">2HI", *e[:3]) + struct.pack(">H2x" if e[1] == 3 else ">I", e[3]) for e in size]
        data = b"MM\0*" + struct.pack(">IH", 8, len(size)) + b"".join(entries) + bytes(4) + grey.astype(">u2").tobytes()
    assert off(opened(data).pixels[:, :, 0], grey >> 8) == 0


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
def test_float_tiff_has_the_next_usual_white(opened, picture, top):
    grey = np.asarray(picture.convert("L"), np.float32)
    image = Image.fromarray((grey - grey.min()) / np.ptp(grey) * top)
    found = opened(encoded(image, "TIFF")).pixels
    assert found.min() == 0 and found.max() == 255 and len(np.unique(found)) > 100


def test_rgb_is_exact_in_bmp(opened, picture):
    assert off(opened(encoded(picture, "BMP")).pixels, picture) == 0


def test_lab_tiff(opened, picture):
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert off(opened(encoded(lab, "TIFF")).pixels, picture) < 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(opened, picture, kind):
    options = {"quality": 95} if kind == "JPEG" else {}
    data = encoded(picture.convert("CMYK"), kind, **options)
    assert (b"Adobe" in data) == (kind == "JPEG")  # whose numbers are inverted
    assert off(opened(data).pixels, picture) < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_picture_of_several_is_taken(opened, picture, kind):
    others = [picture.rotate(180), picture.rotate(90)]
    found = opened(encoded(picture, kind, save_all=True, append_images=others)).pixels
    assert off(found, picture) < 12 < off(found, others[0])


def test_a_phones_mpo_is_decoded_at_a_smaller_scale_too(opened, picture):
    whole = picture.resize((960, 640))
    found = opened(encoded(whole, "MPO", save_all=True, append_images=[whole]), 200)
    assert found.pixels.shape == (160, 240, 3) and found.width_px == 960 and found.jpeg_quality == 75


# --- TIFF layouts ---------------------------------------------------------------------------------------------------

DEPTHS = {"u1": (8, 1), "u2": (16, 1), "u4": (32, 1), "f4": (32, 3)}


def planar_tiff(pixels: np.ndarray, depth: str, order: str, alpha: bool = False) -> bytes:
    """A TIFF whose channels lie one after the other, each in two strips; 8 bit pixels, stretched to the depth."""
    bits, form = DEPTHS[depth]
    scale = {"u1": 1, "u2": 257, "u4": 16843009, "f4": 1 / 255}[depth]
    channels, (height, width) = pixels.shape[2], pixels.shape[:2]
    planes = np.moveaxis((pixels.astype(float) * scale).astype(order + depth), 2, 0)
    half = height // 2
    strips = [part.tobytes() for plane in planes for part in (plane[:half], plane[half:])]
    tags = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]),
            (262, [{1: 1, 2: 1, 3: 2, 4: 2 if alpha else 5}[channels]]), (273, None), (277, [channels]), (278, [half]),
            (279, [len(s) for s in strips]), (284, [2]), (339, [form] * channels)]  # fmt: skip
    tags = sorted([*tags, (338, [2])] if alpha else tags)
    behind_at = 8 + 2 + 12 * len(tags) + 4
    pixels_at = behind_at + 4 * sum(len(v or strips) for _, v in tags)
    places = [pixels_at + sum(map(len, strips[:n])) for n in range(len(strips))]
    entries, behind = b"", b""
    for tag, values in tags:
        values = places if values is None else values
        packed = struct.pack(f"{order}{len(values)}I", *values)
        entries += struct.pack(f"{order}2HI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack(f"{order}I", behind_at + len(behind))
        behind += packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return (head + entries + bytes(4) + behind).ljust(pixels_at, b"\0") + b"".join(strips)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", list(DEPTHS))
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "RGBA", "LA"])
def test_channels_that_lie_one_after_the_other(opened, picture, mode, depth, order):
    image = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.tile(np.repeat([255, 0], 48), (64, 1)).astype(np.uint8)))
    data = planar_tiff(np.asarray(image), depth, order, mode in ("RGBA", "LA"))
    if (mode, depth) not in [(m, d) for m in ("RGB", "RGBA", "CMYK") for d in ("u1", "u2")] + [("LA", "u1")]:
        with pytest.raises(Unreadable, match=f"TIFF of {len(mode)} channels of {DEPTHS[depth][0]} bit"):
            opened(data)
    else:
        assert off(opened(data).pixels, decoding.flat(image).convert("RGB")) <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_unsigned_grey_of_32_bit(opened, picture, order):
    grey = np.asarray(picture.convert("L"))[..., None]
    data = planar_tiff(grey, "u4", order)
    try:
        found = opened(data).pixels
    except Unreadable as error:  # Pillow reads one byte order alone
        assert order == ">" and "1 channel of 32 bit" in error.happened
    else:
        assert off(found, np.repeat(grey, 3, 2)) == 0


def test_a_layout_that_cannot_be_read_is_named_with_a_way_out(opened, picture):
    """32 bit float, three channels interleaved, as image editors save HDR pictures."""
    pixels = (np.asarray(picture) / 255).astype("<f4")
    tags = [(256, 4, 1, 96), (257, 4, 1, 64), (258, 3, 1, 32), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 134),
            (277, 3, 1, 3), (278, 4, 1, 64), (279, 4, 1, pixels.nbytes), (339, 3, 1, 3)]  # fmt: skip
    with pytest.raises(Unreadable, match="TIFF of 3 channels of 32 bit float") as error:
        opened(tiff_of(tags, pixels.tobytes()))
    assert "8 bit" in error.value.next_step


# --- colour -------------------------------------------------------------------------------------------------------

P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24119, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""From linear RGB to XYZ at D50 (ICC): the columns are the primaries."""


def display_p3() -> bytes:
    """A Display P3 profile as phones embed it: three primaries and sRGB's curve (ICC.1:2022, 7 and 10)."""
    curve = b"para" + bytes(4) + struct.pack(">2H5i", 3, 0, *(round(v * 65536) for v in CURVE))
    tags = {b"desc": text("Display P3"), b"cprt": text("none"), b"wtpt": xyz([0.9642, 1, 0.82491])}
    tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytes(4) + b"\x04\0\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + xyz([0.9642, 1, 0.82491])[8:]
    head += bytes(124 - len(head))
    return struct.pack(">I", 4 + len(head) + len(table) + len(body)) + head + table + body


CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def text(words: str) -> bytes:
    return b"mluc" + bytes(4) + struct.pack(">2I4s2I", 1, 12, b"enUS", 2 * len(words), 28) + words.encode("utf-16-be")


def in_srgb(p3: np.ndarray) -> np.ndarray:
    """Display P3 as sRGB, by the matrices."""
    coded = p3 / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ (np.linalg.inv(SRGB) @ P3).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "HEIF"])
def test_display_p3_becomes_srgb(opened, picture, kind):
    strong = Image.fromarray((np.asarray(picture) // 32 * 36).astype(np.uint8)).resize((384, 256), 0)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in LOSSY else {}
    found = opened(encoded(strong, kind, icc_profile=display_p3(), **options))
    expected = in_srgb(np.asarray(strong, float)).round()
    assert found.profile == "Display P3"
    assert off(found.pixels, expected) < (0.6 if kind in LOSSLESS else 4) and off(np.asarray(strong), expected) > 2


def test_srgb_stays_as_it_is(opened, picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = opened(encoded(picture, "PNG", icc_profile=profile))
    assert off(found.pixels, picture) == 0 and "sRGB" in found.profile


@pytest.mark.parametrize("profile", [b"", b"nonsense", display_p3()[:200], display_p3() + bytes(5 * 2**20)])
def test_a_broken_or_huge_profile_is_left_out(opened, picture, profile):
    found = opened(encoded(picture, "TIFF", icc_profile=profile))
    assert off(found.pixels, picture) == 0 and found.profile is None


def test_a_profile_of_other_colours_is_left_out(opened, picture):
    found = opened(encoded(picture.convert("CMYK"), "TIFF", icc_profile=display_p3()))
    assert found.profile is None and off(found.pixels, picture) < 4
    grey = picture.convert("L")
    assert off(opened(encoded(grey, "PNG", icc_profile=display_p3())).pixels, grey.convert("RGB")) < 1


# --- refusing -----------------------------------------------------------------------------------------------------


def refusal(opened, data: bytes) -> str:
    with pytest.raises(Unreadable) as error:
        opened(data, 640)
    assert error.value.next_step and error.value.happened.startswith("photo can't be read: ")
    return error.value.happened


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_photo_cut_off_is_refused(opened, picture, kind, part):
    whole = encoded(picture.quantize() if kind == "GIF" else picture, kind)
    said = refusal(opened, whole[: int(part * len(whole))])
    if kind in ("JPEG", "PNG", "GIF") and part > 0.1:
        assert "incomplete" in said


def test_what_is_no_photo_is_refused_in_plain_words(opened):
    assert "empty, 0 bytes" in refusal(opened, b"")
    assert "25 50 44 46" in refusal(opened, b"%PDF-1.7")
    assert "00 00 00 00" in refusal(opened, bytes(1000))
    assert "damaged" in refusal(opened, b"\xff\xd8\xff" + bytes(100))


@pytest.mark.parametrize("sign", [(254, 4, 1, 1), (50706, 1, 4, 0x0401)])
def test_a_raw_file_is_named_as_such(opened, sign):
    """Its first picture is only a small preview."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122),
            (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]  # fmt: skip
    assert opened(tiff_of(tags, bytes(64))).width_px == 8
    assert "raw" in refusal(opened, tiff_of(sorted([*tags, sign]), bytes(64)))


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (8000, 8001, "8000 x 8001 = 64008000 pixels, at most 64000000"),
        (60_000, 60_000, "3600000000 pixels, at most 64000000"),
        (201, 10, "201 x 10 px, at most 32000 px a side and 20 to 1"),
        (32_001, 1_990, "32001 x 1990 px, at most 32000 px a side"),
    ],
)
def test_a_bomb_is_refused_by_its_claim(opened, width, height, said):
    assert said in refusal(opened, png_of(width, height, rows=b""))


def test_pixels_at_the_limit_are_read(opened, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 6400)
    assert opened(png_of(100, 64)).width_px == 100
    assert "= 6500 pixels" in refusal(opened, png_of(100, 65))


def test_a_jpeg_too_large_is_read_at_a_part_of_its_size(opened, picture, monkeypatch):
    """As a phone's 200 megapixels are; each size that is asked for counts the same whole."""
    monkeypatch.setattr(decoding, "MAX_JPEG_PIXELS", 100_000)
    whole = picture.resize((603, 402))
    for turn in (1, 6):
        turned, exif = stored(whole, turn)
        data = encoded(turned, "JPEG", quality=95, exif=exif)
        for least_px, side in ((None, 302), (200, 302), (100, 151)):
            found = opened(data, least_px)
            assert (found.width_px, found.height_px) == (302, 201) and found.pixels.shape[1] == side
            assert found.scale == side / 302
            assert off(found.pixels, whole.resize(found.pixels.shape[1::-1], Image.Resampling.BOX)) < 4


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", "MAX_JPEG_CLAIM"), ("PNG", "MAX_PIXELS"), ("HEIF", "MAX_PIXELS")])
def test_too_many_pixels_have_a_next_step_that_helps(opened, picture, monkeypatch, kind, limit):
    monkeypatch.setattr(decoding, limit, 6000)
    with pytest.raises(Unreadable, match="= 6144 pixels, at most 6000") as error:
        opened(encoded(picture, kind))
    assert "smaller" in error.value.next_step and "JPEG" not in error.value.next_step


def test_a_jpeg_of_many_scans_is_refused(opened):
    assert opened(jpeg_of_many_scans(decoding.MAX_JPEG_SCANS - 6, 64)).width_px == 64
    count = decoding.jpeg_scans(jpeg_of_many_scans(100, 64))
    assert f"{count} scans, at most {decoding.MAX_JPEG_SCANS}" in refusal(opened, jpeg_of_many_scans(100, 64))


def test_scans_after_the_first_picture_do_not_count(opened, picture):
    """A phone appends a film to some photos, in which any bytes can occur."""
    data = encoded(picture, "JPEG") + b"\xff\xda" * 1000
    assert opened(data).width_px == 96 and decoding.jpeg_scans(data) == 1


def test_a_file_too_large_is_not_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(decoding.MAX_FILE_BYTES + 2**20)
    with pytest.raises(Unreadable, match="holds 257 MiB, at most 256 MiB"):
        open_photo(tmp_path / "a.jpg")
    assert digest_of(tmp_path / "a.jpg") == ""


def test_heic_without_its_package_says_what_to_install(opened, picture, monkeypatch):
    files._learn_heif.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(Unreadable, match="pillow-heif") as error:
        opened(encoded(picture, "HEIF"))
    assert "pip install pillow-heif" in error.value.next_step


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_a_file_without_permission(tmp_path, picture):
    (tmp_path / "a.jpg").write_bytes(encoded(picture, "JPEG"))
    (tmp_path / "a.jpg").chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # root may read anything, nobody may not
    try:
        with pytest.raises(Unreadable, match="permission"):
            open_photo(tmp_path / "a.jpg")
        assert digest_of(tmp_path / "a.jpg") == ""
        with pytest.raises(NoPhotos):
            find_photos(tmp_path)
    finally:
        os.seteuid(before)


def test_a_swap_of_the_file_for_a_pipe_does_not_hang(tmp_path, monkeypatch):
    """The kind is asked for twice; the second answer, of what really was opened, counts."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(b"")
    answer = os.stat(tmp_path / "a.jpg")
    monkeypatch.setattr(decoding.os, "stat", lambda path: answer)
    with pytest.raises(Unreadable, match="device"):
        open_photo(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("name", list(hostile_files(0.01)))
def test_hostile_files_cost_little_time(tmp_path, name):
    (tmp_path / name).write_bytes(hostile_files(0.05)[name])
    started = time.process_time()
    try:
        assert max(open_photo(tmp_path / name, 640).pixels.shape) <= 2 * 640
    except Unreadable as error:
        assert error.happened.startswith(name)
    assert time.process_time() - started < 2


def test_reading_blocks_is_given_up_on_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_READ_S", 0.0)
    (tmp_path / "a.png").write_bytes(png_of(8, 8))
    with pytest.raises(Unreadable, match="takes over 0 s"):
        open_photo(tmp_path / "a.png")


def test_any_damage_ends_in_pixels_or_a_refusal(tmp_path, picture):
    """A property: whatever happened to a file of any format, it is opened whole or refused with a reason."""
    rng, valid, codes = np.random.default_rng(4), valid_files(picture), {True: 0, False: 0}
    for number in range(300):
        how, suffix, data = damage(rng, valid)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        try:
            found = open_photo(path, [None, 16, 640][number % 3])
        except Unreadable as error:
            assert str(error).replace("\n", "").isprintable()
            assert error.happened.startswith(path.name) and error.next_step
            codes[False] += 1
        else:
            assert found.pixels.dtype == np.uint8 and found.pixels.ndim == 3 and found.pixels.size, how
            assert 0 < found.scale <= 1 and found.width_px and found.height_px
            codes[True] += 1
    assert min(codes.values()) > 30


# --- finding and naming -------------------------------------------------------------------------------------------


def test_every_entry_named_like_a_photo_is_found_and_its_name_is_safe(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    expected = awkward_entries(folder)
    found = find_photos(folder)
    assert [f.name for f in found] == sorted(expected)
    plain = [plain_name(f) for f in found]
    assert len(set(plain)) == len(plain)
    for path, name in zip(found, plain, strict=True):
        assert name.isprintable() and len(name.encode()) <= files.MAX_NAME_BYTES and "/" not in name
        (tmp_path / name).write_text("a file can be called so")
        if expected[path.name]:
            assert open_photo(path).width_px == 32 and len(digest_of(path)) == 64
            continue
        with pytest.raises(Unreadable, match="missing|device"):
            open_photo(path)
        assert digest_of(path) == ""
    assert {r"\xff\xfe.jpg", r"caf\xe9.jpg", r"two\x0alines.jpg", "naïve 写真 🙂.jpg"} <= set(plain)


def test_names_that_are_safe_stay():
    for name in ("IMG_0001.JPG", "a b (1).jpg", "Überraschung.heic", "100%.png", "x" * 190 + ".jpg"):
        assert plain_name(name) == name
    assert plain_name("a\\xff.jpg") != plain_name("a\udcff.jpg")


def test_photos_are_known_by_their_first_bytes(tmp_path, picture):
    for name, data in valid_files(picture).items():
        assert kind_of(data[:64]), name
        (tmp_path / name.replace(".", "_")).write_bytes(data)
    for name, data in {
        "a.txt": b"BMW drives",
        "b.mp4": b"\0\0\0\x18ftypisom" + bytes(50),
        "c": b"",
        "d.pdf": b"%PDF",
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    assert len(find_photos(tmp_path)) == len(valid_files(picture))


def test_a_folder_that_cannot_be_listed_is_named_in_print(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(NoPhotos, match=r"\\xff does not exist") as error:
        find_photos(folder)
    str(error.value).encode()


def test_thousands_of_files_are_found_quickly(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}").write_bytes(b"GIF89a" if number % 2 else b"text")
    started = time.process_time()
    assert len(find_photos(tmp_path)) == 1500
    assert time.process_time() - started < 3


def test_a_device_is_told_by_its_kind():
    with pytest.raises(Unreadable, match="device"):
        open_photo("/dev/zero")
    assert stat.S_ISCHR(os.stat("/dev/zero").st_mode)


def test_png_bytes_keeps_texts_and_nothing_else(picture):
    picture.info["exif"] = b"secret"
    with Image.open(io.BytesIO(files.png_bytes(picture, prompt="x"))) as image:
        assert image.info == {"prompt": "x"}
