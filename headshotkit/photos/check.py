"""The gate: judge each photo, then the set, and return a verdict with reasons.

A refused photo gets the measured number and the limit it broke. The main person is the one in most photos. A person's
own decisions (photos/override.py) are kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import CheckConfig
from headshotkit.core import locks, runtime
from headshotkit.core.errors import RunFolderError
from headshotkit.core.pages import PAGE
from headshotkit.core.records import Photo, Reason, Record, Verdict
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import COMMANDS, Run, fingerprint, read_json, write_atomic, write_json
from headshotkit.faces import copies, recognition
from headshotkit.photos import assess, coach
from headshotkit.photos.colour import srgb_curve
from headshotkit.photos.coverage import coverage, scenes
from headshotkit.photos.decoding import Refused, Source
from headshotkit.photos.files import Unreadable, digest_of, find_photos, left_out, open_photo, plain_name
from headshotkit.photos.page import THUMBS, write_photo_page
from headshotkit.photos.selection import choose_photos
from headshotkit.photos.stripping import write_stripped

THUMB_PX = 240
OVERRIDES = "overruled.json"
"""A person's own decisions, in the run folder: a photo's name -> its sha256, kept, and the time of the decision."""
RULES_VERSION = "4"
"""Raised when measures or comparisons that verdicts depend on change, so that photos are judged anew. All later stages
are then done anew as well, so a trait that only coach, captions and prompt adherence use does not raise it."""
LEAST_TO_COMPARE = 3
"""Fewest photos of a person that are needed to call one of them too dark."""
MOST_COMPARED = 4
"""Number of most similar photos (ArcFace) whose fine structure is compared."""
OTHERS = 1
"""`measures["person"]` of the second most frequent person; 0 is the main person."""


@locks.writes("check")
@runtime.frees_memory
def check_photos(photos: Path, run: Run, config: CheckConfig | None = None) -> list[Verdict]:
    """Judge all photos of a folder and keep the best of the good ones.

    Writes `photos/`: kept/ (the same pixels without metadata), thumbs/, index.html with all verdicts, and manifest.json
    with verdicts, photos, and what the set shows and lacks.

    Args:
        photos: the folder with the person's photos; it is only read.
    Raises:
        NoPhotos: the folder is missing or holds no photo.
        RunFolderError, DiskFull: the run folder can't be written, or the photos are in one of its stage folders.
    """
    config = config or CheckConfig()
    photos = runtime.typed_path(photos)
    _demand_apart(photos, run)
    files = {plain_name(f): f for f in find_photos(photos)}
    digests = _digests(files)
    folder = {"folder": run.place_of(photos), "left_out": left_out(photos)}
    stage = run.begin("photos", config, _inputs(digests, run))
    if stage.done:
        verdicts = list(PhotosResult.from_dict(stage.manifest).verdicts)
        folder["outcome"] = outcome_of(verdicts, folder["left_out"])
        same = stage.manifest | folder == stage.manifest
        if not same or not (stage.folder / PAGE).exists():  # the photos moved, or are next to other files
            write_json(stage.folder / "manifest.json", write_photo_page(stage.folder, stage.manifest | folder))
        _name_strange(stage.folder / "kept", verdicts)
        return verdicts
    write_json(stage.folder / "manifest.json", stage.manifest | folder)  # an interrupted run finds its photos too
    candidates = [_Candidate(name, file, digests[name]) for name, file in files.items()]
    for number, candidate in enumerate(runtime.progress(candidates, "judging photos")):
        thumb = candidate.judge(config)
        if thumb:
            write_atomic(stage.folder / THUMBS / f"{number:03d}.jpg", thumb)
    _judge_set(candidates, config)
    _apply_overrides(candidates, read_overrides(run))
    for candidate in candidates:
        if candidate.verdict.kept:
            candidate.copy_to(stage.folder / "kept" / candidate.name)
    verdicts = [candidate.verdict for candidate in candidates]
    outcome, advice = outcome_of(verdicts, folder["left_out"]), advice_on(verdicts, config)
    write_photo_page(stage.folder, {"outcome": outcome} | advice)
    photos = [candidate.photo.to_dict() for candidate in candidates]
    stage.finish(outcome, photos=photos, face_models=recognition.model_folder()[1], **folder, **advice)
    _name_strange(stage.folder / "kept", verdicts)
    return verdicts


def _name_strange(kept: Path, verdicts: list[Verdict]) -> None:
    """Print the names of files in the folder of kept photos that are not kept photos."""
    wanted = {v.photo for v in verdicts if v.kept}
    strange = sorted(set(map(plain_name, kept.iterdir())) - wanted) if kept.is_dir() else []
    if strange:
        what = f"{len(strange)} files in {kept} are not kept photos and are not used"
        runtime.say(f"{what}: {', '.join(strange[:10])}. Put photos into your own folder, then check them again.")


def is_judged(photos: Path, run: Run, config: CheckConfig | None = None) -> bool:
    """Return whether the run holds the verdicts on exactly these photos with these limits.

    Raises:
        NoPhotos: the folder is missing or holds no photo.
    """
    digests = _digests({plain_name(f): f for f in find_photos(photos)})
    return run.is_begun("photos", config or CheckConfig(), _inputs(digests, run)) and run.has("photos")


def _digests(files: dict[str, Path]) -> dict[str, str]:
    return {name: digest_of(file) for name, file in files.items()}


def _inputs(digests: dict[str, str], run: Run) -> dict[str, str]:
    """Return the inputs of verdicts besides the limits: photos by name, models and rules, and a person's decisions."""
    judges = {
        "face models": recognition.model_folder()[1],
        "HEIC": "read" if importlib.util.find_spec("pillow_heif") else "not read",
        "rules": RULES_VERSION,
    }
    return digests | judges | overrides_input(run)


