"""Build the training folder: upright, cropped around the face, resized, captioned; class images if wanted.

The pictures are `crops`, augmented or not, with editable `captions`; runs share class images.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import TOKEN, CheckConfig, PrepareConfig
from headshotkit.config.bases import BASES, find_base
from headshotkit.core import hub, locks, runtime
from headshotkit.core.records import Dataset, TrainingPhoto, Verdict, kept_photos
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import Run, write_atomic, write_json
from headshotkit.dataset import augment, captions, crops
from headshotkit.dataset.captioners import Captioner, source_of
from headshotkit.dataset.class_images import build_class_images
from headshotkit.dataset.held_out import LEAST_KEPT, hold_out, number_held_out
from headshotkit.dataset.tokens import check_token
from headshotkit.families import CHANGES
from headshotkit.photos.files import png_bytes, read_photo


@locks.writes("prepare")
@runtime.frees_memory
def prepare_dataset(run: Run, config: PrepareConfig) -> Dataset:
    """Turn the kept photos into the training folder.

    Writes `dataset/`: one PNG and one editable caption (.txt) a crop, class/, manifest.json. Edited captions are kept,
    whatever the settings of a later build. A few photos are held out of training, never one with an edited caption; the
    manifest's `held_out` names them.

    Raises:
        StageMissing: the photos have not been checked.
        DamagedRun: a kept photo is missing, or was edited after the check.
        TooFewPhotos: the gate kept too few of them.
        BadConfig: the token is a word, a name, or more than one token.
        BaseUnavailable: class images or a captioner are wanted, and their weights can't be loaded.
    """
    if config.token != TOKEN:  # the default is fine; reading the tokenizers takes a second
        check_token(config.token)
    judged = PhotosResult.load(run)
    verdicts = kept_photos(list(judged.verdicts), _least_photos(judged), judged.advice, judged.left_out)
    digests = {photo.path.name: photo.sha256 for photo in judged.photos}
    edited = {name: words for name, words in _edited_before(run).items() if _is_of(words, digests)}
    run.files("photos", [f"kept/{v.photo}" for v in verdicts], thorough=True)
    stage = run.begin("dataset", config, run.inputs_from("photos"), seed=config.seed)
    if stage.done:
        dataset = captions.note_edits(run)
        _name_strange_files(stage.folder, dataset)
        return dataset
    stage.manifest |= {"edited": edited, "digests": digests}
    write_json(stage.folder / "manifest.json", stage.manifest)  # so that they survive an interruption
    changes = stage.manifest.setdefault(CHANGES, [])
    needed = {words["photo"] for words in edited.values()}
    held = hold_out(verdicts, number_held_out(len(verdicts), config.held_out), needed)
    trained = [verdict for verdict in verdicts if verdict.photo not in held]
    photos, upscaled = _prepare(run, trained, config, edited)
    class_images = build_class_images(config, stage.folder, changes) if config.class_images else ()
    dataset = Dataset(
        Path("."),
        config.token,
        config.class_word,
        config.size_px,
        tuple(photos),
        tuple(class_images),
        config.class_prompt,
    )  # the folder is the manifest's own, so a run can move
    used = find_base(config.base).sources if config.class_images else ()
    stage.finish(
        _outcome(dataset, len(trained), len(upscaled)) + _held_words(held, len(verdicts), config),
        dataset=dataset.to_dict(),
        held_out=held,
        upscaled=upscaled,
        weights=hub.commits_of(source_of(config.captioner, config.captioner_weights), *used),
    )
    return dataset


def _name_strange_files(folder: Path, dataset: Dataset) -> None:
    """Report pictures and captions in the training folder that this stage did not write; they are not trained on."""
    own = {Path(photo.file).stem for photo in dataset.photos}
    strange = [f.name for f in folder.iterdir() if f.is_file() and f.stem not in own and f.name != "manifest.json"]
    if strange:
        what = f"{len(strange)} files in {folder} are not used: {', '.join(sorted(strange)[:10])}"
        runtime.say(f"{what}. Put your own pictures into the photo folder, then check the photos again.")


def _prepare(
    run: Run, verdicts: list[Verdict], config: PrepareConfig, edited: dict
) -> tuple[list[TrainingPhoto], dict[str, float]]:
    """Write all pictures with their captions; return (pictures, enlarged pictures -> their scale factor)."""
    captioner = Captioner(config.captioner, config.captioner_weights) if config.captioner != "template" else None
    photos, upscaled, words, names = [], {}, "", _picture_names([v.photo for v in verdicts])
    for verdict in runtime.progress(verdicts, "cropping photos"):
        image = read_photo(run.path("photos") / "kept" / verdict.photo)
        for piece in _pieces(image, names[verdict.photo], verdict, config):
            if not piece.made_by:  # an augmented picture has its crop's caption
                words = _caption(piece, config, captioner)
            caption = captions.mirrored(words) if piece.made_by == "mirrored" else words
            photos.append(_store(piece, run.path("dataset"), caption, edited.get(piece.name), config))
            if piece.scale > 1:
                upscaled[photos[-1].file] = round(piece.scale, 2)
    if captioner:
        del captioner
        runtime.free_memory()
    return photos, upscaled


def _picture_names(photos: list[str]) -> dict[str, str]:
    """Return a stem for each photo's pictures: its name without the suffix, unless another photo has the same.

    Upper and lower case count as the same, as on macOS and Windows they name one file.

    >>> _picture_names(["a.jpg", "b.jpg", "B.png", "b_png.jpg"])
    {'a.jpg': 'a', 'b.jpg': 'b_jpg', 'B.png': 'B_png', 'b_png.jpg': 'b_png-2'}
    """
    stems = Counter(Path(photo).stem.casefold() for photo in photos)
    names, taken = {}, set()
    for photo in photos:
        stem = Path(photo).stem
        wanted = stem if stems[stem.casefold()] == 1 else photo.replace(".", "_")
        tries = (f"{wanted}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
        names[photo] = next(name for name in tries if name.casefold() not in taken)
        taken.add(names[photo].casefold())
    return names


def _least_photos(judged: PhotosResult) -> int:
    return judged.config.get("min_photos", CheckConfig().min_photos)


def _outcome(dataset: Dataset, photos: int, upscaled: int) -> str:
    width, height = dataset.photos[0].size_px
    size = f"{width} px" if width == height else f"{width} x {height} px"
    edited = sum(bool(photo.written) for photo in dataset.photos)
    words = f"{len(dataset.photos)} pictures of {size} from {photos} photos"
    words += f", {len(dataset.class_images)} class images" if dataset.class_images else ""
    words += f"; {edited} edited captions were kept" if edited else ""
    return words + (f"; {upscaled} were enlarged because their photos are small" if upscaled else "")


def _held_words(held: list[str], kept: int, config: PrepareConfig) -> str:
    """Return which photos are held out of training, or why none is."""
    if held:
        return f"; not trained on, to compare with: {', '.join(held)}"
    if not config.held_out:
        return ""
    few = f"only {kept} were kept, fewer than {LEAST_KEPT}"
    why = few if kept < LEAST_KEPT else "the training needs each of them"
    return f"; no photo was held out to compare with, because {why}"


# --- pictures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A training picture before it is written: its content and its origin.

    `original_px` is the photo's (width, height), `corner_px` the crop's (top, left) in the picture's scale,
    `made_by` the augmentation: empty, turned or mirrored.
    """

    name: str
    photo: str
    view: captions.View
    original_px: tuple[int, int]
    corner_px: tuple[int, int]
    scale: float
    made_by: str = ""


