"""Identity: who the person is, how alike a headshot must be, and whether one is.

The pass mark comes from the person's own photos: how alike each of them is to the mean of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headshotkit import faces, runtime
from headshotkit.config import RenderConfig
from headshotkit.photos import read_photo
from headshotkit.records import Record, Verdict
from headshotkit.run import Run


@dataclass(frozen=True)
class PassMark(Record):
    """The least identity of an accepted headshot, and where it comes from."""

    mark: float
    own_median: float
    own_quantile: float
    reason: str


@dataclass(frozen=True)
class Judgement:
    """What identity says of a picture. `identity` is None when it does not show exactly one face."""

    identity: float | None
    accepted: bool
    reasons: tuple[str, ...]


def known_faces(run: Run, recogniser: str) -> np.ndarray:
    """Embeddings of the main face of every kept photo, float32, shape (N, D).

    Raises:
        StageMissing: the photos have not been judged.
    """
    judged = run.manifest("photos")
    model = faces.load_recogniser(recogniser)
    kept = [Verdict.from_dict(v) for v in judged["verdicts"] if v["kept"]]
    embeddings = []
    for verdict in runtime.progress(kept, f"own photos, {recogniser}"):
        box, points = (np.array(verdict.measures[name]) for name in ("face_box_px", "face_points_px"))
        image = read_photo(run.path("photos") / "kept" / verdict.photo)
        embeddings.append(model.embed(image, faces.Face(box, 1.0, points)))  # the very face that was judged
    return np.array(embeddings, np.float32)


def calibrate(known: np.ndarray, config: RenderConfig) -> PassMark:
    """The pass mark for a person: a low quantile of the own photos' leave-one-out identity, within floor and ceiling.

    Args:
        known: ArcFace embeddings of the own photos, shape (N, 512), L2 norm 1.
    Raises:
        NoKnownFaces: N is 0.

    >>> calibrate(np.eye(512, dtype=np.float32)[[0, 0, 0]], RenderConfig()).mark
    0.55
    """
    own = faces.leave_one_out(known, faces.load_recogniser("arcface"))
    quantile = float(np.quantile(own, config.pass_quantile))
    mark = min(max(quantile, config.pass_floor), config.pass_ceiling)
    source = f"the {config.pass_quantile:.0%} quantile of your own photos' identity is {quantile:.2f}"
    if mark > quantile:
        source += f", raised to the floor {mark:.2f}, where strangers begin to pass"
    elif mark < quantile:
        source += f", lowered to the ceiling {mark:.2f}, beyond which near-equal photos ask too much"
    return PassMark(round(mark, 4), round(float(np.median(own)), 4), round(quantile, 4), source)


def judge_headshot(image: np.ndarray, centre: np.ndarray, mark: float) -> Judgement:
    """Whether a picture is surely the person.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        centre: mean ArcFace embedding of the own photos, shape (512,).
        mark: least identity that passes, in [-1, 1].
    """
    found = faces.detect_faces(image)
    if len(found) != 1:
        return Judgement(None, False, ("no_face" if not found else "many_faces",))
    identity = identity_of(image, found[0], centre, "arcface")
    accepted = identity >= mark
    return Judgement(identity, accepted, () if accepted else ("other_person",))


def identity_of(image: np.ndarray, face: faces.Face, centre: np.ndarray, recogniser: str) -> float:
    """Similarity of one face to the person's centre by a recogniser, in [-1, 1], higher is more alike."""
    model = faces.load_recogniser(recogniser)
    return round(float(model.similarity(model.embed(image, face), centre)[0]), 4)
