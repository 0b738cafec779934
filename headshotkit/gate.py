"""The gate: measures each photo, returns a verdict with reasons. Each measure is a pure function.

A photo is refused with the number that was measured and the limit it broke. The person is who most photos show.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit import faces, measures, runtime
from headshotkit.config import GateConfig
from headshotkit.photos import Unreadable, find_photos, read_photo
from headshotkit.records import Photo, Reason, Verdict
from headshotkit.run import Run, sha256_of, write_atomic

THUMB_PX = 240


def judge_photos(photos: Path, run: Run, config: GateConfig | None = None) -> list[Verdict]:
    """Judges every photo of a folder and keeps the good ones.

    Writes `photos/`: kept/ (the files as they are), thumbs/, manifest.json with verdicts and photos.

    Args:
        photos: the folder with the person's photos; it is only read.
    Raises:
        NoPhotos: the folder is missing or holds no photo.
        RunFolderError, DiskFull: the run folder can't be written.
    """
    config = config or GateConfig()
    files = find_photos(photos)
    stage = run.begin("photos", config, {f.name: sha256_of(f) for f in files})
    if stage.done:
        return [Verdict.from_dict(v) for v in stage.manifest["verdicts"]]
    looks = [_Look(f, config) for f in runtime.progress(files, "judging photos")]
    _refuse_other_people(looks, config)
    _refuse_duplicates(looks, config)
    verdicts = [look.verdict() for look in looks]
    for number, look in enumerate(looks):
        _store(look, number, stage.folder)
    stage.finish(
        _outcome(verdicts),
        folder=str(Path(photos).resolve()),
        photos=[look.photo.to_dict() for look in looks],
        verdicts=[v.to_dict() for v in verdicts],
        face_models=faces.model_folder()[1],
    )
    return verdicts


def _outcome(verdicts: list[Verdict]) -> str:
    """How many were kept, and how many refused for which reason, in words."""
    refused = Counter(v.reasons[0].code for v in verdicts if v.reasons)
    counts = ", ".join(f"{n} {code}" for code, n in refused.most_common())
    return f"kept {sum(v.kept for v in verdicts)} of {len(verdicts)} photos" + (
        f"; refused: {counts}" if counts else ""
    )


def _store(look: _Look, number: int, folder: Path) -> None:
    """Copies a kept photo and a thumbnail of any readable one into the stage's folder."""
    if look.thumb is not None:
        write_atomic(folder / "thumbs" / f"{number:03d}.jpg", look.thumb)
    if not look.reasons:
        write_atomic(folder / "kept" / look.path.name, look.path.read_bytes())


class _Look:
    """One photo while it is judged: what was measured, and the reasons against it so far."""

    def __init__(self, path: Path, config: GateConfig) -> None:
        self.path = path
        self.reasons: list[Reason] = []
        self.measures: dict = {}
        self.embedding: np.ndarray | None = None
        self.hash: np.ndarray | None = None
        self.thumb: bytes | None = None
        try:
            image = read_photo(path)
        except Unreadable as error:
            self.photo = Photo(Path(path.name), 0, 0, sha256_of(path))
            self.refuse("unreadable", None, None, error.happened)
            return
        self.photo = Photo(Path(path.name), image.shape[1], image.shape[0], sha256_of(path))
        self.thumb, self.hash = thumbnail(image), measures.difference_hash(image)
        self._measure(image, config)

    def refuse(self, code: str, value, limit, text: str) -> None:
        self.reasons.append(Reason(code, value, limit, text))

    def verdict(self) -> Verdict:
        return Verdict(self.photo.path.name, not self.reasons, tuple(self.reasons), self.measures)

    def _measure(self, image: np.ndarray, config: GateConfig) -> None:
        """Everything that one photo alone can tell."""
        found = faces.detect_faces(image)
        self.measures["faces"] = len(found)
        if not found:
            self.refuse("no_face", 0, 1, "no face was found in it")
            return
        face = found[0]
        aligned = faces.align_face(image, face.points, measures.FACE_PX)
        openness = measures.eye_openness(faces.landmarks_106(image, face))
        self.measures |= {
            "face_box_px": [round(float(x), 1) for x in face.box],
            "face_points_px": face.points.round(1).tolist(),
            "face_px": round(face.width_px),
            "other_face": round(found[1].height_px / face.height_px, 3) if len(found) > 1 else 0.0,
            "face_inside": round(measures.face_inside(face.points, image.shape[1], image.shape[0]), 3),
            "sharpness": round(measures.sharpness(aligned), 2),
            "brightness": round(measures.brightness(aligned), 1),
            "clipped": round(measures.clipped(aligned), 3),
            "eye_contrast": round(measures.eye_contrast(aligned), 3),
            "eye_openness": round(openness, 3),
        }
        self._compare(config)
        if not self.reasons:
            self.embedding = faces.load_recogniser("arcface").embed(image, face)

    def _compare(self, config: GateConfig) -> None:
        """The measures against their limits, in the order in which a person would want to know."""
        m = self.measures
        rules = [
            ("many_faces", m["other_face"], config.max_other_face, m["other_face"] > config.max_other_face,
             "a second face is {0:.0%} as tall as the first, at most {1:.0%} is a passer-by"),
            ("cropped_face", m["face_inside"], config.min_face_inside, m["face_inside"] < config.min_face_inside,
             "only {0:.0%} of the face is in the picture, at least {1:.0%} is needed"),
            ("small_face", m["face_px"], config.min_face_px, m["face_px"] < config.min_face_px,
             "the face is {0:.0f} px wide, at least {1:.0f} is needed"),
            ("dark", m["brightness"], config.min_brightness, m["brightness"] < config.min_brightness,
             "the face's brightness is {0:.0f} of 255, at least {1:.0f} is needed"),
            ("bright", m["clipped"], config.max_clipped, m["clipped"] > config.max_clipped,
             "{0:.0%} of the face is pure white, at most {1:.0%} is allowed"),
            ("blurred", m["sharpness"], config.min_sharpness, m["sharpness"] < config.min_sharpness,
             "the face's sharpness is {0:.1f}, at least {1:.1f} is needed"),
            ("occluded", m["eye_contrast"], config.min_eye_contrast, m["eye_contrast"] < config.min_eye_contrast,
             "the eyes are covered: as bright as {0:.0%} of the cheeks, at least {1:.0%} is needed"),
        ]  # fmt: skip
        for code, value, limit, broken, text in rules:
            if broken:
                self.refuse(code, value, limit, text.format(value, limit))
        if not self.reasons and m["eye_openness"] < config.min_eye_openness:
            value, limit = m["eye_openness"], config.min_eye_openness
            self.refuse("eyes_closed", value, limit, f"the eyes are {value:.2f} open, at least {limit:.2f} is needed")


