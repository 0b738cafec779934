"""Builds the training folder: upright, cropped around the face, resized, captioned; class images if wanted.

Captions describe pose, scene and light, never the face: what a caption names, the LoRA learns to leave out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit import runtime
from headshotkit.config import DatasetConfig, GateConfig, RenderConfig
from headshotkit.families import load_family
from headshotkit.photos import png_bytes, read_photo
from headshotkit.records import Dataset, TrainingPhoto, Verdict, kept_photos
from headshotkit.run import Run, Stage, write_atomic

FACE_HEIGHT_IN_CROP = 0.54
"""Where the face's middle lies in the crop, from the top: a little below the middle leaves room for hair."""
TURNED = 0.12
"""Offset of the nose from the eyes' middle, in eye distances, from which a face looks left or right."""
DARK, BRIGHT = 85, 190
"""Median luma of a face below and above which the light is called dim or bright."""


def build_dataset(run: Run, config: DatasetConfig) -> Dataset:
    """Turns the kept photos into the training folder.

    Writes `dataset/`: one PNG and one caption (.txt, may be edited) a crop, class/, manifest.json.

    Raises:
        StageMissing: the photos have not been judged.
        TooFewPhotos: the gate kept too few of them.
        BaseUnavailable: class images are wanted and the base's weights can't be had.
    """
    judged = run.manifest("photos")
    verdicts = kept_photos([Verdict.from_dict(v) for v in judged["verdicts"]], _least_photos(judged))
    stage = run.begin("dataset", config, run.inputs_from("photos"), seed=config.seed)
    if stage.done:
        return Dataset.from_dict(stage.manifest["dataset"])
    photos, upscaled = [], {}
    for verdict in runtime.progress(verdicts, "cropping photos"):
        image = read_photo(run.path("photos") / "kept" / verdict.photo)
        for photo, factor in _training_photos(image, verdict, config, stage.folder):
            photos.append(photo)
            if factor > 1:
                upscaled[photo.file] = round(factor, 2)
    class_images = _class_images(config, stage) if config.class_images else ()
    dataset = Dataset(
        Path("."), config.token, config.class_word, config.size_px, tuple(photos), tuple(class_images)
    )  # the folder is the manifest's own, so a run can be moved
    words = f"{len(photos)} pictures of {config.size_px} px from {len(verdicts)} photos"
    words += f", {len(class_images)} class images" if class_images else ""
    words += f"; {len(upscaled)} were enlarged, for their photos are small" if upscaled else ""
    stage.finish(words, dataset=dataset.to_dict(), upscaled=upscaled)
    return dataset


def _least_photos(judged: dict) -> int:
    return judged["config"].get("min_photos", GateConfig.min_photos)


def _training_photos(image: np.ndarray, verdict: Verdict, config: DatasetConfig, folder: Path):
    """Writes each crop of a photo (and its mirror image), yields it with the factor it was enlarged by."""
    height, width = image.shape[:2]
    box = np.array(verdict.measures["face_box_px"])
    done: set[tuple[int, int, int]] = set()
    for number, fraction in enumerate(config.face_fractions):
        left, top, side = face_crop(width, height, box, fraction)
        if (left, top, side) in done:  # the photo is too tight for a wider crop
            continue
        done.add((left, top, side))
        scale = config.size_px / side
        cut = Image.fromarray(image[top : top + side, left : left + side])
        picture = cut.resize((config.size_px, config.size_px), Image.Resampling.LANCZOS)
        face_box = (box - [left, top, left, top]) * scale
        for mirrored in (False, True) if config.mirror else (False,):
            name = f"{Path(verdict.photo).stem}_{number}{'_mirrored' if mirrored else ''}"
            caption = caption_for(verdict, image, config, mirrored)
            shown = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture
            write_atomic(folder / f"{name}.png", png_bytes(shown))
            write_atomic(folder / f"{name}.txt", caption + "\n")
            if mirrored:
                face_box = np.array([config.size_px, 0, config.size_px, 0]) + face_box[[2, 1, 0, 3]] * [-1, 1, -1, 1]
            place = (round(top * scale), round(left * scale))
            photo = TrainingPhoto(
                f"{name}.png", verdict.photo, caption, (width, height), place, tuple(face_box.round(1).tolist())
            )
            yield photo, scale


def face_crop(width: int, height: int, box: np.ndarray, fraction: float) -> tuple[int, int, int]:
    """The square around a face in which the face has a wanted height, moved and shrunk to fit the photo.

    Args:
        width, height: of the photo, px.
        box: the face's x0, y0, x1, y1, px, shape (4,).
        fraction: face height / side of the square, in (0, 1].
    Returns: (left, top, side) px; inside the photo.

    >>> face_crop(400, 300, np.array([150, 100, 210, 180]), 0.5)
    (100, 54, 160)
    >>> face_crop(400, 300, np.array([150, 10, 350, 290]), 0.5)
    (100, 0, 300)
    """
    side = int(min(round((box[3] - box[1]) / fraction), width, height))
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left = int(np.clip(round(middle_x - side / 2), 0, width - side))
    top = int(np.clip(round(middle_y - FACE_HEIGHT_IN_CROP * side), 0, height - side))
    return left, top, side


def caption_for(verdict: Verdict, image: np.ndarray, config: DatasetConfig, mirrored: bool = False) -> str:
    """Caption of a photo from what the gate measured and from the picture's upper corners; unsure things stay out."""
    points = np.array(verdict.measures["face_points_px"])
    parts = [f"photo of {config.token} {config.class_word}", direction(points, mirrored), backdrop(image)]
    luma = verdict.measures["brightness"]
    parts.append("dim lighting" if luma < DARK else "bright lighting" if luma > BRIGHT else "")
    return ", ".join(part for part in parts if part)


def direction(points: np.ndarray, mirrored: bool = False) -> str:
    """Where a face looks, as the viewer sees it; empty when it is between straight and turned.

    Args:
        points: the face's five points, px, shape (5, 2).

    >>> eyes_nose_mouth = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]])
    >>> direction(eyes_nose_mouth)
    'looking at the camera'
    """
    eyes = points[1] - points[0]
    axis = eyes / max(float(np.linalg.norm(eyes)), 1e-6)
    middle = (points[0] + points[1] + points[3] + points[4]) / 4
    turn = float((points[2] - middle) @ axis / max(float(np.linalg.norm(eyes)), 1e-6))
    turn = -turn if mirrored else turn
    if abs(turn) < TURNED / 2:
        return "looking at the camera"
    if abs(turn) < TURNED:
        return ""
    return "looking left" if turn < 0 else "looking right"


def backdrop(image: np.ndarray) -> str:
    """The background as its upper corners show it; empty when it is none of the plain ones.

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


def _class_images(config: DatasetConfig, stage: Stage) -> list[str]:
    """Pictures of the class from the bare base, for prior preservation; those that exist are not made again."""
    render = RenderConfig.for_base(config.base)
    names = [f"class/{number:03d}.png" for number in range(config.class_images)]
    missing = [n for n in range(len(names)) if not (stage.folder / names[n]).exists()]
    if not missing:
        return names
    family = load_family(config.base)
    prompt = f"photo of a {config.class_word}"
    for number in runtime.progress(missing, "class images"):
        seed = runtime.seed_for(config.seed, number)
        made = family.render([prompt], [""], [seed], config.size_px, render.steps, render.guidance)
        write_atomic(stage.folder / names[number], png_bytes(made[0]))
    return names
