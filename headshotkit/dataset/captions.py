"""Captions: scene, clothes, light, pose and framing, never the face; the LoRA does not learn what a caption names.

A template names what was measured and is certain. BLIP or Florence-2 see more; their words on the face, age and gender
are removed. Each caption is a .txt next to its picture; a person's edit of it is kept and trained on.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.core import locks
from headshotkit.core.errors import HeadshotError
from headshotkit.core.records import Dataset, TrainingPhoto
from headshotkit.core.results import DatasetResult
from headshotkit.core.run import Run, edited_captions, write_atomic, write_json
from headshotkit.faces import measures, recognition
from headshotkit.families.expressions import NEUTRAL, SMILING

TURNED = 0.12
"""Offset of the nose from the eyes' middle, in eye distances, from which a face looks left or right."""
DARK, BRIGHT = 85, 190
"""Median luma of a face below and above which the light is called dim or bright."""
DIM_PICTURE = 170
"""The 98th percentile of a picture's luma above which its light is not dim, however dark the skin."""
SIDE_LIGHT, SOFT_LIGHT, SOFT_CONTRAST = 42, 10, 32
"""Difference in mean luma between a face's halves: above the first, light comes from the side; below the second, it is
soft if the luma's standard deviation is below SOFT_CONTRAST. The embedded base's captions used these limits."""
WIDE_MOUTH, NARROW_MOUTH = 0.9, 0.77
"""Distance of the mouth's corners relative to the eyes': of 40 neutral faces the widest is 0.879, of 40 smiling ones
the narrowest is 0.783 (Face Research Lab London Set)."""
FRAMINGS = ((0.58, "close-up"), (0.3, "head and shoulders"), (0.15, "upper body"))
"""Least height of the face relative to the picture's, and the name of such a framing."""
SURE_CLOTHES = 0.7
"""Fraction of the pixels below the chin that must agree on a colour before the caption names it."""


class NoSuchCaption(HeadshotError):
    """The dataset holds no picture of that name, or the caption given is empty."""


@dataclass(frozen=True)
class View:
    """The input of a caption: a prepared picture and the face in it.

    pixels: RGB, uint8, shape (H, W, 3) · points: (5, 2) px, eyes, nose, mouth corners, the viewer's left first ·
    box: (4,) x0, y0, x1, y1 px.
    """

    pixels: np.ndarray
    points: np.ndarray
    box: np.ndarray


def caption_of(view: View, instance: str, brief: bool, seen: str = "") -> str:
    """Return the caption of a picture; it leaves out what is uncertain.

    Args:
        instance: token and class word.
        brief: use only words that the embedded base was trained on.
        seen: a captioner's text, already filtered, in place of clothes and background.
    """
    aligned = recognition.align_face(view.pixels, view.points, measures.FACE_PX)
    pose = [expression(view.points), direction(view.points)]
    place = [seen] if seen else [backdrop(view.pixels)] if brief else [clothes(view), backdrop(view.pixels)]
    parts = [f"photo of {instance}", "" if brief else framing(view), *pose, *place, light(view.pixels, aligned)]
    return ", ".join(part for part in parts if part)


def mirrored(caption: str) -> str:
    """Return the caption of the mirrored picture: left and right change places.

    >>> mirrored("photo of ohwx man, looking left, bright lighting")
    'photo of ohwx man, looking right, bright lighting'
    """
    swap = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda found: swap[found[0]], caption)


# --- words for what was measured ----------------------------------------------------------------------------------


def _turn(points: np.ndarray) -> float:
    """Return the nose's offset from the middle of eyes and mouth, in eye distances; above 0 to the viewer's right."""
    eyes = points[1] - points[0]
    distance = max(float(np.linalg.norm(eyes)), 1e-6)
    middle = (points[0] + points[1] + points[3] + points[4]) / 4
    return float((points[2] - middle) @ (eyes / distance) / distance)


def direction(points: np.ndarray) -> str:
    """Return the direction a face looks, as the viewer sees it; empty between straight and turned.

    Args:
        points: the face's five points, px, shape (5, 2).

    >>> eyes_nose_mouth = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]])
    >>> direction(eyes_nose_mouth)
    'looking at the camera'
    """
    turn = _turn(points)
    if abs(turn) < TURNED / 2:
        return "looking at the camera"
    if abs(turn) < TURNED:
        return ""
    return "looking left" if turn < 0 else "looking right"


def expression(points: np.ndarray) -> str:
    """Return "smiling" or "neutral expression" by the width of the mouth; empty in between, or if the face is turned.

    Args:
        points: the face's five points, px, shape (5, 2).

    >>> expression(np.array([[30, 40], [70, 40], [50, 60], [30, 80], [70, 80]]))
    'smiling'
    """
    mouth_width = float(np.linalg.norm(points[4] - points[3]) / max(np.linalg.norm(points[1] - points[0]), 1e-6))
    if abs(_turn(points)) >= TURNED or NARROW_MOUTH <= mouth_width <= WIDE_MOUTH:
        return ""
    return SMILING if mouth_width > WIDE_MOUTH else NEUTRAL


def framing(view: View) -> str:
    """Return how much of the person the picture shows; empty if the face is small in it."""
    share = (view.box[3] - view.box[1]) / view.pixels.shape[0]
    return next((words for least, words in FRAMINGS if share >= least), "")


