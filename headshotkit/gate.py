"""The gate: judges each photo, then the set, and returns a verdict with reasons.

A photo is refused with the number that was measured and the limit it broke. The person is who most photos show. A
person may overrule a verdict; that is recorded, and what later stages made from the photos is out of date then.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit import assess, coach, faces, runtime
from headshotkit.config import GateConfig
from headshotkit.errors import CannotKeep, StageMissing
from headshotkit.photos import Unreadable, digest_of, find_photos, open_photo, plain_name
from headshotkit.records import Photo, Reason, Verdict
from headshotkit.run import Run, fingerprint, sha256_of, write_atomic, write_json

THUMB_PX = 240
OVERRULED = "overruled.json"
"""What a person decided otherwise, in the run folder: sha256 of a photo -> kept, name and time."""
OTHERS = 1
"""`measures["person"]` of the first of the other people; 0 is the main person."""


def judge_photos(photos: Path, run: Run, config: GateConfig | None = None) -> list[Verdict]:
    """Judges every photo of a folder and keeps the best of the good ones.

    Writes `photos/`: kept/ (the files as they are), thumbs/, manifest.json with verdicts, photos, and what the set
    shows and lacks.

    Args:
        photos: the folder with the person's photos; it is only read.
    Raises:
        NoPhotos: the folder is missing or holds no photo.
        RunFolderError, DiskFull: the run folder can't be written.
    """
    config = config or GateConfig()
    files = {plain_name(f): f for f in find_photos(photos)}
    digests = {name: digest_of(f) for name, f in files.items()}
    stage = run.begin("photos", config, digests | _overruled_input(run))
    if stage.done:
        return [Verdict.from_dict(v) for v in stage.manifest["verdicts"]]
    looks = []
    for number, (name, file) in enumerate(runtime.progress(list(files.items()), "judging photos")):
        look = _Look(name, file, digests[name], config)
        looks.append(look)
        if look.thumb is not None:
            write_atomic(stage.folder / "thumbs" / f"{number:03d}.jpg", look.thumb)
            look.thumb = None
    _judge_set(looks, config)
    _apply_overruling(looks, _read_overruled(run))
    for look in looks:
        if look.verdict.kept:
            write_atomic(stage.folder / "kept" / look.name, look.path.read_bytes())
    verdicts = [look.verdict for look in looks]
    stage.finish(
        _outcome(verdicts),
        folder=str(Path(photos).resolve()),
        photos=[look.photo.to_dict() for look in looks],
        face_models=faces.model_folder()[1],
        **_advice(verdicts, config),
    )
    return verdicts


def _outcome(verdicts: list[Verdict]) -> str:
    """How many were kept, and how many refused for which reason, in words."""
    refused = Counter(v.reasons[0].code for v in verdicts if not v.kept and v.reasons)
    counts = ", ".join(f"{n} {code}" for code, n in refused.most_common())
    overruled = sum(v.overruled for v in verdicts)
    words = f"kept {sum(v.kept for v in verdicts)} of {len(verdicts)} photos"
    return words + (f"; refused: {counts}" if counts else "") + (f"; {overruled} by your own word" if overruled else "")


def _advice(verdicts: list[Verdict], config: GateConfig) -> dict:
    """The verdicts, what the kept photos show, what to take next, and why these were chosen, for the manifest."""
    shown = coach.coverage(verdicts)
    asked = coach.requests(verdicts, shown, config)
    return {
        "verdicts": [v.to_dict() for v in verdicts],
        "coverage": shown.to_dict(),
        "requests": [request.to_dict() for request in asked],
        "advice": coach.summary(asked, shown),
        "chosen": coach.choose_photos(verdicts, config.max_photos, config.min_photos).to_dict(),
    }


class _Look:
    """One photo while it is judged: its verdict so far, and what the set is judged by."""

    def __init__(self, name: str, path: Path, digest: str, config: GateConfig) -> None:
        self.name, self.path, self.sight, self.thumb = name, path, assess.Sight(), None
        self.photo = Photo(Path(name), 0, 0, digest)
        try:
            opened = open_photo(path, assess.LEAST_PX)
        except Unreadable as error:
            self.verdict = Verdict(name, False, (Reason("unreadable", None, None, error.happened),))
            return
        self.photo = replace(self.photo, width_px=opened.width_px, height_px=opened.height_px)
        self.thumb, self.sight = thumbnail(opened.pixels), assess.look_at(opened)
        reasons = tuple(assess.reasons_against(self.sight.measures, config))
        self.verdict = Verdict(name, not reasons, reasons, self.sight.measures)

    def refuse(self, code: str, value, limit, text: str) -> None:
        reasons = (*self.verdict.reasons, Reason(code, value, limit, text))
        self.verdict = replace(self.verdict, kept=False, reasons=reasons)


def thumbnail(image: np.ndarray) -> bytes:
    """A small JPEG of a photo, THUMB_PX on its longer side."""
    small = Image.fromarray(image)
    small.thumbnail((THUMB_PX, THUMB_PX), reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- the set ------------------------------------------------------------------------------------------------------


def _judge_set(looks: list[_Look], config: GateConfig) -> None:
    """What only the set can tell: other people, duplicates, moments, and which photos are more than are needed."""
    _refuse_other_people([look for look in looks if look.verdict.kept], config)
    _refuse_duplicates([look for look in looks if look.verdict.kept], config)
    kept = [look for look in looks if look.verdict.kept]
    if not kept:
        return
    embeddings = np.stack([look.sight.embedding for look in kept])
    for look, moment in zip(kept, coach.moments([k.sight.measures for k in kept], embeddings), strict=True):
        look.sight.measures["moment"] = moment
    if len(kept) > config.max_photos:
        choice = coach.choose_photos([k.verdict for k in kept], config.max_photos, config.min_photos)
        for look in kept:
            if look.name not in choice.names:
                text = f"good, but {config.max_photos} better or more varied photos of {len(kept)} were chosen"
                look.refuse("surplus", len(kept), config.max_photos, text)


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


def people(embeddings: np.ndarray, limit: float) -> np.ndarray:
    """Who is in which photo: 0 for the person that most photos show, 1 for the next, and so on; int, shape (N,).

    Args:
        embeddings, limit: as in `main_person`.
    """
    numbers, left = np.full(len(embeddings), -1), np.arange(len(embeddings))
    for number in range(len(embeddings)):
        members = main_person(embeddings[left], limit)
        if not members.any():
            members[0] = True
        numbers[left[members]] = number
        left = left[~members]
        if not len(left):
            break
    return numbers


def _refuse_other_people(looks: list[_Look], config: GateConfig) -> None:
    """Refuses the photos of anybody but the main person, and notes each photo's identity."""
    if not looks:
        return
    embeddings = np.stack([look.sight.embedding for look in looks])
    who, limit = people(embeddings, config.min_same_person), config.min_same_person
    recogniser, total = faces.load_recogniser("arcface"), embeddings[who == 0].sum(0)
    for look, person in zip(looks, who.tolist(), strict=True):
        look.sight.measures["person"] = person
        others = total - look.sight.embedding if person == 0 else total
        if person == 0 and (who == 0).sum() == 1:
            continue
        identity = round(float(recogniser.similarity(look.sight.embedding, others)[0]), 3)
        look.sight.measures["identity"] = identity
        if person >= OTHERS:
            text = f"somebody else: identity to the other photos is {identity:.2f}, at least {limit:.2f} is needed"
            look.refuse("other_person", identity, limit, text)


