"""Strip photos of all metadata besides the picture: place, time, camera, thumbnails, other pictures.

The pixels stay unchanged: blocks are removed from the file, or zeroed in place, and nothing is encoded again. If that
fails, or would change the picture, its pixels are written as PNG.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.core.errors import HeadshotError
from headshotkit.core.run import write_atomic
from headshotkit.photos.files import kind_of, open_photo, png_bytes, read_photo

NO_EXIF = bytes(4) + b"II*\0" + struct.pack("<IHI", 8, 0, 0)
"""A HEIF's EXIF item without tags: its TIFF's offset, and an empty TIFF."""
COMPARED_PX = 512
"""Longer side at which a stripped photo is compared with the original; a JPEG is read at a reduced size for it."""
ORIENTATION = 274
JPEG_KEPT = {0xE0: b"", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
"""A JPEG's application segments that define its pixels' colours, and their first bytes."""
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT"}
WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"ANIM", b"ANMF"}
HEIF_KEPT = {b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip"}
HEIF_PRIVATE = {b"Exif", b"mime", b"uri "}
"""Kinds of items in a HEIC or AVIF that are not pictures."""


def write_stripped(source: Path, data: bytes, place: Path) -> None:
    """Write a photo without metadata; it decodes to exactly the same pixels.

    Args:
        source: the photo's file, which is readable.
        data: its bytes.
    Raises:
        DiskFull, RunFolderError: it can't be written.
        Unreadable: the source is no longer readable.
    """
    strip = STRIPPERS.get(kind_of(data[:64]) or "")
    try:
        bare = strip(data, _turn_of(data)) if strip else b""
    except (ValueError, IndexError, struct.error):
        bare = b""
    if bare:
        write_atomic(place, bare)
        if _is_same(source, place):
            return
    write_atomic(place, png_bytes(Image.fromarray(read_photo(source))))


def _is_same(source: Path, place: Path) -> bool:
    """Return whether two files decode to the same picture, compared at COMPARED_PX."""
    try:
        one, other = (open_photo(path, COMPARED_PX) for path in (source, place))
    except HeadshotError:
        return False
    same = (one.width_px, one.height_px) == (other.width_px, other.height_px)
    return same and np.array_equal(one.pixels, other.pixels)


def _turn_of(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 without one."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            turn = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # any defect: the pictures are compared in the end
        return 1
    return turn if turn in range(1, 9) else 1


def _exif(turn: int) -> bytes:
    """Return EXIF that holds only the orientation."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, ORIENTATION, 3, 1, turn, 0, 0)


def strip_jpeg(data: bytes, turn: int) -> bytes:
    """Return the first picture of a JPEG without its other segments and any data after it.

    Source: ITU T.81, B.1.1: a marker is 0xFF and a byte, and most begin a segment with its length.
    """
    exif = b"Exif\0\0" + _exif(turn)
    parts = [data[:2], b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif] if turn > 1 else [data[:2]]
    at = 2
    while mark := MARKER.search(data, at):
        kind, start = mark[1][0], mark.end()
        if mark.start() > at:
            parts.append(data[at : mark.start()])  # the scan's data
        if kind == 0xD9:
            return b"".join([*parts, b"\xff\xd9"])
        (length,) = struct.unpack_from(">H", data, start)
        payload = data[start + 2 : start + length]
        private = 0xE0 <= kind <= 0xEF and not (kind in JPEG_KEPT and payload.startswith(JPEG_KEPT[kind]))
        if not private and kind != 0xFE:  # a comment
            parts.append(b"\xff" + bytes([kind]) + data[start : start + length])
        at = start + length
    raise ValueError("it has no end")


def strip_png(data: bytes, turn: int) -> bytes:
    """Return a PNG with the chunks that its pixels need, and its orientation."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in PNG_KEPT:
            parts.append(data[at : at + length + 12])
        if kind == b"IHDR" and turn > 1:
            chunk = b"eXIf" + _exif(turn)
            parts.append(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += length + 12
        if kind == b"IEND":
            return b"".join(parts)
    raise ValueError("it has no end")


def strip_webp(data: bytes, turn: int) -> bytes:
    """Return a WebP with the chunks that its pixels need, and its orientation."""
    parts, at = [], 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if kind in WEBP_KEPT:
            chunk = bytearray(data[at:end])
            if kind == b"VP8X":
                chunk[8] = chunk[8] & ~0x0C | (0x08 if turn > 1 else 0)  # flags: EXIF present, no XMP
            parts.append(bytes(chunk))
        at = end
    if turn > 1:
        parts.append(struct.pack("<4sI", b"EXIF", len(_exif(turn))) + _exif(turn))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def strip_heif(data: bytes, _turn: int) -> bytes:
    """Return a HEIC or AVIF with empty EXIF, and zeros in place of XMP and makers' boxes.

    Its orientation is a property of the picture, not EXIF.

    Source: ISO 14496-12, 8.11.3 (iloc) and 8.11.6 (iinf).
    """
    bare = bytearray(data)
    meta = None
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            meta = {name: (at, stop) for name, at, stop in _boxes(data, start + 4, end)}
        elif kind not in HEIF_KEPT:
            bare[start:end] = bytes(end - start)
            bare[start - 4 : start] = b"free"
    if not meta or b"iloc" not in meta or b"iinf" not in meta:
        raise ValueError("it has no list of items")
    private = {number: kind for number, kind in _items(data, *meta[b"iinf"]) if kind in HEIF_PRIVATE}
    base = meta.get(b"idat", (0, 0))[0]
    for number, method, offset, length in _places(data, *meta[b"iloc"]):
        if number in private:
            start = offset + (base if method == 1 else 0)
            if method > 1 or not length or start + length > len(data):
                raise ValueError("an item lies elsewhere")
            empty = NO_EXIF if private[number] == b"Exif" else b""
            bare[start : start + length] = empty[:length].ljust(length, b"\0")
    return bytes(bare)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes of a part of a file: (kind, start of the content, end)."""
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, at)
        length = length or end - at
        if length < 8 or at + length > end:  # 1: a size of 64 bits follows, which no photo needs
            raise ValueError("a box has no size")
        yield kind, at + 8, at + length
        at += length


def _items(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the items that a HEIF's iinf box names: (number, kind)."""
    for kind, at, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe" and data[at] in (2, 3):
            number, _, name = struct.unpack_from(">HH4s" if data[at] == 2 else ">IH4s", data, at + 4)
            yield number, name


def _places(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield where items lie, by a HEIF's iloc box: (number, method, offset, length), an entry a part."""
    version, at = data[start], start + 4
    sizes = data[at] >> 4, data[at] & 15, data[at + 1] >> 4, data[at + 1] & 15 if version else 0
    at += 2

    def number(width: int) -> int:
        nonlocal at
        at += width
        if at > end:
            raise ValueError("its list of items is cut off")
        return int.from_bytes(data[at - width : at], "big")

    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(sizes[2])
        for _ in range(number(2)):
            number(sizes[3])
            offset = number(sizes[0])
            yield item, method, base + offset, number(sizes[1])


STRIPPERS: dict[str, Callable[[bytes, int], bytes]] = {
    "JPEG": strip_jpeg, "PNG": strip_png, "WEBP": strip_webp, "HEIF": strip_heif, "AVIF": strip_heif,
}  # fmt: skip
"""Format -> function that strips metadata: (file, EXIF orientation) -> file."""
