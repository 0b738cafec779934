"""Picture files: finds photos, opens them upright, refuses what can't be read, encodes what is made."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from headshotkit.errors import HeadshotError, NoPhotos

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".avif"}


class Unreadable(HeadshotError):
    """A file that should be a photo can't be opened as one."""


def find_photos(folder: Path) -> list[Path]:
    """The files of a folder that are photos by their name or their first bytes, sorted by name.

    Raises:
        NoPhotos: the folder is missing, is a file, is empty, or holds nothing that could be a photo.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NoPhotos(f"the photo folder {folder} {what}.", "", "Give a folder with 10-20 photos of one person.")
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    photos = [f for f in files if f.suffix.lower() in SUFFIXES or _looks_like_picture(f)]
    if not photos:
        raise NoPhotos(
            f"{folder} holds no photo among its {len(files)} files.",
            f"Photos end in {', '.join(sorted(SUFFIXES))}.",
            "Put 10-20 photos of one person there.",
        )
    return photos


def _looks_like_picture(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def read_photo(path: Path) -> np.ndarray:
    """A photo as it should be looked at: RGB, uint8, shape (H, W, 3), turned upright by its EXIF orientation.

    Transparent parts become white.

    Raises:
        Unreadable: the file is not a picture, is cut off, or claims more pixels than Pillow takes (179 million).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata; real bombs are errors
            with Image.open(path) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_as_rgb(upright))
    except Exception as error:  # Pillow's decoders raise many kinds; whatever it is, the file is refused
        raise Unreadable(
            f"{path.name} can't be read: {error}.", "The file is damaged or not a picture.", "Export it again as JPEG."
        ) from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    if image.mode in ("I", "I;16", "F"):
        values = np.asarray(image, np.float32)
        top = 65535.0 if values.max() > 255 else 255.0
        image = Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    return image.convert("RGB")


def png_bytes(picture: Image.Image, **texts: str) -> bytes:
    """A picture as PNG with the given text chunks and none of a photo's metadata: no place, no time, no camera."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
