"""Sets of pictures to measure, and the features of each picture: computed once, and kept by the picture's content."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.errors import BadWeights, HeadshotError
from headshotkit.core.records import Headshot, Names
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import Run, sha256_of
from headshotkit.dataset.crops import FRACTIONS, cut, face_window
from headshotkit.faces import copies, measures, recognition, traits
from headshotkit.photos import assess
from headshotkit.photos.kept import kept_faces
from headshotkit.scoring import metrics_nets
from headshotkit.scoring.adherence import shown_by

PHOTO_PX, FACE_PX = 1024, 224
"""Largest side of a photo's crop around the head and shoulders; side of a face's crop for DINOv2."""
KEPT_FLOATS = 4096
"""Features of at most this length are written to the cache; longer ones are computed anew."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to measure.

    name: in messages · sha256: of its content · load: returns it, RGB, uint8, shape (H, W, 3) · prompt: for CLIP, with
    the class in the person's place · asked: its measurable requests, by `adherence.asked_of` · face: in it, if known.
    """

    name: str
    sha256: str
    load: Callable[[], np.ndarray]
    prompt: str = ""
    asked: dict[str, str] = field(default_factory=dict)
    face: recognition.Face | None = None


def picture_of(file: Path, prompt: str = "", asked: dict[str, str] | None = None) -> Picture:
    """Return a PNG or JPEG file as a picture to measure."""

    def load() -> np.ndarray:
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            return np.asarray(picture.convert("RGB"))

    return Picture(file.name, sha256_of(file), load, prompt, asked or {})


def picture_of_headshot(file: Path, shot: Headshot, names: Names, asked: dict[str, str] | None = None) -> Picture:
    """Return a headshot as a picture to measure; CLIP, which does not know the token, reads the class in its place."""
    return picture_of(file, shot.prompt.replace(names.person, names.class_prompt), asked)


def pictures_of_photos(run: Run, only: Collection[str] | None = None) -> list[Picture]:
    """Return the kept photos as pictures to measure, each cropped to head and shoulders, as headshots are.

    Args:
        only: names of the photos; None: all.
    Raises:
        StageMissing: the photos have not been judged.
        DamagedRun: a kept photo is missing, or was edited since it was judged.
    """
    names, found = [verdict.photo for verdict in PhotosResult.load(run).kept], []
    for name, (image, face) in zip(names, kept_faces(run, "metrics"), strict=True):
        if only is None or name in only:
            found.append(_cropped(name, image, face))
    return found


def _cropped(name: str, image: np.ndarray, face: recognition.Face) -> Picture:
    """Return a photo's head and shoulders; its face keeps its place."""
    height, width = image.shape[:2]
    fraction = FRACTIONS["head-and-shoulders"]
    window = face_window(width, height, face.box, fraction, (PHOTO_PX, PHOTO_PX))
    side = min(PHOTO_PX, *window[2:])
    crop = np.asarray(cut(image, window, (side, side)))
    corner, factor = np.array(window[:2], np.float32), np.array([side / window[2], side / window[3]], np.float32)
    points = ((face.points - corner) * factor).astype(np.float32)
    box = ((face.box.reshape(2, 2) - corner) * factor).reshape(4).astype(np.float32)
    inside = recognition.Face(box, face.score, points)
    return Picture(name, hashlib.sha256(crop.tobytes()).hexdigest(), lambda: crop, face=inside)


# --- features of a face -----------------------------------------------------------------------------------------------


def embedded(recogniser: str) -> Callable[[np.ndarray, recognition.Face], np.ndarray]:
    """Return the function that computes a face's embedding by a recogniser."""
    return lambda image, face: recognition.load_recogniser(recogniser).embed(image, face)


