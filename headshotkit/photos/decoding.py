"""Convert a picture file that Pillow has opened to upright sRGB pixels, with limited memory and time.

Each function takes a Pillow image of any mode; `files.open_photo` calls them one after the other.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from headshotkit.photos.colour import SRGB
from headshotkit.photos.metadata import ORIENTATION, TAKEN, TAKEN_PART, Tags

MAX_PIXELS = 64_000_000
"""Most pixels to decode. The most demanding decoders, WebP's and HEIC's, take about 20 bytes for each."""
MAX_JPEG_PIXELS = 128_000_000
"""The same for JPEG, which takes about 12 bytes for each: enough for a phone's 108 megapixels."""
MAX_JPEG_CLAIM = 256_000_000
"""Most pixels of a JPEG, such as a phone's of 200 megapixels, that is decoded at a reduced size within
MAX_JPEG_PIXELS. A progressive one still takes up to 6 bytes for each."""
MAX_JPEG_SCANS = 64
"""Most scans of a progressive JPEG, which has about 10. Each costs a pass over all pixels and few bytes in the file."""
MAX_SIDE_PX, MAX_ASPECT = 32_000, 20
"""OpenCV can't rotate a picture with a side of 32,767 px or more. A phone's panorama has an aspect up to 5."""
MAX_FILE_BYTES = 256 * 2**20
MAX_READ_S = 3.0
"""Time limit for reading a file block by block, as this thread's own CPU time, so that a busy machine refuses no
photo. A decoder that takes the file as a whole is limited only by the pixels."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
RAW_TAG, REDUCED_TAG = 50706, 254
BLOCK, START_OF_SCAN, END_OF_PICTURE = re.compile(rb"\xff+([^\x00\xff\xd0-\xd8])", re.DOTALL), b"\xda", b"\xd9"
AS_JPEG = "Export it again as JPEG."
AS_PLAIN_TIFF = "Export it again as JPEG, or as TIFF with 8 bit a channel and the channels interleaved."
SMALLER = "Make it smaller, for example half as wide and half as high, or set the camera to 12 or 50 megapixels."


class Refused(Exception):
    """Why a file is refused: the problem and the next step. It is raised on as Unreadable, with the file's name."""

    def __init__(self, what: str, next_step: str = AS_JPEG) -> None:
        super().__init__(what)
        self.next_step = next_step


class Source(io.BufferedReader):
    """A regular file to read a photo from; reading stops if it takes too long or keeps repeating.

    Raises:
        Refused, OSError: it is not a regular file, is empty, is too large, or can't be opened.
    """

    def __init__(self, path: Path) -> None:
        _refuse_unless_file(os.stat(path))  # before it is opened, because opening a device can have effects
        # The path may be something else by now. Without O_NONBLOCK, a pipe without a writer waits forever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(handle)
            _refuse_unless_file(found)
            super().__init__(io.FileIO(handle))
        except BaseException:
            os.close(handle)
            raise
        self.until_s = time.thread_time() + MAX_READ_S
        self.left_bytes = 4 * found.st_size + 16 * 2**20  # a JPEG is read four times

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self.left_bytes -= len(data)
        if self.left_bytes < 0:
            raise Refused("its blocks overlap, which no camera writes")
        if time.thread_time() > self.until_s:
            raise Refused(f"reading its blocks takes over {MAX_READ_S:.0f} s")
        return data


def _refuse_unless_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Refused("it is not a file but a folder, a pipe or a device", "Take it out of the folder.")
    if found.st_size > MAX_FILE_BYTES:
        size, limit = found.st_size / 2**20, MAX_FILE_BYTES / 2**20
        raise Refused(f"it holds {size:.0f} MiB, at most {limit:.0f} MiB are read")


