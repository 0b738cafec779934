"""Crops: windows around the face in SDXL's shapes, any target size, for a whole folder or for the training pictures.

Does what BIRME (birme.net) does in a browser: the whole folder to one size, cut around a focal point, as JPEG or PNG
of a chosen quality. The focal point is the face, which stays whole; a photo's metadata is removed.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from headshotkit.config import ASPECTS, SDXL_SIZES_PX, Config
from headshotkit.config.base import OneOf, Range, demand
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, HeadshotError, RunFolderError
from headshotkit.core.records import Record
from headshotkit.core.run import write_atomic
from headshotkit.faces import recognition
from headshotkit.photos.files import Unreadable, find_photos, plain_name, png_bytes, read_photo

FACE_HEIGHT_IN_CROP = 0.54
"""Height of the face's middle in the crop, from the top: a little below the middle leaves room for hair."""
BUCKETS = {aspect: SDXL_SIZES_PX[aspect] for aspect in ASPECTS}
"""Aspect of a crop -> SDXL's size (width, height) px for it."""
SDXL_PX = 1024
FRACTIONS = {"head-and-shoulders": 0.45, "face": 0.7, "whole": 0.0}
"""Content of a crop -> height of the face relative to the picture's; 0: as much of the photo as the shape allows."""
FORMATS = ("jpg", "png")

Window = tuple[int, int, int, int]
"""Left, top, width, height, px of the photo."""

Side = Annotated[int, Range(64, 8192)]


