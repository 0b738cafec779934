"""Picture files: find photos, open them upright and in sRGB, refuse unreadable ones, encode results.

A photo folder is untrusted: a name can be any bytes, a file can be a pipe, a bomb or half a download. So only regular
files are opened, a format is identified by its first bytes, and size, pixels and time are limited.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib
import io
import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from headshotkit.core import runtime
from headshotkit.core.errors import HeadshotError, NoPhotos
from headshotkit.photos import colour, decoding, metadata
from headshotkit.photos.decoding import MAX_JPEG_CLAIM, MAX_PIXELS, SMALLER, TURNS, Refused, Source

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif",
            ".heic", ".heif", ".avif"}  # fmt: skip
PLACEHOLDER = "placeholder of a file that is only in the cloud"
RAW = (
    "cr2", "cr3", "crw", "nef", "nrw", "arw", "sr2", "srf", "raf", "orf", "rw2", "pef", "dng", "3fr", "iiq", "x3f",
    "rwl", "srw", "erf", "mrw", "gpr",
)  # fmt: skip
UNREAD = {
    **{f".{name}": f"raw file ({name.upper()})" for name in RAW},
    **dict.fromkeys((".jxl",), "JPEG XL"), **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".afphoto"), "image editor's file"),
    **dict.fromkeys((".mov", ".mp4", ".m4v", ".avi", ".webm", ".3gp"), "film"), ".pdf": "PDF",
    **dict.fromkeys((".zip", ".rar", ".7z", ".tar", ".gz"), "archive"), ".icloud": PLACEHOLDER,
    **dict.fromkeys((".crdownload", ".part", ".download", ".partial"), "unfinished download"),
}  # fmt: skip
"""Suffix -> kind of a file that may hold photos but is not read."""
MOST_FOLDERS = 1000
MAX_NAME_BYTES = 200

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class Unreadable(HeadshotError):
    """A file that should be a photo can't be opened as one."""


@dataclass(frozen=True, eq=False)
class Opened:
    """An opened photo, and its file's metadata.

    pixels: RGB, uint8, shape (H, W, 3), upright, sRGB · width_px, height_px: of the full upright picture ·
    scale: the pixels' width relative to the full width, in (0, 1] · taken_at: when, by the camera's clock, ISO 8601
    without a zone, or None · jpeg_quality: 1 to 100, as libjpeg counts, for its tables; None if it is no JPEG ·
    profile: the original colour profile, or None · file_bytes: size of the file · made_by: the mark in the file of a
    model-generated picture, or None.
    """

    pixels: np.ndarray
    width_px: int
    height_px: int
    scale: float
    taken_at: str | None
    jpeg_quality: int | None = None
    profile: str | None = None
    file_bytes: int = 0
    made_by: str | None = None


# --- finding ------------------------------------------------------------------------------------------------------


def find_photos(folder: Path) -> list[Path]:
    """Return files that are photos by name or by their first bytes, sorted by name.

    A pipe, a folder or a dead link counts too if it is named like a photo, so that `open_photo` refuses it with a
    reason. Names that begin with a dot don't count. A name that is not UTF-8 stays in Python's form: convert it with
    `plain_name` before writing it anywhere.

    Raises:
        NoPhotos: the folder is missing, is a file, is not accessible, is empty, or holds no possible photo.
    """
    folder = runtime.typed_path(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        what = {
            errno.ENOENT: "does not exist",
            errno.ENOTDIR: "is a file, not a folder",
            errno.EACCES: "can't be opened: there is no permission",
        }.get(error.errno, f"can't be opened: {error.strerror or error}")
        next_step = "Give a folder with 10-20 photos of one person."
        raise NoPhotos(f"the photo folder {_words(str(folder))} {what}.", "", next_step) from error
    photos = [f for f in map(folder.joinpath, names) if f.suffix.lower() in SUFFIXES or kind_of(_head(f))]
    if not photos:
        others = left_out(folder)
        raise NoPhotos(
            f"{_words(str(folder))} holds no photo among its {len(names)} files.",
            f"Not read: {others}." if others else f"Photos end in {', '.join(sorted(SUFFIXES))}.",
            "Put 10-20 photos of one person there" + (", as JPEG, not in a subfolder." if others else "."),
        )
    return photos


def left_out(folder: Path) -> str:
    """Describe unread files in a folder that may be photos; empty if there are none.

    These are photos in subfolders (except a run's folder), files of unsupported kinds, and a cloud client's
    placeholders for photos.
    """
    photos, folders, kinds = 0, 0, Counter()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            found = _photos_below(Path(entry))
            photos, folders = photos + found, folders + bool(found)
        elif entry.is_file(follow_symlinks=False):
            kind = UNREAD.get(os.path.splitext(entry.name)[1].lower())
            if kind and (not entry.name.startswith(".") or kind == PLACEHOLDER) and not kind_of(_head(Path(entry))):
                kinds[kind] += 1
    words = [f"{photos} photo{'s' * (photos != 1)} in {folders} subfolder{'s' * (folders != 1)}"] if photos else []
    return ", ".join(words + [f"{count} {kind}" for kind, count in sorted(kinds.items())])


def _photos_below(folder: Path) -> int:
    """Count the files below a folder that are named like photos, except in run folders, which hold copies."""
    count = 0
    for seen, (place, folders, names) in enumerate(os.walk(folder)):
        if seen >= MOST_FOLDERS:
            break
        if os.path.exists(os.path.join(place, "photos", "manifest.json")):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".") for name in names)
    return count