def _refuse_duplicates(looks: list[_Look], config: GateConfig) -> None:
    """Of pictures that are nearly the same, keeps the one with most pixels, then with the largest file."""
    looks = sorted(looks, key=lambda k: (-k.photo.width_px * k.photo.height_px, -k.path.stat().st_size, k.name))
    if not looks:
        return
    hashes = np.stack([look.sight.hash for look in looks])
    embeddings = np.stack([look.sight.embedding for look in looks])
    unique: list[int] = []
    for number, look in enumerate(looks):
        apart = (hashes[unique] != hashes[number]).sum(1)
        alike = embeddings[unique] @ embeddings[number]
        same = np.flatnonzero((apart <= config.max_hash_distance) & (alike >= config.min_duplicate_identity))
        if not len(same):
            unique.append(number)
            continue
        text = f"the same picture as {looks[unique[same[0]]].name}: {apart[same[0]]} of 64 hash bits differ"
        text += f", up to {config.max_hash_distance} are a duplicate"
        look.refuse("duplicate", int(apart[same[0]]), config.max_hash_distance, text)


# --- overruling ---------------------------------------------------------------------------------------------------


def _read_overruled(run: Run) -> dict:
    path = run.folder / OVERRULED
    return json.loads(path.read_text()) if path.exists() else {}