def thumbnail(image: np.ndarray) -> bytes:
    """A small JPEG of a photo, THUMB_PX on its longer side."""
    small = Image.fromarray(image)
    small.thumbnail((THUMB_PX, THUMB_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- the set ------------------------------------------------------------------------------------------------------


def main_person(embeddings: np.ndarray, limit: float) -> np.ndarray:
    """Which faces are of the person that most of them show.

    Args:
        embeddings: ArcFace, shape (N, 512), L2 norm 1.
        limit: least cosine to the mean of the person's faces.
    Returns: bool, shape (N,).
    """
    alike = embeddings @ embeddings.T >= limit
    members = alike[alike.sum(1).argmax()]
    for _ in range(5):
        centre = embeddings[members].mean(0)
        again = embeddings @ (centre / np.linalg.norm(centre)) >= limit
        if (again == members).all() or not again.any():
            break
        members = again
    return members


def _refuse_other_people(looks: list[_Look], config: GateConfig) -> None:
    """Refuses the photos of anybody but the main person, and notes each photo's identity."""
    usable = [look for look in looks if look.embedding is not None]
    if not usable:
        return
    embeddings = np.stack([look.embedding for look in usable])
    members = main_person(embeddings, config.min_same_person)
    recogniser = faces.load_recogniser("arcface")
    for number, look in enumerate(usable):
        others = members.copy()
        others[number] = False
        if not others.any():
            continue
        identity = float(recogniser.similarity(look.embedding, embeddings[others].mean(0))[0])
        look.measures["identity"] = round(identity, 3)
        if not members[number]:
            limit = config.min_same_person
            text = f"somebody else: identity to the other photos is {identity:.2f}, at least {limit:.2f} is needed"
            look.refuse("other_person", round(identity, 3), limit, text)


def _refuse_duplicates(looks: list[_Look], config: GateConfig) -> None:
    """Of pictures that are nearly the same, keeps the one with most pixels, then with the largest file."""
    usable = [look for look in looks if look.embedding is not None and not look.reasons]
    usable.sort(key=lambda k: (-k.photo.width_px * k.photo.height_px, -k.path.stat().st_size, k.path.name))
    unique: list[_Look] = []
    for look in usable:
        twin = next((other for other in unique if _same_moment(look, other, config)), None)
        if twin is None:
            unique.append(look)
        else:
            distance = int((look.hash != twin.hash).sum())
            text = f"the same picture as {twin.path.name}: {distance} of 64 hash bits differ"
            text += f", up to {config.max_hash_distance} are a duplicate"
            look.refuse("duplicate", distance, config.max_hash_distance, text)


def _same_moment(a: _Look, b: _Look, config: GateConfig) -> bool:
    near = int((a.hash != b.hash).sum()) <= config.max_hash_distance
    return near and float(a.embedding @ b.embedding) >= config.min_duplicate_identity