def refuse_bomb(picture: Image.Image, file: Source) -> None:
    """Refuse a file with too many pixels or an odd shape, or a raw file's preview, before it is decoded.

    Raises:
        Refused: with the number and the limit.
    """
    (width, height), jpeg = picture.size, picture.format in ("JPEG", "MPO")
    limit = MAX_JPEG_CLAIM if jpeg else MAX_PIXELS
    if width * height > limit:
        raise Refused(f"it claims {width} x {height} = {width * height} pixels, at most {limit} are read", SMALLER)
    if max(width, height) > min(MAX_SIDE_PX, MAX_ASPECT * min(width, height)):
        rule = f"at most {MAX_SIDE_PX} px a side and {MAX_ASPECT} to 1 are read"
        raise Refused(f"it is {width} x {height} px, {rule}")
    tags = getattr(picture, "tag_v2", {})
    if RAW_TAG in tags or tags.get(REDUCED_TAG) == 1:
        raise Refused("it is a camera's raw file")
    if jpeg:
        file.seek(0)
        scans = jpeg_scans(file.read())
        if scans > MAX_JPEG_SCANS:
            raise Refused(f"it is a JPEG of {scans} scans, at most {MAX_JPEG_SCANS} are read")


def jpeg_scans(data: bytes) -> int:
    """Count the scans of a JPEG file's first picture; return 1 without counting if they can only be few.

    Source: ITU T.81, B.1.1: 0xFF and a byte that is neither 0 nor a restart's begin a block with its length.
    """
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return 1
    scans, at = 0, 2
    while (mark := BLOCK.search(data, at)) and mark[1] != END_OF_PICTURE:
        scans += mark[1] == START_OF_SCAN
        at = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")
    return scans


def open_as(kind: str, file: Source) -> Image.Image:
    """Open a file as the format that its first bytes identify; nothing is decoded yet.

    Raises:
        Refused: it is a TIFF in an unsupported layout.
    """
    file.seek(0)
    if kind == "JPEG":
        try:
            return JpegImagePlugin.jpeg_factory(file)  # Image.open refuses a phone's 200 megapixels
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            raise UnidentifiedImageError("not a JPEG") from error
    try:
        return Image.open(file, formats=(kind,))
    except UnidentifiedImageError:
        if kind != "TIFF":
            raise
        tags = _tiff_tags(file)
        if not tags:
            raise
        raise Refused(f"it is a TIFF of {_layout(tags)}, which can't be read", AS_PLAIN_TIFF) from None