def looks(image: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Compute sharpness and quality of a face, as the identity gate does, float32, shape (2,)."""
    aligned = recognition.align_face(image, face.points, measures.FACE_PX)
    known = {name: getattr(measures, name)(aligned) for name in ("sharpness", "steadiness", "contrast", "visible")}
    known |= {"brightness": traits.brightness(aligned), "clipped": traits.clipped(aligned), "face_px": face.width_px}
    return np.array([known["sharpness"], assess.quality(known)], np.float32)


def shown(image: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Return what a headshot shows: direction, expression and background, text, shape (3,)."""
    found = shown_by(image, face.points, recognition.landmarks_106(image, face))
    return np.array([found[axis] for axis in SHOWN], "U16")


def structure(image: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Return a face's crop for the search of copies, float32, shape (SIDE_PX²,); NaN outside of the picture."""
    return copies.face_crop(image, face).ravel()


SHOWN = ("direction", "expression", "background")
OF_FACES: dict[str, Callable[[np.ndarray, recognition.Face], np.ndarray]] = {
    "arcface": embedded("arcface"), "dlib": embedded("dlib"), "looks": looks, "shown": shown, "structure": structure,
}  # fmt: skip
"""Feature -> the function that computes it of a picture with exactly one face."""
OF_NETS = {"inception": "inception", "lpips": "lpips", "clip": "clip", "clip_336": "clip_336", "dinov2": "dinov2",
           "dinov2_face": "dinov2"}  # fmt: skip
"""Feature -> the weights of the net that computes it; dinov2_face sees the face's crop."""


class Features:
    """The features of pictures, by the picture's sha256.

    Args:
        cache: file to begin with, of an earlier `save`; one that can't be read is left out.
        fetch: download weights that are not here.
    """

    def __init__(self, cache: Path | None = None, fetch: bool = False) -> None:
        self.fetch = fetch
        self.rows: dict[str, dict[str, np.ndarray | None]] = {}
        self.weights: dict[str, str] = {}
        self._failed: dict[str, HeadshotError] = {}
        self._net: tuple[str, metrics_nets.Loaded | None] = ("", None)
        if cache is not None and cache.is_file():
            self._read(cache)

    def of(self, feature: str, pictures: Sequence[Picture]) -> np.ndarray:
        """Return a feature of pictures, shape (N, D); a row of NaN (of "" for text) where it needs one face.

        Args:
            feature: of OF_FACES or OF_NETS.
        Raises:
            MissingModel, MissingPackage, BrokenPackage, DownloadFailed, BadWeights: its net can't be had.
        """
        rows = self.rows.setdefault(self._key(feature), {})
        lacking = list({p.sha256: p for p in pictures if p.sha256 not in rows}.values())
        if lacking:
            compute = self._of_faces if feature in OF_FACES else self._of_net
            for picture, row in zip(lacking, compute(feature, lacking), strict=True):
                rows[picture.sha256] = row
        found = [rows[picture.sha256] for picture in pictures]
        empty = next((np.full_like(row, "" if row.dtype.kind == "U" else np.nan) for row in found if row is not None),
                     np.full(1, np.nan, np.float32))  # fmt: skip
        return np.stack([empty if row is None else row for row in found])

    def each(self, key: str, pictures: Sequence[Picture], compute: Callable[[int], float]) -> np.ndarray:
        """Return a number for each picture, shape (N,), computed once for pictures that are in several sets.

        Args:
            key: what the number depends on besides the picture.
            compute: takes the picture's index.
        """
        rows = self.rows.setdefault(key, {})
        for index, picture in enumerate(pictures):
            if picture.sha256 not in rows:
                rows[picture.sha256] = np.array([compute(index)], np.float64)
        return np.array([rows[picture.sha256][0] for picture in pictures], float)

    def texts(self, weights: str, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts by a CLIP, shape (N, D). Raises as `of`."""
        known = self.rows.setdefault(f"{self._key(weights)} texts", {})
        if lacking := sorted({text for text in texts if text not in known}):
            known |= dict(zip(lacking, self._loaded(weights).reads(lacking), strict=True))
        return np.stack([known[text] for text in texts])

    def classes(self) -> np.ndarray:
        """Return the matrix from Inception's features to its classes, shape (1008, 2048). Raises as `of`."""
        return metrics_nets.read_classes(self._located("inception_classes"))

    def forget_net(self) -> None:
        """Free the memory of the net that was used last, and of features that are computed anew when asked for."""
        self._net = ("", None)
        for rows in self.rows.values():
            for sha256 in [sha256 for sha256, row in rows.items() if row is not None and row.size > KEPT_FLOATS]:
                del rows[sha256]
        runtime.free_memory()

    def to_bytes(self) -> bytes:
        """Return the features as an .npz file for a later `Features`."""
        arrays = {}
        for number, (key, rows) in enumerate(sorted(self.rows.items())):
            kept = {sha256: row for sha256, row in rows.items() if row is None or row.size <= KEPT_FLOATS}
            whole = {sha256: row for sha256, row in kept.items() if row is not None}
            arrays[f"{number}.key"] = np.array(key)
            arrays[f"{number}.without"] = np.array([sha256 for sha256 in kept if sha256 not in whole], "U")
            arrays[f"{number}.names"] = np.array(list(whole), "U")
            arrays[f"{number}.rows"] = np.stack(list(whole.values())) if whole else np.zeros((0, 1), np.float32)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def _read(self, cache: Path) -> None:
        try:
            with np.load(cache, allow_pickle=False) as stored:
                for number in range(sum(name.endswith(".key") for name in stored.files)):
                    names, without = (stored[f"{number}.{part}"].tolist() for part in ("names", "without"))
                    rows = dict(zip(names, stored[f"{number}.rows"], strict=True)) | dict.fromkeys(without)
                    self.rows[str(stored[f"{number}.key"])] = rows
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            self.rows = {}

    def _key(self, feature: str) -> str:
        """Return a feature's name with the version of its model, so that another model's features are not mixed in."""
        if feature in OF_FACES:
            return feature
        self._located(OF_NETS[feature])
        return f"{feature} {self.weights[OF_NETS[feature]]}"

    def _located(self, name: str) -> Path:
        """Return where weights are; after a failure fail again at once, since a download tries for half a minute."""
        if name in self._failed:
            raise self._failed[name]
        try:
            place, self.weights[name] = metrics_nets.locate(name, self.fetch)
        except HeadshotError as error:
            self._failed[name] = error
            raise
        return place

    def _loaded(self, weights: str) -> metrics_nets.Loaded:
        if self._net[0] != weights:
            self._net = ("", None)  # two nets at once may be too large
            place = self._located(weights)
            try:
                self._net = (weights, metrics_nets.load(weights, place))
            except BadWeights as error:
                self._failed[weights] = error
                raise
        return self._net[1]

    def _face_of(self, picture: Picture, image: np.ndarray) -> recognition.Face | None:
        """Return the only face of a picture; None if it shows none, or several."""
        if picture.face is not None:
            return picture.face
        rows = self.rows.setdefault("faces", {})
        if picture.sha256 not in rows:
            found = recognition.detect_faces(image)
            one = len(found) == 1
            rows[picture.sha256] = np.concatenate([found[0].box, found[0].points.ravel()]) if one else None
        row = rows[picture.sha256]
        return None if row is None else recognition.Face(row[:4], 1.0, row[4:].reshape(5, 2))

    def _of_faces(self, feature: str, pictures: list[Picture]) -> list[np.ndarray | None]:
        rows = []
        for picture in runtime.progress(pictures, f"metrics, {feature}"):
            image = picture.load()
            face = self._face_of(picture, image)
            rows.append(None if face is None else OF_FACES[feature](image, face))
        return rows

    def _of_net(self, feature: str, pictures: list[Picture]) -> list[np.ndarray | None]:
        rows: list[np.ndarray | None] = []
        sees = self._loaded(OF_NETS[feature]).sees
        starts = range(0, len(pictures), metrics_nets.BATCH)
        for start in runtime.progress(starts, f"metrics, {feature}"):
            batch = pictures[start : start + metrics_nets.BATCH]
            images: list[np.ndarray | None] = [picture.load() for picture in batch]
            if feature == "dinov2_face":
                faces = [self._face_of(picture, image) for picture, image in zip(batch, images, strict=True)]
                images = [
                    None if face is None else recognition.align_face(image, face.points, FACE_PX, copies.TEMPLATE)
                    for image, face in zip(images, faces, strict=True)
                ]
            there = [image for image in images if image is not None]
            seen = iter(sees(there) if there else ())
            rows += [None if image is None else next(seen) for image in images]
        return rows
