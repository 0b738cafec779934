"""Judge identity: compare headshots with the person's own photos by one recogniser.

The identity threshold comes from the own photos: the similarity of each to the mean of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from headshotkit.config import GenerateConfig
from headshotkit.core.records import IdentityThreshold
from headshotkit.core.results import DatasetResult, PhotosResult
from headshotkit.core.run import Run
from headshotkit.faces import copies, measures, recognition, traits
from headshotkit.photos import assess
from headshotkit.photos.kept import kept_faces
from headshotkit.scoring.adherence import prompt_adherence, shown_by
from headshotkit.scoring.soundness import Soundness


@dataclass(frozen=True)
class Person:
    """The person whom the headshots must show.

    centre: mean ArcFace embedding of the own photos, float32, shape (512,) · face_crops: those of the photos,
    by `copies.face_crop` · held_out: mean embedding of the photos that were not trained on; None without any ·
    held_out_median: median similarity of the photos that were trained on to that mean.
    """

    centre: np.ndarray
    threshold: IdentityThreshold
    face_crops: tuple[np.ndarray, ...]
    held_out: np.ndarray | None = None
    held_out_median: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """The gate's verdict on a picture; the fields are `Headshot`'s. Numbers are None without exactly one face."""

    identity: float | None
    accepted: bool
    reasons: tuple[str, ...]
    likeness: float | None = None
    quality: float | None = None
    copy: float | None = None
    adherence: float | None = None
    sharpness: float | None = None
    face_points_px: tuple[tuple[float, ...], ...] = ()
    held_out: float | None = None
    artefacts: dict[str, float] = field(default_factory=dict)


def held_out_of(run: Run) -> tuple[str, ...]:
    """Return the names of the kept photos that are not trained on; none in a run without a dataset or an older one."""
    return DatasetResult.load(run).held_out if run.has("dataset") else ()


def unseen_centre(run: Run, known: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Return the mean embedding of the photos held out of training, and the other photos' median similarity to it.

    Without photos held out, None and 0.

    Args:
        known: ArcFace embeddings of all kept photos, shape (N, 512), in the order of the check.
    """
    held = np.isin([verdict.photo for verdict in PhotosResult.load(run).kept], held_out_of(run))
    if not held.any():
        return None, 0.0
    centre = known[held].mean(0)
    alike = recognition.load_recogniser("arcface").similarity(known[~held], centre)
    return centre, round(float(np.median(alike)), 4)


def known_faces(run: Run, recogniser: str) -> np.ndarray:
    """Return the embeddings of the main face of every kept photo, float32, shape (N, D).

    Raises:
        StageMissing: the photos have not been judged.
    """
    model = recognition.load_recogniser(recogniser)
    return np.array([model.embed(image, face) for image, face in kept_faces(run, recogniser)], np.float32)


def known_person(run: Run, config: GenerateConfig) -> Person:
    """Return what the gate needs to know about a run's person.

    Raises:
        StageMissing: the photos have not been judged.
        NoKnownFaces: none was kept.
    """
    model, known, face_crops = recognition.load_recogniser("arcface"), [], []
    for image, face in kept_faces(run, model.name):
        known.append(model.embed(image, face))
        face_crops.append(copies.face_crop(image, face))
    embeddings = np.array(known, np.float32)
    person = Person(embeddings.mean(0), calibrate(embeddings, config), tuple(face_crops))
    centre, median = unseen_centre(run, embeddings)
    return replace(person, held_out=centre, held_out_median=median)


def calibrate(known: np.ndarray, config: GenerateConfig) -> IdentityThreshold:
    """Return the identity threshold: a low quantile of leave-one-out identity, within floor and ceiling.

    Args:
        known: ArcFace embeddings of the own photos, shape (N, 512), L2 norm 1.
    Raises:
        NoKnownFaces: N is 0.

    >>> calibrate(np.eye(512, dtype=np.float32)[[0, 0, 0]], GenerateConfig()).value
    0.55
    """
    own = recognition.leave_one_out(known, recognition.load_recogniser("arcface"))
    quantile = float(np.quantile(own, config.pass_quantile))
    threshold = min(max(quantile, config.pass_floor), config.pass_ceiling)
    percentile = f"{config.pass_quantile * 100:g}th percentile"
    source = f"the {percentile} of each photo's similarity to the other photos is {quantile:.2f}"
    if threshold > quantile:
        source += f", raised to {threshold:.2f}, because strangers can be below that"
    elif threshold < quantile:
        source += f", capped at {threshold:.2f}, so that similar photos do not make it too strict"
    return IdentityThreshold(round(threshold, 4), round(float(np.median(own)), 4), round(quantile, 4), source)


def judge_headshot(
    image: np.ndarray, person: Person, config: GenerateConfig, asked: dict[str, str] | None = None
) -> Judgement:
    """Judge whether a picture is a headshot of the person, and no copy of a photo.

    The reasons against it: no_face, many_faces, small_face, unclear_face (two landmark models see different faces),
    eyes_closed, artefact, soft_face, other_person, copy_of_photo.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        asked: what its prompt asks for, by `adherence.asked_of`; adherence decides nothing here.
    """
    found = recognition.detect_faces(image)
    if len(found) != 1:
        return Judgement(None, False, ("no_face" if not found else "many_faces",))
    face, marks = found[0], recognition.landmarks_106(image, found[0])
    aligned = recognition.align_face(image, face.points, measures.FACE_PX)
    known = {name: getattr(measures, name)(aligned) for name in ("sharpness", "steadiness", "contrast", "visible")} | {
        "brightness": traits.brightness(aligned),
        "clipped": traits.clipped(aligned),
        "face_px": face.width_px,
    }
    identity = identity_of(image, face, person.centre, "arcface")
    held_out = None if person.held_out is None else identity_of(image, face, person.held_out, "arcface")
    copy = copies.copy_likeness(copies.face_crop(image, face), person.face_crops)
    sound = Soundness.of(image, face, marks, config)
    broken = {
        "small_face": traits.face_height(face.box, image) < config.min_face,
        **sound.faults(config),
        "soft_face": known["sharpness"] < config.min_sharpness,
        "other_person": identity < person.threshold.value,
        "copy_of_photo": copy > config.max_copy,
    }
    reasons = tuple(code for code, is_broken in broken.items() if is_broken)
    likeness = round(max(identity, 0.0) / max(person.threshold.own_median, 0.01), 4)
    adherence = prompt_adherence(asked or {}, shown_by(image, face.points, marks))
    points = tuple(tuple(map(float, point)) for point in face.points)
    return Judgement(
        identity, not reasons, reasons, likeness, round(assess.quality(known), 4), copy, adherence,
        round(known["sharpness"], 2), points, held_out, sound.artefacts,
    )  # fmt: skip


def identity_of(image: np.ndarray, face: recognition.Face, centre: np.ndarray, recogniser: str) -> float:
    """Return a face's similarity to the person's centre by a recogniser, in [-1, 1], higher is more alike."""
    model = recognition.load_recogniser(recogniser)
    return round(float(model.similarity(model.embed(image, face), centre)[0]), 4)