def light(picture: np.ndarray, aligned: np.ndarray) -> str:
    """Return the light on a face; empty if it is nothing special.

    Args:
        picture: RGB, uint8, shape (H, W, 3).
        aligned: the face in it, as in `measures`.
    """
    median = measures.brightness(aligned)
    if median > BRIGHT:
        return "bright lighting"
    if median < DARK and np.percentile(picture @ measures.LUMA, 98) < DIM_PICTURE:
        return "dim lighting"
    left, right = measures.half_brightness(aligned)
    if abs(left - right) > SIDE_LIGHT:
        return "side light"
    return "soft light" if abs(left - right) < SOFT_LIGHT and measures.contrast(aligned) < SOFT_CONTRAST else ""


def backdrop(image: np.ndarray) -> str:
    """Return the background by its upper corners; empty if it is none of the plain ones.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    h, w = image.shape[0] // 3, max(1, image.shape[1] // 12)
    corners = np.concatenate([image[:h, :w].reshape(-1, 3), image[:h, -w:].reshape(-1, 3)]).astype(np.float32)
    middle, spread = np.median(corners, 0), corners.mean(1).std()
    colourful = float(middle.max() - middle.min())
    if middle.mean() > 205 and colourful < 28 and spread < 30:
        return "plain white background"
    if middle.mean() < 48:
        return "dark background"
    if colourful < 22 and spread < 30:
        return "grey studio background"
    return ""


def clothes(view: View) -> str:
    """Return the clothes' colour, from the two sides below the face; empty if uncertain or out of the picture.

    Tones near skin, wood and sand are never certain, so they have no word.
    """
    height, width = view.pixels.shape[:2]
    face_width, face_height = view.box[2] - view.box[0], view.box[3] - view.box[1]
    middle, top = (view.box[0] + view.box[2]) / 2, int(view.box[3] + 0.3 * face_height)
    bottom, inner, outer = min(height, int(view.box[3] + face_height)), 0.35 * face_width, 0.8 * face_width
    if bottom - top < 0.1 * face_height:
        return ""
    sides = ((middle - outer, middle - inner), (middle + inner, middle + outer))
    patches = [view.pixels[top:bottom, max(0, int(a)) : min(width, int(b))] for a, b in sides]
    names = [_colour_shares(patch) for patch in patches if patch.size]
    sure = [max(shares, key=shares.get) for shares in names if max(shares.values(), default=0) >= SURE_CLOTHES]
    return f"wearing {sure[0]} clothes" if len(sure) == 2 and sure[0] == sure[1] else ""


def _colour_shares(patch: np.ndarray) -> dict[str, float]:
    """Return the fraction of a patch's pixels in each colour that is certain: name -> in [0, 1]."""
    hue, colourful, bright = np.moveaxis(np.asarray(Image.fromarray(patch).convert("HSV"), np.float32), -1, 0)
    hue, strong = hue * 360 / 255, (colourful > 90) & (bright > 70)
    masks = {
        "dark": bright < 60,
        "white": (bright > 200) & (colourful < 30),
        "grey": (bright > 85) & (bright < 180) & (colourful < 30),
        "red": strong & ((hue < 8) | (hue > 340)) & (colourful > 140),
        "green": strong & (hue > 80) & (hue < 165),
        "blue": strong & (hue > 190) & (hue < 255),
        "purple": strong & (hue > 265) & (hue < 310),
    }
    return {name: float(mask.mean()) for name, mask in masks.items()}


# --- a person's edits ---------------------------------------------------------------------------------------------


def with_edits(folder: Path, dataset: Dataset) -> Dataset:
    """Return the dataset with the current captions of the .txt files; an empty or missing file changes nothing.

    Args:
        folder: of the dataset, with its pictures and their .txt files.
    """
    edited = edited_captions(folder, [photo.to_dict() for photo in dataset.photos])
    photos = []
    for photo in dataset.photos:
        written, text = photo.written or photo.caption, edited.get(photo.file)
        photos.append(dataclasses.replace(photo, caption=text or written, written=written if text else ""))
    return dataclasses.replace(dataset, photos=tuple(photos))


def note_edits(run: Run) -> Dataset:
    """Read the .txt files of a finished dataset, and note the edited captions in its manifest.

    Raises:
        StageMissing: the dataset has not been built.
    """
    before = DatasetResult.load(run).dataset
    now = with_edits(run.path("dataset"), before)
    if now != before:
        with locks.working(run.folder, "note_edits"):
            write_json(run.path("dataset") / "manifest.json", run.manifest("dataset") | {"dataset": now.to_dict()})
    return now


@locks.writes("edit_caption")
def edit_caption(run: Run, file: str, text: str) -> TrainingPhoto:
    """Replace the caption of a training picture; a later build keeps it.

    Args:
        file: the picture's name in the dataset, as in its manifest.
        text: the new caption; line breaks become spaces.
    Raises:
        NoSuchCaption: the dataset holds no such picture, or the text is empty.
        StageMissing: the dataset has not been built.
    """
    photos = {photo.file: photo for photo in note_edits(run).photos}
    text = " ".join(text.split())
    if file not in photos or not text:
        raise NoSuchCaption(
            f"can't set the caption of {file!r} to {text!r}.",
            f"The dataset holds {len(photos)} pictures, such as {next(iter(photos))}. A caption needs at least one "
            "word.",
            f"Choose one of the names in {run.path('dataset') / 'manifest.json'}.",
        )
    write_atomic((run.path("dataset") / file).with_suffix(".txt"), text + "\n")
    return next(photo for photo in note_edits(run).photos if photo.file == file)