def _head(path: Path) -> bytes:
    """Return the first bytes of a regular file; none if it can't be opened."""
    try:
        with Source(path) as file:
            return file.read(64)
    except (OSError, Refused):
        return b""


def kind_of(head: bytes) -> str | None:
    """Return the format that a file's first bytes identify, in Pillow's words; None if it is not supported.

    Args:
        head: 32 bytes or more.

    >>> kind_of(b"GIF89a" + bytes(26)), kind_of(b"hello")
    ('GIF', None)
    """
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADER_BYTES:
        return "BMP"
    if head[4:8] == b"ftyp":
        end = int.from_bytes(head[:4], "big")
        brands = {head[8:12]} | {head[at : at + 4] for at in range(16, min(end, len(head)), 4)}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIF" if brands & HEIF_BRANDS else None
    return None


def plain_name(path: Path | str) -> str:
    r"""Return a file's name in characters that print, fit into JSON, and stay unique.

    Bytes that are not UTF-8, control characters and backslashes become \xNN, so that two names stay different; a name
    of more than MAX_NAME_BYTES is cut and gets eight digits of its own hash.

    >>> plain_name("a/b c.jpg"), plain_name("\udcff\n.jpg")
    ('b c.jpg', '\\xff\\x0a.jpg')
    """
    name = os.path.basename(path)
    plain = _words(name, also="\\")
    if len(plain.encode()) <= MAX_NAME_BYTES:
        return plain
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    suffix = Path(plain).suffix if len(Path(plain).suffix.encode()) <= 16 else ""
    return plain.encode()[: MAX_NAME_BYTES - 30].decode(errors="ignore") + f"~{digest}{suffix}"


def _words(text: str, also: str = "") -> str:
    """Return text that prints and fits into JSON: characters that don't print, or are in `also`, become \\xNN."""

    def escaped(character: str) -> str:
        if character.isprintable() and character not in also:
            return character
        stray = "\udc80" <= character <= "\udcff"  # Python's form of a byte that is not UTF-8
        data = bytes([ord(character) - 0xDC00]) if stray else character.encode("utf-8", "surrogatepass")
        return "".join(f"\\x{byte:02x}" for byte in data)

    return "".join(escaped(c) for c in text)


def digest_of(path: Path) -> str:
    """Return the hex sha256 of a photo's bytes; empty if `open_photo` would refuse it (closed, a pipe, too large)."""
    try:
        with Source(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, Refused):
        return ""


# --- opening ------------------------------------------------------------------------------------------------------


def read_photo(path: Path) -> np.ndarray:
    """Read a photo's pixels in full size: RGB, uint8, shape (H, W, 3), upright, sRGB. Transparent parts become white.

    Raises:
        Unreadable: as `open_photo`.
    """
    return open_photo(path).pixels


