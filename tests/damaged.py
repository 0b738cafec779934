"""Damaged and hostile picture files, made from valid ones of each format: for the tests and the fuzzing benchmark."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid_files(image: Image.Image) -> dict[str, bytes]:
    """One small file of each kind that is read: name with suffix -> bytes.

    Args:
        image: RGB; its exif, of a photo turned to the right, goes into the formats that hold one.
    """
    exif = image.getexif()
    exif[274], exif.get_ifd(0x8769)[36867] = 6, "2024:05:01 12:30:00"
    grey16 = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    several = {"save_all": True, "append_images": [image.rotate(n) for n in (90, 180)]}
    return {
        "plain.jpg": encoded(image, "JPEG", quality=92, exif=exif),
        "steps.jpg": encoded(image, "JPEG", progressive=True),
        "print.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "two.mpo": encoded(image, "MPO", **several),
        "plain.png": encoded(image, "PNG", exif=exif),
        "palette.png": encoded(image.quantize(32), "PNG", transparency=3),
        "deep.png": encoded(grey16, "PNG"),
        "lossy.webp": encoded(image, "WEBP", exif=exif),
        "exact.webp": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "moving.webp": encoded(image, "WEBP", **several),
        "moving.gif": encoded(image, "GIF", **several),
        "raw.tif": encoded(image, "TIFF", exif=exif),
        "lzw.tif": encoded(image.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "plain.bmp": encoded(image, "BMP"),
        "plain.avif": encoded(image, "AVIF", speed=10, exif=exif),
        "plain.heic": encoded(image, "HEIF", exif=exif.tobytes()),
    }


def damage(rng: np.random.Generator, valid: dict[str, bytes]) -> tuple[str, str, bytes]:
    """One damaged file: what was done to it, its suffix, its bytes."""
    names = list(valid)
    name = names[rng.integers(len(names))]
    suffix, data = Path(name).suffix, bytearray(valid[name])
    how = HOW[rng.integers(len(HOW))]
    at, end = sorted(int(n) for n in rng.integers(0, len(data), 2))
    if how in ("flips", "head flips"):
        for place in rng.integers(0, len(data) if how == "flips" else min(200, len(data)), rng.integers(1, 30)):
            data[place] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del data[at:]
    elif how == "zeros":
        data[at:end] = bytes(end - at)
    elif how == "twice":
        data[at:at] = data[at:end]
    elif how == "hole":
        del data[at:end]
    elif how == "splice":
        other = valid[names[rng.integers(len(names))]]
        data[at:] = other[int(rng.integers(len(other))) :]
    elif how == "huge":
        data = claim_size(suffix, data, int(rng.choice([9_000, 40_000, 65_500, 2**24 - 1, 2**31 - 1])))
    elif how == "suffix":
        suffix = Path(names[rng.integers(len(names))]).suffix
    elif how == "noise":
        data = bytearray(rng.bytes(int(rng.integers(0, 5000))))
    elif how == "nothing":
        data = bytearray(int(rng.choice([0, 1, 2000])))
    return how, suffix, bytes(data)


HOW = ("flips", "head flips", "cut", "zeros", "twice", "hole", "splice", "huge", "suffix", "noise", "nothing", "none")


def claim_size(suffix: str, data: bytearray, side: int) -> bytearray:
    """The file with another width and height in its header, as far as the format's numbers reach."""
    short, small = min(side, 65_500), min(side, 16_383)
    if suffix == ".png":
        data[16:24] = struct.pack(">2I", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif suffix in (".jpg", ".mpo"):
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            at = data.rfind(marker)
            if at > 0:
                data[at + 5 : at + 9] = struct.pack(">2H", short, short)
    elif suffix == ".gif":
        data[6:10] = struct.pack("<2H", short, short)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<2i", side, side)
    elif suffix == ".webp" and data[12:16] == b"VP8X":
        data[24:30] = struct.pack("<I", min(side, 2**24 - 1))[:3] * 2
    elif suffix == ".webp" and data[12:16] == b"VP8 ":
        data[26:30] = struct.pack("<2H", small, small)
    elif suffix in (".avif", ".heic"):
        at = data.find(b"ispe")
        data[at + 8 : at + 16] = struct.pack(">2I", side, side)
    elif suffix == ".tif":
        for tag in (256, 257):
            at = data.find(struct.pack("<2H", tag, 4))
            if at >= 0:
                data[at + 8 : at + 12] = struct.pack("<I", side)
    return data


# --- made to be slow or large -------------------------------------------------------------------------------------


def png_of(width: int, height: int, chunks: bytes = b"", rows: bytes | None = None) -> bytes:
    """A black grey PNG, with chunks before its pixels."""
    rows = bytes((width + 1) * height) if rows is None else rows
    body = png_chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)) + chunks
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_of_many_scans(count: int, side: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def tiff_of(tags: list[tuple[int, int, int, int]], then: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory, entries (tag, type, count, value), that names itself as the next one."""
    entries = b"".join(struct.pack("<2H2I", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8) + then


def hostile_files(scale: float = 1.0) -> dict[str, bytes]:
    """Small or middling files that cost much time or memory where a reader does not look out: name -> bytes.

    Args:
        scale: of the numbers that make them slow; 1 is full size.
    """

    def times(number: int) -> int:
        return max(1, int(number * scale))

    small = Image.new("RGB", (64, 64), "red")
    frame, jpeg = encoded(small, "GIF"), encoded(small, "JPEG")
    start = 13 + 3 * 2 ** ((frame[10] & 7) + 1)  # after header and colour table
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * times(120_000) + b"\0"
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(times(50) * 2**20)))
    size = [(256, 4, 1, 7_000), (257, 4, 1, 7_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    exif = b"\xff\xe1" + struct.pack(">H", 65_000) + b"Exif\0\0II*\0\x08\0\0\0" + bytes(65_000 - 16)
    directory = tiff_of([(n + 300, 2, times(5) * 2**20, 8) for n in range(60_000)])
    strips = [(273, 4, 60_000, 8), (278, 3, 1, 1), (279, 4, 60_000, 8)]
    return {
        "text bomb.png": png_of(8, 8, chunks=text * 30),
        "many chunks.png": png_of(8, 8, chunks=png_chunk(b"tEXt", b"k\0v") * times(300_000)),
        "exif.png": png_of(8, 8, chunks=png_chunk(b"eXIf", directory)),
        "black.png": png_of(8_000, times(8_000)),
        "claim.png": png_of(60_000, 60_000, rows=b""),
        "long.png": png_of(20_000, 3),
        "frames.gif": frame[:start] + frame[start:-1] * times(20_000) + b";",
        "comment.gif": frame[:start] + comment + frame[start:],
        "scans.jpg": jpeg_of_many_scans(3_000, times(8_000)),
        "exif.jpg": jpeg[:2] + exif * times(300) + jpeg[2:],
        "tags.tif": directory + bytes(times(5) * 2**20),
        "strips.tif": tiff_of([*size, *strips], bytes(300_000)),
        "loop.tif": tiff_of([*size, (273, 4, 1, 8), (278, 4, 1, 7_000), (279, 4, 1, 49_000_000)]),
    }


ODD_NAMES = (
    b"\xff\xfe.jpg", b"caf\xe9.jpg", b"two\nlines.jpg", b"red\x1b[31m.jpg", b"back\\slash.jpg", b"no suffix",
    "na\u00efve \u5199\u771f \U0001f642.jpg".encode(), b"a" * 251 + b".jpg", b"\xff" * 251 + b".jpg",
    b"-rf.jpg", b" .jpg",
)  # fmt: skip
LINKS = {"nowhere.jpg": "/nonexistent/x", "loop.jpg": "loop.jpg", "a.jpg": "b.jpg", "b.jpg": "a.jpg",
         "zero.jpg": "/dev/zero", "up.jpg": ".."}  # fmt: skip


def awkward_entries(folder: Path) -> dict[str, bool]:
    """Fills a folder with things that are no plain files, or have odd names: name -> whether it is a file with a photo.

    Every photo is a 32 px JPEG.
    """
    photo = encoded(Image.new("RGB", (32, 32), "teal"), "JPEG")
    made: dict[str, bool] = {}
    for name in ODD_NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(photo)
        made[os.fsdecode(name)] = True
    outside = folder.parent / "outside.jpg"
    outside.write_bytes(photo)
    for name, target in {"link.jpg": outside, "link of link.jpg": "link.jpg", **LINKS}.items():
        (folder / name).symlink_to(target)
        made[name] = name.startswith("link")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    made |= {"folder.jpg": False, "pipe.jpg": False}
    return made