def _demand_apart(photos: Path, run: Run) -> None:
    """Refuse photos in a stage's folder, which is moved aside when the stage begins anew: RunFolderError."""
    ways = (photos.absolute(), *photos.absolute().parents, photos.resolve(), *photos.resolve().parents)
    for stage in COMMANDS:
        own = run.path(stage)
        if any(way == own.absolute() or (own.exists() and way.exists() and way.samefile(own)) for way in ways):
            raise RunFolderError(
                f"the photos are in {photos}, where the run in {run.folder} keeps its own {stage} stage.",
                "A stage's folder is moved away when the stage starts over, and the photos would move with it.",
                f"Move the photos to another folder, or choose another run folder: --out {run.folder / 'run'}",
            )


def outcome_of(verdicts: list[Verdict], left_out: str = "") -> str:
    """Describe how many photos were kept, how many refused for which reason, and which files were not read."""
    refused = Counter(v.reasons[0].code for v in verdicts if not v.kept and v.reasons)
    counts = ", ".join(f"{n} {code}" for code, n in refused.most_common())
    overridden = sum(v.overridden for v in verdicts)
    words = f"kept {sum(v.kept for v in verdicts)} of {len(verdicts)} photos"
    words += f", refused {counts}" if counts else ""
    words += f"; {overridden} overridden by you" if overridden else ""
    return words + (f"; not read: {left_out}" if left_out else "")


def advice_on(verdicts: list[Verdict], config: CheckConfig) -> dict:
    """Return the verdicts, coverage, requests and choice of photos, with reasons, for the manifest."""
    shown = coverage(verdicts)
    asked = coach.requests(verdicts, shown, config)
    return {
        "verdicts": [v.to_dict() for v in verdicts],
        "coverage": shown.to_dict(),
        "requests": [request.to_dict() for request in asked],
        "advice": coach.summary(asked, shown),
        "chosen": choose_photos(verdicts, config.max_photos, config.min_photos).to_dict(),
    }


