"""Measure what a LoRA does to other people: does everybody become the person, and is anything forgotten?

The same prompts, without the token, are drawn from the same noise without the LoRA and with it. A LoRA should leave
them as they are: strangers stay strangers, prompts are still followed, faces still differ from each other. A test of
memorisation draws the bare token: if its pictures are nearer to photos that were trained on than to photos that were
not, the LoRA repeats its photos.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL.Image import Image

from headshotkit.core.records import Record
from headshotkit.faces import copies, recognition
from headshotkit.families import Family, Sampling
from headshotkit.families.jobs import Job, draw
from headshotkit.scoring.adherence import asked_of, prompt_adherence, shown_by
from headshotkit.scoring.bootstrap import BOOTSTRAPS

KINDS = ("class", "others", "token")
"""Groups of pictures: of the class word, of other class words, and of the bare token, drawn with the LoRA alone."""


@dataclass(frozen=True)
class Drawn:
    """A picture as the measures see it; without exactly one face, embedding and crop are None.

    embedding: ArcFace, float32, shape (512,) · crop: by `copies.face_crop` · adherence: as `prompt_adherence`.
    """

    embedding: np.ndarray | None = None
    crop: np.ndarray | None = None
    adherence: float | None = None


@dataclass(frozen=True)
class Interval(Record):
    """A mean with its 95 % percentile-bootstrap interval over `count` pictures or pairs."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Group(Record):
    """What the LoRA does to pictures whose prompts don't name the person; `off` is without it, `on` with it.

    pictures: number of each · faces: pictures with exactly one face · similarity: mean to the person's photos, by
    ArcFace · rise: of that, pair by pair · as_person: share of the faces at or above the identity threshold ·
    adherence: mean prompt adherence · adherence_change: of that, pair by pair · alike: mean similarity of the faces to
    each other; higher is less varied · alike_change: of that.
    """

    pictures: int
    faces_off: int
    faces_on: int
    similarity_off: float | None
    similarity_on: float | None
    rise: Interval
    as_person_off: float | None
    as_person_on: float | None
    adherence_off: float | None
    adherence_on: float | None
    adherence_change: Interval
    alike_off: float | None
    alike_on: float | None
    alike_change: Interval


@dataclass(frozen=True)
class Memory(Record):
    """Whether pictures of the bare token are nearer to trained photos than to those held out, by one measure.

    trained, held_out: mean similarity to the nearest photo · excess: of the trained ones, picture by picture. Of more
    photos one is nearer by chance, so `trained` is the mean over all choices of as many trained photos as are held out.
    """

    trained: float
    held_out: float
    excess: Interval


# --- the pictures -------------------------------------------------------------------------------------------------


def draw_both(
    family: Family, use_lora: Callable[[float], None], jobs: dict[str, list[Job]], sampling: Sampling, batch: int,
    scale: float = 1.0,
) -> Iterator[tuple[str, str, int, Image]]:  # fmt: skip
    """Draw every job without the LoRA and with it; those of the token only with it.

    Args:
        use_lora: makes the family draw with the LoRA at a scale; 0 is the bare base.
        jobs: kind of KINDS -> its jobs.
    Yields: (kind, "off" or "on", number of the job, picture).
    """
    every = [job for some in jobs.values() for job in some]
    family.encode_prompts([text for job in every for text in (job.prompt, job.negative)])
    for state, strength in (("off", 0.0), ("on", scale)):
        use_lora(strength)
        for kind, some in jobs.items():
            if kind == "token" and state == "off":
                continue
            for number, (_, picture) in enumerate(draw(family, some, sampling, batch)):
                yield kind, state, number, picture


def look_at(picture: Image, prompt: str) -> Drawn:
    """Measure a picture that was drawn for a prompt."""
    image = np.asarray(picture.convert("RGB"))
    found = recognition.detect_faces(image)
    if len(found) != 1:
        return Drawn(adherence=0.0 if asked_of(prompt) else None)
    face = found[0]
    shown = shown_by(image, face.points, recognition.landmarks_106(image, face))
    embedding = recognition.load_recogniser("arcface").embed(image, face)
    return Drawn(embedding, copies.face_crop(image, face), prompt_adherence(asked_of(prompt), shown))


def own_photo(image: np.ndarray, face: recognition.Face) -> Drawn:
    """Measure a photo of the person, for the memorisation test."""
    return Drawn(recognition.load_recogniser("arcface").embed(image, face), copies.face_crop(image, face))


# --- the figures --------------------------------------------------------------------------------------------------


def compare_group(off: Sequence[Drawn], on: Sequence[Drawn], centre: np.ndarray, threshold: float) -> Group:
    """Compare pictures without the LoRA with those of the same prompts and noise with it.

    Args:
        centre: mean ArcFace embedding of the person's photos, shape (512,).
        threshold: identity from which a face counts as the person.
    """
    similar = [[_similarity(one, centre) for one in some] for some in (off, on)]
    obeyed = [[one.adherence for one in some] for some in (off, on)]
    faces = [_known(values) for values in similar]
    both = [
        (a.embedding, b.embedding)
        for a, b in zip(off, on, strict=True)
        if a.embedding is not None and b.embedding is not None
    ]
    alike, change = _alike(both)
    shares = [_mean([value >= threshold for value in values]) for values in faces]
    return Group(
        len(off), len(faces[0]), len(faces[1]), _mean(faces[0]), _mean(faces[1]), _paired(*similar), *shares,
        *(_mean(_known(values)) for values in obeyed), _paired(*obeyed), *alike, change,
    )  # fmt: skip