def draft(picture: Image.Image, least_px: int | None) -> tuple[int, int] | None:
    """Make a JPEG decode at a reduced size if that leaves at least `least_px`, or if it is too large.

    Returns: the size that counts as the whole picture's, px: half of it or less for a JPEG of more than
        MAX_JPEG_PIXELS; None if the picture is decoded in full.
    """
    if picture.format not in ("JPEG", "MPO"):
        return None
    whole, pixels = picture.size, picture.width * picture.height
    must = next(part for part in (1, 2, 4, 8) if pixels <= part * part * MAX_JPEG_PIXELS)
    may = next((part for part in (8, 4, 2) if least_px and max(whole) // part >= least_px), 1)
    part = max(must, may)
    if part == 1 or picture.draft(None, tuple(max(1, side // part) for side in whole)) is None:
        return None
    return tuple(-(-side // must) for side in whole)


def turn_and_time(picture: Image.Image, tags: Tags) -> tuple[int, str | None]:
    """Return a picture's EXIF orientation, 1 to 8, and its time; (1, None) if its EXIF has neither."""
    turn = tags.get(ORIENTATION)
    if picture.format == "TIFF" or turn not in TURNS:
        turn = 1  # Pillow itself turns a TIFF while it loads it
    moment, part = (str(tags.get(tag, "")).strip("\0 ") for tag in (TAKEN, TAKEN_PART))
    try:
        taken = time.strptime(moment, "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return turn, None
    return turn, time.strftime("%Y-%m-%dT%H:%M:%S", taken) + (f".{part}" if re.fullmatch("[0-9]{1,6}", part) else "")


def jpeg_quality(tables: dict[int, list[int]] | None) -> int | None:
    """Estimate the quality of a JPEG from its luminance table, 1 to 100; None without a table.

    Within 1 of libjpeg's setting from 17 on; below, its steps are capped at 255 and the result is too high. A camera's
    own table gets the quality at which libjpeg's has the same mean.

    Args:
        tables: number of the table -> its 64 steps; 0 is luminance's.
    Source: libjpeg, jpeg_quality_scaling; the table of quality 50 (ITU T.81, K.1) adds up to 3688.

    >>> jpeg_quality({0: [16] * 64}), jpeg_quality(None)
    (86, None)
    """
    if not tables or 0 not in tables:
        return None
    percent = 100 * max(sum(tables[0]), 1) / 3688
    return round(min(max(100 - percent / 2 if percent <= 100 else 5000 / percent, 1), 100))


def reduced(picture: Image.Image, least_px: int | None) -> Image.Image:
    """Shrink a picture of more than twice `least_px` by a whole factor; each pixel is the mean of those before.

    A mode without a mean, such as a palette's, stays unchanged: call `flat` first.
    """
    if not least_px or max(picture.size) <= 2 * least_px:
        return picture
    if picture.mode not in ("L", "LA", "RGB", "RGBA", "CMYK") or "transparency" in picture.info:
        return picture
    return picture.reduce(max(picture.size) // least_px)


def flat(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to L, RGB or CMYK: 8 bit, without alpha, on white."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _eight_bit(picture)
    if picture.mode == "LAB":
        return ImageCms.profileToProfile(picture, ImageCms.createProfile("LAB"), SRGB, outputMode="RGB")
    if picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGB", layered.size, "white")
        ground.paste(layered, mask=layered)
        return ground
    return picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Return grey of 16 or 32 bit or float as L; white is the format's own, or the next usual one above the values.

    Pillow reads a TIFF's unsigned 32 bit numbers as signed, so they are read by a separate rule. It leaves some floats
    in the file's byte order; those have senseless values and are swapped.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    values, tags = np.array(picture), getattr(picture, "tag_v2", {})
    if picture.mode == "I" and tags.get(SAMPLE_FORMAT, (1,)) in (1, (1,)) and tags.get(BITS) in (32, (32,)):
        return Image.fromarray((values.view(np.uint32) >> 24).astype(np.uint8))
    if picture.mode == "F" and not _sensible(values) and _sensible(values.byteswap()):
        values = values.byteswap()
    highest = float(np.nan_to_num(values).max())
    tops = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
    top = next((top for top in tops if highest <= top), highest)
    values = np.clip(np.nan_to_num(values.astype(np.float32)), 0, top) * np.float32(255 / top) + np.float32(0.5)
    return Image.fromarray(values.astype(np.uint8))


def _sensible(values: np.ndarray) -> bool:
    """Return whether floats are plausible pixels: finite, and neither all tiny nor huge."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(values).all() and 1e-6 < np.abs(values).max(initial=0) < 1e7)


# --- TIFF with planar channels ------------------------------------------------------------------------------------

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, CHANNELS, ROWS, STRIP_BYTES = (
    256, 257, 258, 259, 262, 273, 277, 278, 279
)  # fmt: skip
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, PREDICTOR, PLANAR, SAMPLE_FORMAT = 322, 323, 324, 325, 317, 284, 339
EXTRA_SAMPLES, TURN = 338, 274
PLANE_TAGS = (WIDTH, HEIGHT, COMPRESSION, ROWS, TILE_WIDTH, TILE_HEIGHT, PREDICTOR, TURN)
PLANE_MODES = {2: "RGB", 5: "CMYK"}


def joined_planes(picture: Image.Image, file: Source) -> Image.Image:
    """Convert a TIFF with planar channels to an 8 bit picture; return any other picture unchanged.

    Pillow reads such channels of 16 bit as 8 bit. So each channel is opened as a grey picture: the same file with
    its own directory at the end.

    Raises:
        Refused: the channels are not those of a photo.
    Source: TIFF 6.0, PlanarConfiguration.
    """
    tags = getattr(picture, "tag_v2", {})
    count, bits = tags.get(CHANNELS, 1), _first(tags.get(BITS, 1))
    if picture.format != "TIFF" or tags.get(PLANAR) != 2 or count == 1:
        return picture
    if bits == 8 and tags.get(PHOTOMETRIC) in PLANE_MODES and picture.mode in ("RGB", "RGBA", "CMYK"):
        return picture
    offsets, sizes = (TILES, TILE_BYTES) if TILES in tags else (STRIPS, STRIP_BYTES)
    places, lengths, grey = tags.get(offsets, ()), tags.get(sizes, ()), tags.get(PHOTOMETRIC) in (0, 1)
    channels = 1 if grey else {2: 3, 5: 4}.get(tags.get(PHOTOMETRIC), 0)
    each = len(places) // count
    file.seek(0)
    data = file.read()
    if not channels or count < channels or not each or len(lengths) != len(places) or data[2:4] not in (b"*\0", b"\0*"):
        raise Refused(f"it is a TIFF of {_layout(tags)}, which can't be read", AS_PLAIN_TIFF)
    alpha = next(iter(tags.get(EXTRA_SAMPLES, (0,))), 0) in (1, 2) and count > channels
    planes = []
    for number in range(channels + alpha):
        part = slice(number * each, (number + 1) * each)
        own = {tag: tags[tag] for tag in PLANE_TAGS if tag in tags}
        own |= {BITS: bits, CHANNELS: 1, PHOTOMETRIC: tags[PHOTOMETRIC] if grey and not number else 1}
        own |= {SAMPLE_FORMAT: _first(tags.get(SAMPLE_FORMAT, 1)), offsets: places[part], sizes: lengths[part]}
        with Image.open(io.BytesIO(_with_directory(data, own)), formats=("TIFF",)) as plane:
            planes.append(plane.convert("L") if plane.mode in ("1", "L") else plane.copy())
    planes = [plane if plane.mode == "L" else _eight_bit(plane) for plane in planes]
    mode = "L" if grey else PLANE_MODES[tags[PHOTOMETRIC]]
    joined = Image.merge(mode, planes[:channels]) if channels > 1 else planes[0]
    if alpha and mode in ("L", "RGB"):
        joined.putalpha(planes[channels])
    return joined


def _with_directory(data: bytes, tags: dict) -> bytes:
    """Return a TIFF with one more directory at its end, set as its first."""
    order = "<" if data[:2] == b"II" else ">"
    at = len(data) + len(data) % 2
    behind, entries, extra_at = b"", b"", at + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        values = [int(v) for v in (tags[tag] if isinstance(tags[tag], (tuple, list)) else (tags[tag],))]
        entries += struct.pack(f"{order}2HI", tag, 4, len(values))
        packed = struct.pack(f"{order}{len(values)}I", *values)
        entries += packed if len(values) == 1 else struct.pack(f"{order}I", extra_at + len(behind))
        behind += packed if len(values) > 1 else b""
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + behind
    return data[:4] + struct.pack(f"{order}I", at) + data[8:] + bytes(len(data) % 2) + directory


def _tiff_tags(file: Source) -> dict:
    """Return the tags of a TIFF's first directory; none if it is broken."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        return {tag: directory[tag] for tag in (BITS, CHANNELS, SAMPLE_FORMAT, PHOTOMETRIC) if tag in directory}
    except Refused:
        raise
    except Exception:  # Pillow raises anything on a hostile directory
        return {}


def _layout(tags) -> str:
    """Describe a TIFF's channels in words.

    >>> _layout({BITS: (32, 32, 32), CHANNELS: 3, SAMPLE_FORMAT: (3, 3, 3)})
    '3 channels of 32 bit float'
    """
    kind = {2: " signed", 3: " float"}.get(_first(tags.get(SAMPLE_FORMAT, 1)), "")
    count, apart = tags.get(CHANNELS, 1), ", one after the other" if tags.get(PLANAR) == 2 else ""
    return f"{count} channel{'s' if count != 1 else ''} of {_first(tags.get(BITS, 1))} bit{kind}{apart}"


def _first(values) -> int:
    return values[0] if isinstance(values, tuple) else values
