"""Measure what restoring may harm: who it is, the eyes' colour, the skin's tone and texture, a soundly drawn face.

A restorer invents detail. So a restored face is compared with the headshot as it was drawn and with the person's own
photos, by both recognisers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from headshotkit.config import GenerateConfig, RestoreConfig
from headshotkit.core.errors import MissingModel, MissingPackage
from headshotkit.faces import copies, measures, recognition, skin
from headshotkit.faces.colours import eye_colour, iris_colour
from headshotkit.scoring.soundness import Soundness

LEAST_SPREAD = 4.0
"""Difference of the eyes' colour in CIELAB that always counts as none: a person's photos may be too alike."""
MOST_TONE = 5.0
"""Largest change of the skin's tone in CIELAB. The photos' spread is no measure of it: it comes from their light."""
TEXTURE_KEPT = 0.8
"""Share of the skin's texture that must be left, of the headshot's own or of the photos' if that is less."""


@dataclass(frozen=True)
class Known:
    """What a restored face is compared with.

    centres: recogniser -> mean embedding of the own photos · embeddings: ArcFace's of each photo, float32, (N, 512) ·
    face_crops: of each photo, by `copies.face_crop` · photos_eyes: the eyes' median colour in CIELAB, None if no photo
    shows it · eyes_spread: median distance of a photo's from it · texture: band -> 10th percentile of the photos, empty
    if all are too small · threshold: the run's identity threshold · gate: limits of the run's headshots.
    """

    centres: dict[str, np.ndarray]
    embeddings: np.ndarray
    face_crops: list[np.ndarray]
    photos_eyes: np.ndarray | None
    eyes_spread: float
    texture: dict[str, float]
    threshold: float
    gate: GenerateConfig


@dataclass(frozen=True)
class Look:
    """A face's measures.

    identity: by recogniser, in [-1, 1] · eyes, tone: CIELAB · texture: as `skin.texture` · copy: `copy_likeness`.
    """

    identity: dict[str, float]
    eyes: np.ndarray | None
    tone: np.ndarray
    texture: dict[str, float]
    sharpness: float
    copy: float
    sound: Soundness


def known_looks(photos: Iterable[tuple[np.ndarray, recognition.Face]], threshold: float, gate: GenerateConfig) -> Known:
    """Return what a person's own photos show, and the limits of the run's headshots.

    Args:
        photos: RGB pictures, each with the person's face; at least one.
        threshold: the run's identity threshold, in [-1, 1].
    """
    models = usable_recognisers()
    embeddings, crops, eyes, textures = {name: [] for name in models}, [], [], []
    for image, face in photos:
        for name, model in models.items():
            embeddings[name].append(model.embed(image, face))
        crops.append(copies.face_crop(image, face))
        if (colour := eye_colour(image, face)) is not None:
            eyes.append(colour)
        if skin.shows_texture(face):
            textures.append(skin.texture(skin.aligned_skin(image, face)))
    middle = np.median(eyes, 0) if eyes else None
    spread = float(np.median(np.linalg.norm(np.array(eyes) - middle, axis=1))) if eyes else 0.0
    fine = {band: float(np.quantile([t[band] for t in textures], 0.1)) for band in skin.BANDS_PX if textures}
    arrays = {name: np.array(rows, np.float32) for name, rows in embeddings.items()}
    centres = {name: rows.mean(0) for name, rows in arrays.items()}
    return Known(centres, arrays["arcface"], crops, middle, max(spread, LEAST_SPREAD), fine, threshold, gate)


def usable_recognisers() -> dict:
    """Return the recognisers of this machine by name; the second one is optional."""
    models = {"arcface": recognition.load_recogniser("arcface")}
    with contextlib.suppress(MissingPackage, MissingModel):
        models["dlib"] = recognition.load_recogniser("dlib")
    return models


def look_at(image: np.ndarray, face: recognition.Face, known: Known) -> Look:
    """Measure a face that was found in a picture.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    marks, aligned = recognition.landmarks_106(image, face), skin.aligned_skin(image, face)
    identity = {}
    for name, centre in known.centres.items():
        model = recognition.load_recogniser(name)
        identity[name] = float(model.similarity(model.embed(image, face), centre)[0])
    return Look(
        identity, iris_colour(image, marks), skin.tone(aligned), skin.texture(aligned), sharpness_of(image, face),
        copies.copy_likeness(copies.face_crop(image, face), known.face_crops),
        Soundness.of(image, face, marks, known.gate),
    )  # fmt: skip


def sharpness_of(image: np.ndarray, face: recognition.Face) -> float:
    """Return the sharpness of a face in a picture, as `measures.sharpness`."""
    return measures.sharpness(recognition.align_face(image, face.points, measures.FACE_PX))


def harms(before: Look, after: Look, known: Known, config: RestoreConfig) -> tuple[str, ...]:
    """Return what restoring harmed, as codes; none if the restored face may be kept.

    The codes: identity, second_recogniser (identity fell), threshold (it fell below the identity threshold), eyes,
    skin (another colour), texture (smoothed), copy (it became a copy of a photo), distorted (eyes closed, or two
    landmark models see different faces), artefact (one that the gate would refuse, and that is worse than before).
    """
    lost = {name: before.identity[name] - after.identity[name] for name in before.identity}
    gained = after.sound.faults(known.gate, before.sound)
    harmed = {
        "identity": lost["arcface"] > config.max_identity_loss,
        "second_recogniser": lost.get("dlib", 0.0) > config.max_identity_loss,
        "threshold": after.identity["arcface"] < known.threshold <= before.identity["arcface"],
        "eyes": _eyes_changed(before, after, known),
        "skin": float(np.linalg.norm(after.tone - before.tone)) > MOST_TONE,
        "texture": any(
            energy < TEXTURE_KEPT * min(before.texture[band], known.texture.get(band, np.inf))
            for band, energy in after.texture.items()
        ),
        "copy": after.copy > max(known.gate.max_copy, before.copy),
        "distorted": gained["unclear_face"] or gained["eyes_closed"],
        "artefact": gained["artefact"],
    }
    return tuple(code for code, is_harmed in harmed.items() if is_harmed)


def _eyes_changed(before: Look, after: Look, known: Known) -> bool:
    """Return whether the eyes got another colour, and not one nearer to the photos'."""
    if before.eyes is None or after.eyes is None:
        return before.eyes is not None  # they were open and can't be measured now
    moved = float(np.linalg.norm(after.eyes - before.eyes))
    if known.photos_eyes is None or moved <= known.eyes_spread:
        return moved > known.eyes_spread
    nearer = [float(np.linalg.norm(look.eyes - known.photos_eyes)) for look in (after, before)]
    return nearer[0] > nearer[1]