def nearest_photos(
    drawn: Sequence[Drawn], trained: Sequence[Drawn], held_out: Sequence[Drawn],
    similarity: Callable[[Drawn, Sequence[Drawn]], list[float]],
) -> Memory | None:  # fmt: skip
    """Compare how near pictures are to photos that were trained on and to others; None without either or a face.

    Args:
        similarity: of a picture to each of some photos.
    """
    shown = [one for one in drawn if one.embedding is not None]
    if not shown or not trained or not held_out or len(held_out) > len(trained):
        return None
    pairs = [
        (expected_nearest(similarity(one, trained), len(held_out)), max(similarity(one, held_out))) for one in shown
    ]
    near, other = zip(*pairs, strict=True)
    return Memory(_mean(near), _mean(other), _interval([a - b for a, b in pairs]))


def expected_nearest(values: Sequence[float], count: int) -> float:
    """Return the mean of the largest value over all choices of `count` of the values.

    >>> expected_nearest([1.0, 2.0, 3.0], 1), expected_nearest([1.0, 2.0, 3.0], 3)
    (2.0, 3.0)
    """
    ranked, choices = sorted(values), math.comb(len(values), count)
    return sum(value * math.comb(rank, count - 1) for rank, value in enumerate(ranked)) / choices


def by_recogniser(one: Drawn, photos: Sequence[Drawn]) -> list[float]:
    """Return the cosine of a picture's ArcFace embedding to each photo's."""
    return [float(one.embedding @ photo.embedding) for photo in photos]


def by_structure(one: Drawn, photos: Sequence[Drawn]) -> list[float]:
    """Return how similar the fine structure of a picture's face is to each photo's, as `copies.copy_likeness`."""
    return [copies.copy_likeness(one.crop, [photo.crop]) for photo in photos]


MEMORY = {"arcface": by_recogniser, "structure": by_structure}
"""Measure of nearness -> its function."""


def sentences_of(groups: dict[str, Group], memory: dict[str, Memory]) -> list[str]:
    """Return what the LoRA does to other people, in plain sentences; one is also said if it does nothing."""
    said = []
    for kind, group in groups.items():
        who = {"class": "people of the same class word", "others": "people of other class words"}[kind]
        rise = f"{group.rise.mean:+.2f}, 95 % interval {group.rise.low:+.2f} to {group.rise.high:+.2f}"
        if group.rise.low > 0:
            share = f"; {group.as_person_on:.0%} of them reach the identity threshold" if group.as_person_on else ""
            said.append(f"The LoRA makes {who} more similar to the person ({rise}){share}.")
        else:
            said.append(f"The LoRA does not surely make {who} more similar to the person ({rise}).")
        if group.alike_change.low > 0:
            said.append(f"With the LoRA {who} differ less from each other ({group.alike_change.mean:+.2f} similarity).")
        if group.adherence_change.high < 0:
            said.append(
                f"With the LoRA {who} follow their prompts less ({group.adherence_change.mean:+.2f} adherence)."
            )
    for name, one in memory.items():
        surely = "" if one.excess.low > 0 else "not surely "
        said.append(
            f"By {name}, pictures of the bare token are {surely}nearer to trained photos than to "
            f"photos held out ({one.excess.mean:+.2f}, 95 % interval {one.excess.low:+.2f} to {one.excess.high:+.2f})."
        )
    return said


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _similarity(one: Drawn, centre: np.ndarray) -> float | None:
    if one.embedding is None:
        return None
    return float(recognition.load_recogniser("arcface").similarity(one.embedding, centre)[0])


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def _paired(off: Sequence[float | None], on: Sequence[float | None]) -> Interval:
    """Return the mean change over the pairs in which both are known."""
    return _interval([b - a for a, b in zip(off, on, strict=True) if a is not None and b is not None])


def _interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return a mean with its interval; with fewer than two values it says nothing, from -1 to 1."""
    if len(values) < 2:
        return Interval(round(float(np.sum(values)), 4), -1.0, 1.0, len(values))
    picks = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAPS, len(values)))
    low, high = np.quantile(np.array(values)[picks].mean(1), [0.025, 0.975])
    return Interval(*(round(float(value), 4) for value in (np.mean(values), low, high)), len(values))


def _alike(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> tuple[tuple, Interval]:
    """Return the mean similarity of different faces, off and on, and its change with an interval over pictures."""
    if len(pairs) < 3:
        return (None, None), Interval(0.0, -1.0, 1.0, len(pairs))
    cosines = [np.stack(some) @ np.stack(some).T for some in zip(*pairs, strict=True)]
    change, rng, n = cosines[1] - cosines[0], np.random.default_rng(seed), len(pairs)
    means = []
    for picks in rng.integers(0, n, (BOOTSTRAPS // 4, n)):
        apart = picks[:, None] != picks[None]  # a picture drawn twice is no pair
        if apart.any():
            means.append(float(change[np.ix_(picks, picks)][apart].mean()))
    low, high = np.quantile(means, [0.025, 0.975])
    index = list(itertools.combinations(range(n), 2))
    off, on = (float(np.mean([matrix[i, j] for i, j in index])) for matrix in cosines)
    return (round(off, 4), round(on, 4)), Interval(*(round(float(v), 4) for v in (on - off, low, high)), n)


def to_json(groups: dict[str, Group], memory: dict[str, Memory]) -> dict:
    """Return the figures as JSON types, with their sentences."""
    return {
        "groups": {kind: asdict(group) for kind, group in groups.items()},
        "memory": {name: asdict(one) for name, one in memory.items()},
        "sentences": sentences_of(groups, memory),
    }
