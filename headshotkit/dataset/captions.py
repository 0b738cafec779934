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

from headshotkit.core import locks
from headshotkit.core.errors import HeadshotError
from headshotkit.core.records import Dataset, TrainingPhoto
from headshotkit.core.results import DatasetResult
from headshotkit.core.run import Run, edited_captions, write_atomic, write_json
from headshotkit.faces import measures, recognition, traits
from headshotkit.families.expressions import NEUTRAL, SMILING

SOFT_CONTRAST = 32.0
"""Contrast of a face, grey levels, below which even light is soft; the embedded base's captions have this limit."""
FRAMINGS = (
    (traits.CLOSE_UP, "close-up"), (traits.HEAD_AND_SHOULDERS, "head and shoulders"), (traits.UPPER_BODY, "upper body"),
)  # fmt: skip
"""Least height of the face relative to the picture's, and the name of such a framing."""
BACKDROPS = {"white": "plain white background", "grey": "grey studio background", "dark": "dark background"}
CLOTHES = {"black": "dark", "white": "white", "grey": "grey", "red": "red", "green": "green", "blue": "blue",
           "purple": "purple"}  # fmt: skip
"""Colour of clothes -> its word. Tones near skin, wood and sand are never certain, so they have none."""


class NoSuchCaption(HeadshotError):
    """The dataset holds no picture of that name, or the caption given is empty."""


@dataclass(frozen=True)
class View:
    """The input of a caption: a prepared picture and the face in it.

    pixels: RGB, uint8, shape (H, W, 3) · points: (5, 2) px, eyes, nose, mouth corners, the viewer's left first ·
    box: (4,) x0, y0, x1, y1 px · yaw_deg: of the head, by `traits.head_pose`; None if it was not measured.
    """

    pixels: np.ndarray
    points: np.ndarray
    box: np.ndarray
    yaw_deg: float | None = None


def caption_of(view: View, instance: str, brief: bool, seen: str = "") -> str:
    """Return the caption of a picture; it leaves out what is uncertain.

    Args:
        instance: token and class word.
        brief: use only words that the embedded base was trained on.
        seen: a captioner's text, already filtered, in place of clothes and background.
    """
    aligned = recognition.align_face(view.pixels, view.points, measures.FACE_PX)
    pose = [expression(view.points), direction(view.yaw_deg)]
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


def direction(yaw_deg: float | None) -> str:
    """Return the direction a face looks, as the viewer sees it; empty between straight and turned, or if not known.

    >>> direction(0.0), direction(-12.0), direction(6.0)
    ('looking at the camera', 'looking left', '')
    """
    if yaw_deg is None:
        return ""
    if abs(yaw_deg) < traits.STRAIGHT_DEG:
        return "looking at the camera"
    side = traits.side_of(yaw_deg, traits.SURELY_ASIDE_DEG)
    return side and f"looking {side}"


def expression(points: np.ndarray) -> str:
    """Return "smiling" or "neutral expression"; empty in between.

    Args:
        points: the face's five points, px, shape (5, 2).

    >>> expression(np.array([[30, 40], [70, 40], [50, 60], [30, 80], [70, 80]]))
    'smiling'
    """
    smile = traits.smile(points)
    return SMILING if smile >= traits.SURELY_SMILING else NEUTRAL if smile <= traits.SURELY_NEUTRAL else ""


def framing(view: View) -> str:
    """Return how much of the person the picture shows; empty if the face is small in it."""
    share = traits.face_height(view.box, view.pixels)
    return next((words for least, words in FRAMINGS if share >= least), "")


def light(picture: np.ndarray, aligned: np.ndarray) -> str:
    """Return the light on a face; empty if it is nothing special.

    Args:
        picture: RGB, uint8, shape (H, W, 3).
        aligned: the face in it, as in `traits`.
    """
    brightness, side = traits.brightness(aligned), abs(traits.light_side(aligned))
    if brightness > traits.BRIGHT_LUMA:
        return "bright lighting"
    if traits.is_dim(brightness, traits.highlights(picture)):
        return "dim lighting"
    if side > traits.SIDE_LIGHT:
        return "side light"
    return "soft light" if side < traits.EVEN_LIGHT and measures.contrast(aligned) < SOFT_CONTRAST else ""


def backdrop(image: np.ndarray) -> str:
    """Return the background; empty if it is none of the plain ones.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    seen = traits.background(image)
    return BACKDROPS.get(seen.colour, "") if seen.is_plain or seen.colour == "dark" else ""


def clothes(view: View) -> str:
    """Return the clothes' colour; empty if uncertain or out of the picture."""
    worn = traits.clothes(view.pixels, view.box)
    if not worn or worn.share < traits.SURE_CLOTHES:
        return ""
    word = CLOTHES.get(traits.colour_name(worn.lab).removeprefix("dark ").removeprefix("light "))
    in_shade = word == "grey" and worn.lab[0] > traits.SURELY_GREY_L
    return f"wearing {word} clothes" if word and not in_shade else ""


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