def _pieces(image: np.ndarray, stem: str, verdict: Verdict, config: PrepareConfig) -> Iterator[_Piece]:
    """Yield the crops of a photo, each followed by its augmented pictures."""
    height, width = image.shape[:2]
    box, points = (np.array(verdict.measures[name], float) for name in ("face_box_px", "face_points_px"))
    size = crops.bucket_size(config.aspect, config.size_px)
    done: set[crops.Window] = set()
    for number, fraction in enumerate(config.face_fractions):
        window = crops.face_window(width, height, box, fraction, size)
        if window in done:  # the photo is too tight for a wider crop
            continue
        done.add(window)
        scale = size[1] / window[3]
        corner = np.array(window[:2])
        pixels = np.asarray(crops.cut(image, window, size))
        yaw_deg = verdict.measures.get("yaw_deg")
        view = captions.View(pixels, (points - corner) * scale, (box - np.tile(corner, 2)) * scale, yaw_deg)
        top_left = (round(window[1] * scale), round(window[0] * scale))
        piece = _Piece(f"{stem}_{number}", verdict.photo, view, (width, height), top_left, scale)
        yield piece
        if config.augment != "off":
            yield from _turned(piece, image, window, (box, points), config.seed)
        if config.augment == "full":
            yield _mirrored(piece)