def open_photo(path: Path, least_px: int | None = None) -> Opened:
    """Open a photo: upright by its EXIF orientation, in sRGB, on white; of several pictures the first.

    Reads JPEG, MPO, PNG, WebP, HEIC, AVIF, TIFF, GIF and BMP; grey, palette, CMYK, Lab, 16 bit and float too.

    Args:
        least_px: the longer side that is enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, and a picture
            still more than twice as large is reduced by a whole factor; None for the full size.
    Raises:
        Unreadable: the file can't be opened, is not a picture, is cut off or damaged, or claims more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata; real bombs are errors
            with Source(path) as file:
                return _open(file, least_px)
    except Exception as error:  # Pillow's decoders raise many kinds; all refuse the file
        what, next_step = _explained(error)
        raise Unreadable(f"{plain_name(path)} can't be read: {what}.", "", next_step) from error


def _explained(error: Exception) -> tuple[str, str]:
    """Explain in plain words what is wrong with a file, and what to do."""
    text = _words(str(error)).strip().rstrip(".")
    if isinstance(error, Refused):
        return text, error.next_step
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"(\d+) pixels", text)
        claim = f"it claims {pixels[1] if pixels else 'far too many'} pixels"
        return f"{claim}, at most {MAX_PIXELS} are read, of a JPEG {MAX_JPEG_CLAIM}", SMALLER
    if isinstance(error, UnidentifiedImageError):
        return "it is damaged at its beginning", "Copy it again from where it came from, or export it."
    if isinstance(error, PermissionError):
        return "there is no permission to open it", "Change its permissions, or copy it to your own folder."
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
        return "it is missing, or a broken link", "Put the photo itself into the folder."
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "it is incomplete", "Copy or download it again."
    return f"it is damaged ({text or type(error).__name__})", "Copy it again from where it came from, or export it."


def _open(file: Source, least_px: int | None) -> Opened:
    head = file.read(64)
    kind = kind_of(head)
    if kind is None:
        what = f"its first bytes, {head[:4].hex(' ')}, are not a photo's" if head else "it is empty, 0 bytes"
        raise Refused(what, "Give a JPEG, PNG, WebP, HEIC, AVIF, TIFF, GIF or BMP file.")
    if kind == "HEIF":
        _learn_heif()
    picture = decoding.open_as(kind, file)
    decoding.refuse_bomb(picture, file)
    counted_px = decoding.draft(picture, least_px)
    quality = decoding.jpeg_quality(getattr(picture, "quantization", None))
    tags = metadata.exif_of(picture)
    turn, taken_at = decoding.turn_and_time(picture, tags)
    made_by = metadata.made_by(picture, tags, file)
    planes = decoding.joined_planes(picture, file)
    if planes is picture:
        picture.load()
    whole_px = counted_px or planes.size  # a HEIC's size is known only now
    profile = _profile_of(picture, tags, file)
    picture = decoding.flat(decoding.reduced(planes, least_px))
    picture, profile_name = colour.to_srgb(decoding.reduced(picture, least_px), profile)
    if turn in TURNS:
        picture, whole_px = picture.transpose(TURNS[turn]), whole_px[::-1] if turn >= 5 else whole_px
    scale = picture.width / whole_px[0]
    name, size = profile_name and _words(profile_name), file.seek(0, os.SEEK_END)
    return Opened(np.asarray(picture), *whole_px, scale, taken_at, quality, name, size, made_by)


def _profile_of(picture: Image.Image, tags: metadata.Tags, file: Source) -> bytes | None:
    """Return the colour profile that a file gives for its pixels; None for sRGB or without one.

    Source: PNG (third edition), 4.3: cICP before iCCP before sRGB before gAMA and cHRM.
    """
    own = picture.info.get("icc_profile")
    if (cicp := None if own and picture.format != "PNG" else metadata.cicp_of(picture, file)) is not None:
        return colour.profile_from_cicp(*cicp)
    if own:
        return own
    if picture.format == "PNG":
        said = picture.info
        return None if "srgb" in said else colour.profile_from_png(said.get("gamma"), said.get("chromaticity"))
    return colour.adobe_rgb() if metadata.is_adobe_rgb(tags) else None


@functools.cache
def _learn_heif() -> None:
    """Register Pillow's HEIC support, which needs an extra package."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False)
    except ImportError as error:
        if runtime.out_of_memory(error):
            raise
        force = "" if isinstance(error, ModuleNotFoundError) else " --force-reinstall"
        next_step = f"Install it: pip install{force} pillow-heif. Or export the photo as JPEG."
        raise Refused(f"it is HEIC, which needs the package pillow-heif ({error})", next_step) from error


# --- encoding -----------------------------------------------------------------------------------------------------


def png_bytes(picture: Image.Image, **texts: str) -> bytes:
    """Encode a picture as PNG with the given text chunks and without a photo's metadata: no place, time or camera."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