@dataclass(frozen=True)
class CropConfig(Config):
    """Settings for cropping a folder."""

    size_px: Side = SDXL_PX
    """Size, px: the picture has about size_px x size_px pixels, in the shape of `aspect`; 64 to 8192."""
    aspect: Annotated[str, OneOf((*ASPECTS, "auto"))] = "1:1"
    """Shape, width to height: one of ASPECTS, or auto: for each photo the one that cuts least."""
    exact_px: tuple[Side, ...] = ()
    """Width and height, px, in place of size_px and aspect; empty: use those."""
    what: Annotated[str, OneOf(FRACTIONS)] = "head-and-shoulders"
    """Content: head-and-shoulders, face, or whole (as much of the photo as the shape allows)."""
    format: Annotated[str, OneOf(FORMATS)] = "jpg"
    """jpg or png."""
    quality: Annotated[int, Range(1, 100)] = 92
    """JPEG quality, 1 to 100; higher is better. PNG loses nothing."""
    enlarge: bool = True
    """Enlarge a photo with too few pixels, and report it; off: refuse such a photo with its numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(
            len(self.exact_px) in (0, 2),
            f"exact_px is {self.exact_px}.",
            "It is a width and a height.",
            "Set CropConfig.exact_px, for example (600, 800), or none.",
        )


@dataclass(frozen=True)
class Cropped(Record):
    """The result for one photo. `reason` is why there is no picture; then `file` is empty.

    `size_px` is the picture's (width, height); `window_px` the window cut from the photo (left, top, width, height);
    `factor` picture px for each photo px, above 1 if enlarged; `face` whether a face determined the window.
    """

    photo: str
    file: str = ""
    aspect: str = ""
    size_px: tuple[int, ...] = ()
    window_px: tuple[int, ...] = ()
    factor: float = 1.0
    face: bool = False
    reason: str = ""


class CropRefused(HeadshotError):
    """A photo can be read, but not cropped as requested."""


def crop_folder(photos: Path, out: Path, config: CropConfig | None = None) -> list[Cropped]:
    """Crop every photo of a folder; a photo that can't be cropped is listed with its reason.

    Args:
        photos: the folder; it is only read.
        out: folder of the pictures, one a photo, named like it. A picture of that name is replaced.
    Returns: one record a photo, in the order of their names.
    Raises:
        NoPhotos: the folder is missing or holds no photo.
        RunFolderError, DiskFull: `out` is the photo folder itself, or can't be written.
    """
    config, out = config or CropConfig(), Path(out)
    if out.resolve() == Path(photos).resolve():
        raise RunFolderError(f"{out} is the photo folder.", "Crops would replace photos.", "Choose another folder.")
    made: list[Cropped] = []
    for path in runtime.progress(find_photos(photos), "cropping photos"):
        try:
            name = _free_name(path.stem, config.format, {crop.file.casefold() for crop in made})
            made.append(_crop_file(path, out / name, config))
        except (Unreadable, CropRefused) as error:
            made.append(Cropped(path.name, reason=error.happened))
    return made


def _free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """Return a file name that no earlier photo of the folder has: a.jpg and a.png become a.jpg and a-2.jpg."""
    names = (f"{stem}{f'-{n}' if n > 1 else ''}.{suffix}" for n in itertools.count(1))
    return next(name for name in names if name.casefold() not in taken)


def _crop_file(path: Path, target: Path, config: CropConfig) -> Cropped:
    """Read, cut and write one photo."""
    image = read_photo(path)
    height, width = image.shape[:2]
    found = recognition.detect_faces(image)
    box = found[0].box if found else np.array([width, height, width, height]) / 2
    fraction = FRACTIONS[config.what] if found else 0.0
    aspect, size = choose_size(width, height, box, fraction, config)
    window = face_window(width, height, box, fraction, size)
    factor = size[1] / window[3]
    if factor > 1 and not config.enlarge:
        cut_px = f"a crop of {window[2]} x {window[3]} px would become {size[0]} x {size[1]} px"
        raise CropRefused(f"{cut_px}, {factor:.2f} times as large, but enlarging is off")
    picture = cut(image, window, size)
    jpeg = config.format == "jpg"
    write_atomic(target, _jpeg_bytes(picture, config.quality) if jpeg else png_bytes(picture))
    return Cropped(path.name, target.name, aspect, size, window, round(factor, 3), bool(found))


def _jpeg_bytes(picture: Image.Image, quality: int) -> bytes:
    """Return a picture as JPEG with full colour resolution and no metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def size_options(text: str | None) -> dict:
    """Return the settings for a size on the command line.

    Raises:
        BadConfig: it is neither a number of px nor WIDTHxHEIGHT.

    >>> size_options("512"), size_options("1080x1350"), size_options(None)
    ({'size_px': 512}, {'size_px': None, 'exact_px': (1080, 1350)}, {})
    """
    if text is None:
        return {}
    sides = text.lower().split("x")
    if not all(side.isdecimal() and len(side) < 6 for side in sides) or len(sides) > 2:
        raise BadConfig(
            f"the size is {text!r}.",
            "It must be a number of px, or WIDTHxHEIGHT in px.",
            "Give for example --size 1024",
        )
    if len(sides) == 1:
        return {"size_px": int(text)}
    return {"size_px": None, "exact_px": (int(sides[0]), int(sides[1]))}


def choose_size(
    width: int, height: int, box: np.ndarray, fraction: float, config: CropConfig
) -> tuple[str, tuple[int, int]]:
    """Return the aspect and the size (width, height) px of a photo's crop; `auto` is the shape that cuts least.

    Args:
        width, height: of the photo, px.
        box: the face's x0, y0, x1, y1, px, shape (4,).
        fraction: as in `face_window`.
    Raises:
        CropRefused: none of the wanted shapes holds the whole face.
    """
    if config.exact_px:
        sizes = {f"{config.exact_px[0]}x{config.exact_px[1]}": config.exact_px}
    else:
        wanted = ASPECTS if config.aspect == "auto" else (config.aspect,)
        sizes = {aspect: bucket_size(aspect, config.size_px) for aspect in wanted}
    whole = {a: s for a, s in sizes.items() if holds(face_window(width, height, box, fraction, s), box, width, height)}
    if not whole:
        face, shapes = f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} px", ", ".join(sizes)
        raise CropRefused(
            f"the face is {face} of a photo of {width} x {height} px and would be cut off in the shape {shapes}"
        )
    aspect = max(whole, key=lambda a: kept_share(width, height, whole[a]))
    return aspect, whole[aspect]