class _Candidate:
    """One photo during the check: its verdict so far, and the measurements for comparing the set."""

    def __init__(self, name: str, path: Path, digest: str) -> None:
        self.name, self.path, self.bytes = name, path, 0
        self.photo, self.measured, self.verdict = (
            Photo(Path(name), 0, 0, digest),
            assess.Measured(),
            Verdict(name, False),
        )

    def judge(self, config: CheckConfig) -> bytes | None:
        """Judge the photo on its own; return its thumbnail, or None if it can't be read."""
        try:
            opened = open_photo(self.path, assess.LEAST_PX)
        except Unreadable as error:
            self.refuse("unreadable", None, None, f"{error.happened} {error.next_step}")
            return None
        self.photo = replace(self.photo, width_px=opened.width_px, height_px=opened.height_px)
        self.measured, self.bytes = assess.measure_photo(opened), opened.file_bytes
        reasons = tuple(assess.reasons_against(self.measured.measures, config))
        if opened.made_by:
            text = f"a model generated it, according to {opened.made_by}; a LoRA would learn the model's mistakes"
            reasons = (Reason("generated", opened.made_by, None, text),)
        self.verdict = Verdict(self.name, not reasons, reasons, self.measured.measures)
        return thumbnail(opened.pixels)

    def copy_to(self, place: Path) -> None:
        """Copy the photo as it was judged; refuse it if it is missing or changed since."""
        if not write_kept(self.path, self.photo.sha256, place):
            self.refuse("unreadable", None, None, f"{self.name} was moved or changed while it was judged")

    def refuse(self, code: str, value, limit, text: str) -> None:
        reasons = (*self.verdict.reasons, Reason(code, value, limit, text))
        self.verdict = replace(self.verdict, kept=False, reasons=reasons)


def write_kept(photo: Path, digest: str, place: Path) -> bool:
    """Copy a photo without metadata if it is still the file of that sha256; return whether it is.

    Raises:
        DiskFull, RunFolderError: it can't be written.
    """
    try:
        with Source(photo) as file:
            data = file.read()
        same = hashlib.sha256(data).hexdigest() == digest
        if same:
            write_stripped(photo, data, place)
    except (OSError, Refused, Unreadable):  # missing by now, or a pipe
        return False
    return same


