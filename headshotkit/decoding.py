"""From a picture file that Pillow has opened to upright pixels in sRGB, without taking more than a photo should.

Each function takes a Pillow image of any mode; `photos.open_photo` calls them one after the other.
"""

from __future__ import annotations

import io
import os
import re
import stat
import time
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

MAX_PIXELS = 64_000_000
"""Most pixels that are decoded. The hungriest decoders, WebP's and HEIC's, take about 20 bytes for each."""
MAX_JPEG_PIXELS = 128_000_000
"""The same for JPEG, which takes about 12 bytes for each: enough for a phone's 108 megapixels."""
MAX_JPEG_SCANS = 64
"""A progressive JPEG has about 10 scans. Each costs a pass over all pixels, but only a few bytes in the file."""
MAX_SIDE_PX, MAX_ASPECT = 32_000, 20
"""OpenCV turns no picture with a side of 32,767 px or more. A phone's panorama is up to 5 times as long as wide."""
MAX_FILE_BYTES = 256 * 2**20
MAX_READ_S = 3.0
"""This thread's own time, so that a busy machine refuses no photo, for what walks through a file block by block. A
decoder that takes the file as a whole is held by the pixels alone."""
MAX_EXIF_BYTES, MAX_PROFILE_BYTES = 128 * 2**10, 4 * 2**20

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
RAW_TAG, REDUCED_TAG = 50706, 254
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SRGB = ImageCms.createProfile("sRGB")
MOMENT_TAGS = (ExifTags.Base.DateTimeOriginal, ExifTags.Base.SubsecTimeOriginal)
BLOCK, START_OF_SCAN, END_OF_PICTURE = re.compile(rb"\xff+([^\x00\xff\xd0-\xd8])", re.DOTALL), b"\xda", b"\xd9"
AS_JPEG = "Export it again as JPEG."


class Refused(Exception):
    """Why a file is refused: what is wrong with it, and what to do. It ends as Unreadable, with the file's name."""

    def __init__(self, what: str, next_step: str = AS_JPEG) -> None:
        super().__init__(what)
        self.next_step = next_step


class Source(io.BufferedReader):
    """A regular file to read a photo from, that is given up on when reading takes too long or goes round in circles.

    Raises:
        Refused, OSError: it is not a regular file, is empty, is too large, or can't be opened.
    """

    def __init__(self, path: Path) -> None:
        _refuse_unless_file(os.stat(path))  # before it is opened, for opening a device can do things
        # The path may be something else by now. Without O_NONBLOCK, a pipe that nobody writes to waits for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(handle)
            _refuse_unless_file(found)
            super().__init__(io.FileIO(handle))
        except BaseException:
            os.close(handle)
            raise
        self.until_s = time.thread_time() + MAX_READ_S
        self.left_bytes = 3 * found.st_size + 16 * 2**20  # a JPEG is read three times

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self.left_bytes -= len(data)
        if self.left_bytes < 0:
            raise Refused("its blocks are read again and again, as no camera writes them")
        if time.thread_time() > self.until_s:
            raise Refused(f"reading its blocks takes over {MAX_READ_S:.0f} s")
        return data


def _refuse_unless_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Refused("it is no file, but a folder, a pipe or a device", "Take it out of the folder.")
    if found.st_size > MAX_FILE_BYTES:
        size, limit = found.st_size / 2**20, MAX_FILE_BYTES / 2**20
        raise Refused(f"it holds {size:.0f} MiB, at most {limit:.0f} MiB are read")


def refuse_bomb(picture: Image.Image, file: Source) -> None:
    """Refuses what claims too many pixels, has an odd shape, or is a raw file's preview, before it is decoded.

    Raises:
        Refused: with the number and the limit.
    """
    (width, height), jpeg = picture.size, picture.format in ("JPEG", "MPO")
    limit = MAX_JPEG_PIXELS if jpeg else MAX_PIXELS
    if width * height > limit:
        raise Refused(f"it claims {width} x {height} = {width * height} pixels, at most {limit} are read")
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
    """How many scans the first picture of a JPEG file has; not counted, but 1, where they can only be few.

    Source: ITU T.81, B.1.1: 0xFF and a byte that is neither 0 nor a restart's begin a block with its length.
    """
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:
        return 1
    scans, at = 0, 2
    while (mark := BLOCK.search(data, at)) and mark[1] != END_OF_PICTURE:
        scans += mark[1] == START_OF_SCAN
        at = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")
    return scans