def bucket_size(aspect: str, size_px: int) -> tuple[int, int]:
    """Return the size (width, height) px of an aspect, scaled from SDXL's; multiples of 8.

    >>> bucket_size("4:5", 1024), bucket_size("4:5", 512), bucket_size("1:1", 128)
    ((896, 1152), (448, 576), (128, 128))
    """
    if aspect == "1:1":
        return size_px, size_px
    return tuple(max(8, round(side * size_px / SDXL_PX / 8) * 8) for side in BUCKETS[aspect])


def kept_share(width: int, height: int, size: tuple[int, int]) -> float:
    """Return the fraction of a photo that the largest window of a shape holds, in (0, 1].

    >>> round(kept_share(300, 400, (832, 1216)), 3), kept_share(300, 400, (1024, 1024))
    (0.912, 0.75)
    """
    shape, photo = size[0] / size[1], width / height
    return min(shape, photo) / max(shape, photo)


def face_window(width: int, height: int, box: np.ndarray, fraction: float, size: tuple[int, int]) -> Window:
    """Return the window of a shape that gives the face a wanted height, moved and shrunk to fit the photo.

    Args:
        width, height: of the photo, px.
        box: the face's x0, y0, x1, y1, px, shape (4,).
        fraction: face height / height of the window, in (0, 1]; 0: the largest window.
        size: (width, height) that it will be scaled to; decides the shape.
    Returns: (left, top, width, height) px; inside the photo, with the whole face if the shape allows.

    >>> face_window(400, 300, np.array([150, 100, 210, 180]), 0.5, (64, 64))
    (100, 54, 160, 160)
    >>> face_window(400, 300, np.array([150, 10, 350, 290]), 0.5, (64, 64))
    (100, 0, 300, 300)
    >>> face_window(400, 300, np.array([150, 100, 210, 180]), 0, (64, 128))
    (105, 0, 150, 300)
    """
    shape = size[0] / size[1]
    most = min(height, width / shape)
    wanted = max((box[3] - box[1]) / fraction, (box[2] - box[0]) / shape) if fraction else most
    window_height = int(min(round(wanted), most))
    window_width = max(1, min(round(window_height * shape), width))
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    at = FACE_HEIGHT_IN_CROP if fraction else 0.5
    top = np.clip(round(middle_y - at * window_height), math.ceil(box[3]) - window_height, math.floor(box[1]))
    left = int(np.clip(round(middle_x - window_width / 2), 0, width - window_width))
    return left, int(np.clip(top, 0, height - window_height)), window_width, window_height


def holds(window: Window, box: np.ndarray, width: int, height: int) -> bool:
    """Return whether a window holds all of a photo's face; rounding may cost a px at each side."""
    left, top, window_width, window_height = window
    seen = np.clip(box, 0, [width, height, width, height])
    return bool(
        (seen[:2] >= [left - 1, top - 1]).all()
        and (seen[2:] <= [left + window_width + 1, top + window_height + 1]).all()
    )


def cut(image: np.ndarray, window: Window, size: tuple[int, int]) -> Image.Image:
    """Cut a window from a photo and scale it to a size (width, height) px.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    left, top, window_width, window_height = window
    return Image.fromarray(image[top : top + window_height, left : left + window_width]).resize(
        size, Image.Resampling.LANCZOS
    )


def line_of_crop(crop: Cropped) -> str:
    """Return the result for one photo in a line; a name that is not UTF-8 is shown with replaced letters.

    >>> line_of_crop(Cropped("a.png", "a.jpg", "1:1", (64, 64), (0, 0, 32, 32), 2.0, True))
    'a.png: a.jpg, 64 x 64 px (1:1); enlarged 2.00 times, because the crop has only 32 x 32 px in the photo'
    """
    name, file = plain_name(crop.photo), plain_name(crop.file)
    if crop.reason:
        return f"{name}: not cropped, {crop.reason.removeprefix(f'{name} ').rstrip('.')}"
    words = f"{name}: {file}, {crop.size_px[0]} x {crop.size_px[1]} px ({crop.aspect})"
    words += "" if crop.face else "; no face was found, so the middle was kept"
    if crop.factor > 1:
        there = f"{crop.window_px[2]} x {crop.window_px[3]} px"
        words += f"; enlarged {crop.factor:.2f} times, because the crop has only {there} in the photo"
    return words