def _overruled_input(run: Run) -> dict[str, str]:
    """The overruling as an input of the stage: it decides what is kept."""
    path = run.folder / OVERRULED
    return {OVERRULED: sha256_of(path)} if path.exists() else {}


def _apply_overruling(looks: list[_Look], overruled: dict) -> None:
    for look in looks:
        said = overruled.get(look.photo.sha256)
        if said and said["kept"] != look.verdict.kept and (not said["kept"] or "face_box_px" in look.sight.measures):
            look.verdict = replace(look.verdict, kept=said["kept"], overruled=True)


def overrule_verdict(run: Run, photo: str, kept: bool) -> Verdict:
    """Keeps a refused photo, or leaves a kept one out, because a person says so; noted in `overruled.json`.

    It holds for that file when the photos are judged again, and later stages must be done anew. Saying the opposite
    takes it back.

    Args:
        photo: its name in the verdicts.
    Raises:
        StageMissing: the photos have not been judged, or the photo is none of them.
        CannotKeep: the photo can't be read or shows no face, so nothing can be cropped from it; or it is gone.
    """
    manifest = run.manifest("photos")
    names = [v["photo"] for v in manifest["verdicts"]]
    if photo not in names:
        raise StageMissing(f"no photo {photo!r} was judged.", f"There are: {', '.join(names[:20])}.", "Name one.")
    place = names.index(photo)
    verdict, digest = Verdict.from_dict(manifest["verdicts"][place]), manifest["photos"][place]["sha256"]
    if kept and "face_box_px" not in verdict.measures:
        why = "; ".join(reason.text for reason in verdict.reasons)
        raise CannotKeep(f"{photo} can't be kept: {why}.", "A training picture is cropped around a face.", "Leave it.")
    source = {plain_name(f): f for f in find_photos(Path(manifest["folder"]))}.get(photo) if kept else None
    if kept and (source is None or digest_of(source) != digest):
        why = "The run copies it from there when it is kept."
        raise CannotKeep(f"{photo} is no longer in {manifest['folder']}.", why, "Judge the photos again.")
    said = _read_overruled(run) | {digest: {"photo": photo, "kept": kept, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}}
    verdict = replace(verdict, kept=kept, overruled=kept == bool(verdict.reasons))
    if not verdict.overruled:
        del said[digest]
    copy = run.path("photos") / "kept" / photo
    write_atomic(copy, source.read_bytes()) if kept else copy.unlink(missing_ok=True)
    _write_overruled(run, said, manifest, [*manifest["verdicts"][:place], verdict.to_dict(),
                                           *manifest["verdicts"][place + 1 :]])  # fmt: skip
    return verdict


def _write_overruled(run: Run, said: dict, manifest: dict, verdicts: list[dict]) -> None:
    """Writes the overruling and the manifest that follows from it, with the fingerprint a new judging would have."""
    write_json(run.folder / OVERRULED, said)
    inputs = {k: v for k, v in manifest["inputs"].items() if k != OVERRULED} | _overruled_input(run)
    judged = [Verdict.from_dict(v) for v in verdicts]
    manifest |= _advice(judged, GateConfig.with_options(**manifest["config"])) | {
        "inputs": inputs,
        "outcome": _outcome(judged),
        "fingerprint": fingerprint(manifest["config"], inputs),
    }
    write_json(run.path("photos") / "manifest.json", manifest)