def draft(picture: Image.Image, least_px: int | None) -> bool:
    """Has a JPEG decoded at a part of its size, where that leaves at least `least_px`; whether it will be."""
    longer = max(picture.size)
    part = next((part for part in (8, 4, 2) if least_px and longer // part >= least_px), None)
    if part is None or picture.format not in ("JPEG", "MPO"):
        return False
    return picture.draft(None, tuple(max(1, side // part) for side in picture.size)) is not None


def turn_and_time(picture: Image.Image) -> tuple[int, str | None]:
    """A picture's EXIF orientation, 1 to 8, and when it was taken; (1, None) where its EXIF is missing or broken.

    Ask before the pixels are loaded, for Pillow closes a TIFF after.
    """
    if len(picture.info.get("exif") or b"") > MAX_EXIF_BYTES:
        del picture.info["exif"]
    try:
        exif = picture.getexif()
        turn, details = exif.get(ExifTags.Base.Orientation), exif.get_ifd(ExifTags.IFD.Exif)
        moment, part = (str(details.get(tag, "")).strip("\0 ") for tag in MOMENT_TAGS)
    except Refused:
        raise
    except Exception:  # a photo with a broken EXIF block is still a photo
        return 1, None
    if picture.format == "TIFF" or not isinstance(turn, int) or turn not in TURNS:
        turn = 1  # Pillow itself turns a TIFF while it loads it
    try:
        taken = time.strptime(moment, "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return turn, None
    return turn, time.strftime("%Y-%m-%dT%H:%M:%S", taken) + (f".{part}" if re.fullmatch("[0-9]{1,6}", part) else "")


def jpeg_quality(tables: dict[int, list[int]] | None) -> int | None:
    """The quality that a JPEG's luminance table stands for, 1 to 100; None where there is no table.

    Within 1 of what libjpeg was told, if that was 17 or more; below, its steps end at 255 and the answer is too high.
    A camera's own table gets the quality at which libjpeg's is as coarse in the mean.

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
    """A picture of more than twice `least_px` made smaller by a whole factor; each pixel is the mean of those before.

    One of a mode that has no mean, such as a palette's, stays as it is: make it `flat` first.
    """
    if not least_px or max(picture.size) <= 2 * least_px:
        return picture
    if picture.mode not in ("L", "LA", "RGB", "RGBA", "CMYK") or "transparency" in picture.info:
        return picture
    return picture.reduce(max(picture.size) // least_px)


def flat(picture: Image.Image) -> Image.Image:
    """A picture of any mode as L, RGB or CMYK: 8 bit, without alpha, on white."""
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
    """Grey of 16 or 32 bit or in float as L; white is the format's own, or the next usual one above the values."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    values = np.nan_to_num(np.array(picture, np.float32))
    highest = float(values.max())
    tops = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
    top = next((top for top in tops if highest <= top), highest)
    np.clip(values, 0, top, out=values)
    values *= 255 / top
    values += 0.5
    return Image.fromarray(values.astype(np.uint8))


def to_srgb(picture: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """A picture of L, RGB or CMYK as RGB in sRGB, and the name of the profile that it was in, if that was used.

    A profile that is broken, or meant for other colours than the picture has, is left out.

    Source: ICC.1:2022, by littleCMS, perceptual intent.
    """
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return picture.convert("RGB"), None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()[:80]
        mode = PROFILE_MODES.get(source.profile.xcolor_space)
        if mode == "RGB" and "sRGB" in name:
            return picture.convert("RGB"), name
        if mode == picture.mode or (mode, picture.mode) == ("RGB", "L"):
            return ImageCms.profileToProfile(picture.convert(mode), source, SRGB, outputMode="RGB"), name
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return picture.convert("RGB"), None