def thumbnail(image: np.ndarray) -> bytes:
    """Return a small JPEG of a photo, THUMB_PX on its longer side."""
    small = Image.fromarray(image)
    small.thumbnail((THUMB_PX, THUMB_PX), reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- the set ------------------------------------------------------------------------------------------------------


def _judge_set(candidates: list[_Candidate], config: CheckConfig) -> None:
    """Judge the photos as a set: other people, duplicates, bursts, and surplus photos."""
    _refuse_other_people([candidate for candidate in candidates if candidate.verdict.kept], config)
    _refuse_darker([candidate for candidate in candidates if candidate.verdict.kept], config)
    _refuse_duplicates([candidate for candidate in candidates if candidate.verdict.kept], config)
    kept = [candidate for candidate in candidates if candidate.verdict.kept]
    if not kept:
        return
    embeddings = np.stack([candidate.measured.embedding for candidate in kept])
    for candidate, scene in zip(kept, scenes([k.measured.measures for k in kept], embeddings), strict=True):
        candidate.measured.measures["moment"] = scene
    names = choose_photos([k.verdict for k in kept], config.max_photos, config.min_photos).names
    chosen_scenes = {candidate.measured.measures["moment"] for candidate in kept if candidate.name in names}
    for candidate in kept:
        if candidate.name not in names:
            seen = candidate.measured.measures["moment"] in chosen_scenes
            why = "they include a better photo of the same scene" if seen else "they are better or more varied"
            text = f"not needed: {len(names)} of {len(kept)} good photos were selected, {why}"
            candidate.refuse("surplus", len(kept), config.max_photos, text)


def main_person(embeddings: np.ndarray, limit: float) -> np.ndarray:
    """Find the faces of the person who is in most photos.

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
    """Number the people in the photos: 0 for the most frequent person, 1 for the next, and so on; int, shape (N,).

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


def _refuse_other_people(candidates: list[_Candidate], config: CheckConfig) -> None:
    """Refuse photos of anybody but the main person, and record each photo's identity."""
    if not candidates:
        return
    embeddings = np.stack([candidate.measured.embedding for candidate in candidates])
    who, limit = people(embeddings, config.min_same_person), config.min_same_person
    recogniser, total = recognition.load_recogniser("arcface"), embeddings[who == 0].sum(0)
    for candidate, person in zip(candidates, who.tolist(), strict=True):
        candidate.measured.measures["person"] = person
        others = total - candidate.measured.embedding if person == 0 else total
        if person == 0 and (who == 0).sum() == 1:
            continue
        identity = round(float(recogniser.similarity(candidate.measured.embedding, others)[0]), 3)
        candidate.measured.measures["identity"] = identity
        if person >= OTHERS:
            text = (
                f"somebody else: the face's similarity to the other photos is {identity:.2f}, at least {limit:.2f} "
                "is needed"
            )
            candidate.refuse("other_person", identity, limit, text)


def _refuse_darker(candidates: list[_Candidate], config: CheckConfig) -> None:
    """Refuse photos in which the face is far darker, in stops, than in most of the person's photos."""
    if len(candidates) < LEAST_TO_COMPARE:
        return
    light = srgb_curve(np.array([candidate.measured.measures["brightness"] for candidate in candidates]) / 255)
    stops = np.log2(np.maximum(light, 1e-4) / np.median(light))
    for candidate, below in zip(candidates, (-stops).round(2).tolist(), strict=True):
        if below > config.max_stops_below:
            limit = config.max_stops_below
            text = f"the face is {below:.1f} stops darker than in most photos, at most {limit:.1f} are allowed"
            candidate.refuse("dark", below, limit, text)


def _refuse_duplicates(candidates: list[_Candidate], config: CheckConfig) -> None:
    """Of equal pictures, keep the one with most pixels, then the one with the largest file.

    Pictures are equal if they are similar as a whole, or if their faces have the same fine structure.
    """
    candidates = sorted(candidates, key=lambda k: (-k.photo.width_px * k.photo.height_px, -k.bytes, k.name))
    if not candidates:
        return
    hashes = np.stack([candidate.measured.hash for candidate in candidates])
    embeddings = np.stack([candidate.measured.embedding for candidate in candidates])
    unique: list[int] = []
    for number, candidate in enumerate(candidates):
        apart = (hashes[unique] != hashes[number]).sum(1)
        alike = embeddings[unique] @ embeddings[number]
        same = np.flatnonzero((apart <= config.max_hash_distance) & (alike >= config.min_duplicate_identity))
        if len(same):
            text = f"the same picture as {candidates[unique[same[0]]].name}: {apart[same[0]]} of 64 hash bits differ"
            text += f", up to {config.max_hash_distance} are a duplicate"
            candidate.refuse("duplicate", int(apart[same[0]]), config.max_hash_distance, text)
            continue
        near = [unique[i] for i in np.argsort(-alike)[:MOST_COMPARED]]
        shared = [copies.copy_likeness(candidate.measured.face_crop, [candidates[i].measured.face_crop]) for i in near]
        if max(shared, default=-1.0) < config.min_duplicate_structure:
            unique.append(number)
            continue
        limit = config.min_duplicate_structure
        text = (
            f"the same picture as {candidates[near[int(np.argmax(shared))]].name}, but cropped, mirrored, framed or "
            "edited:"
        )
        text += f" {max(shared):.3f} is the correlation of the faces, from {limit:.2f} on it is a duplicate"
        candidate.refuse("duplicate", max(shared), limit, text)


# --- a person's own decisions: photos/override.py writes them ---------------------------------------------------------


@dataclass(frozen=True)
class Note(Record):
    """A person's decision on a photo, and its time."""

    sha256: str
    kept: bool
    at: str = ""


def read_overrides(run: Run) -> dict[str, dict]:
    """Return a person's decisions: photo -> its sha256, kept, at.

    Raises:
        DamagedRun: the file exists but can't be used.
    """
    return read_json(run.folder / OVERRIDES, Note) or {}


def overrides_input(run: Run) -> dict[str, str]:
    """Return a person's decisions, without their times, as an input of the stage."""
    said = {photo: [note["sha256"], note["kept"]] for photo, note in read_overrides(run).items()}
    return {OVERRIDES: fingerprint(said, {})} if said else {}


def _apply_overrides(candidates: list[_Candidate], overridden: dict[str, dict]) -> None:
    for candidate in candidates:
        note = overridden.get(candidate.name, {"sha256": None})
        if note["sha256"] != candidate.photo.sha256 or note["kept"] == candidate.verdict.kept:
            continue
        if "face_box_px" in candidate.measured.measures or not note["kept"]:
            candidate.verdict = replace(candidate.verdict, kept=note["kept"], overridden=True)