def _turned(
    piece: _Piece, image: np.ndarray, window: crops.Window, face: tuple[np.ndarray, np.ndarray], seed: int
) -> Iterator[_Piece]:
    """Yield the crop turned and scaled a little, unless the photo is too tight. `face`: box and points, px."""
    box, points = face
    name = f"{piece.name}_turned"
    turn = augment.turned_window(window, box, piece.original_px, *augment.draw_turn(seed, name))
    if turn is None:
        return
    size = piece.view.pixels.shape[1::-1]
    scale = size[1] / turn.height
    pixels = np.asarray(augment.cut_turned(image, turn, size))
    view = captions.View(pixels, turn.place(points) * scale, turn.place_box(box) * scale, piece.view.yaw_deg)
    corner = np.array(turn.middle)[::-1] - [turn.height / 2, turn.width / 2]
    top_left = tuple(round(float(c) * scale) for c in corner)
    yield dataclasses.replace(piece, name=name, view=view, corner_px=top_left, scale=scale, made_by="turned")


def _mirrored(piece: _Piece) -> _Piece:
    """Return the same picture mirrored, as if the photo had been."""
    pixels, points, box, yaw_deg = piece.view.pixels, piece.view.points, piece.view.box, piece.view.yaw_deg
    width = pixels.shape[1]
    view = captions.View(
        np.ascontiguousarray(pixels[:, ::-1]),
        np.array([width, 0]) + points[[1, 0, 2, 4, 3]] * [-1, 1],
        np.array([width, 0, width, 0]) + box[[2, 1, 0, 3]] * [-1, 1, -1, 1],
        None if yaw_deg is None else -yaw_deg,
    )
    left = max(0, round(piece.original_px[0] * piece.scale) - width - piece.corner_px[1])
    corner = (piece.corner_px[0], left)
    return dataclasses.replace(piece, name=f"{piece.name}_mirrored", view=view, corner_px=corner, made_by="mirrored")


def _store(piece: _Piece, folder: Path, caption: str, edited: str | None, config: PrepareConfig) -> TrainingPhoto:
    """Write a picture and its caption; an edited caption replaces the generated one, with the current token."""
    instance = f"{config.token} {config.class_word}"
    words = edited["caption"].replace(edited["instance"], instance) if edited else caption
    write_atomic(folder / f"{piece.name}.png", png_bytes(Image.fromarray(piece.view.pixels)))
    write_atomic(folder / f"{piece.name}.txt", words + "\n")
    return TrainingPhoto(
        f"{piece.name}.png",
        piece.photo,
        words,
        piece.original_px,
        piece.corner_px,
        tuple(piece.view.box.round(1).tolist()),
        piece.view.pixels.shape[1::-1],
        "" if words == caption else caption,
    )


def _caption(piece: _Piece, config: PrepareConfig, captioner: Captioner | None) -> str:
    """Return the caption of a crop."""
    brief = config.base in BASES and BASES[config.base].brief_prompts
    seen = captioner.caption(piece.view.pixels) if captioner else ""
    return captions.caption_of(piece.view, f"{config.token} {config.class_word}", brief, seen)


def _edited_before(run: Run) -> dict[str, dict[str, str]]:
    """Return the edited captions of the existing dataset, by picture, with photo and its sha256.

    An interrupted dataset holds those that it began with.
    """
    manifest = run.peek("dataset")
    if "dataset" not in manifest:
        return manifest.get("edited", {})
    dataset = captions.with_edits(run.path("dataset"), Dataset.from_dict(manifest["dataset"]))
    edited = [photo for photo in dataset.photos if photo.written]
    digests = manifest.get("digests", {})
    return {
        Path(p.file).stem: {"caption": p.caption, "instance": dataset.instance, "photo": p.photo,
                            "sha256": digests.get(p.photo, "")}
        for p in edited
    }  # fmt: skip


def _is_of(edited: dict[str, str], digests: dict[str, str]) -> bool:
    """Return whether an edited caption belongs to the current photo, not to an earlier one of the same name."""
    return not edited.get("sha256") or digests.get(edited["photo"]) == edited["sha256"]
