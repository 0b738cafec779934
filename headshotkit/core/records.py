"""The records that flow between stages: frozen and small; they hold paths and facts, never tensors.

Every record converts to JSON and back (`to_dict`, `from_dict`); manifests consist of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from types import NoneType, UnionType

from headshotkit.core.errors import HeadshotError, TooFewPhotos

REASON_CODES = (
    "unreadable", "generated", "no_face", "crowd", "many_faces", "cropped_face", "small_face", "dark", "bright",
    "tilted", "framed", "pale", "noisy", "blurred", "compressed", "greyscale", "occluded", "profile", "moved",
    "eyes_closed", "grimace", "unrecognisable", "other_person", "duplicate", "surplus",
)  # fmt: skip


Name = typing.NewType("Name", str)
"""A file's name relative to its stage's folder; a name that leads outside is refused when a record is read."""


def is_inside(name: str) -> bool:
    """Return whether a name stays in its folder.

    >>> is_inside("class/000.png"), is_inside("../a"), is_inside("/etc/passwd")
    (True, False, False)
    """
    ways = PurePosixPath(name), PurePath(name)
    return "\0" not in name and not any(way.anchor or ".." in way.parts for way in ways)


class Record:
    """Base of all records: converts to a dict of JSON types and back.

    A field's JSON key is its name, or the `key` of `stored_as`.
    """

    def to_dict(self) -> dict:
        return {_key_of(f): _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict):
        """Return the record of a dict of JSON types; unknown keys are left out.

        Raises:
            ValueError: a field is missing, has another type, or names a file outside of its folder.
        """
        return typed(cls, values)

    @classmethod
    def shape(cls, values: dict) -> dict[str, object]:
        """Return the types of the record's JSON keys: of the required ones, and of those that `values` has."""
        return {key: kind for _, key, kind, needed in _fields_of(cls) if needed or key in values}


def stored_as(key: str, **options):
    """Return a record's field whose JSON key differs from its name, because files with that key exist.

    Args:
        options: of `dataclasses.field`, such as default.
    """
    return field(metadata={"key": key}, **options)


def _key_of(one: dataclasses.Field) -> str:
    return one.metadata.get("key", one.name)


def _plain(value):
    """Return a record's field as JSON types."""
    if hasattr(value, "to_dict"):  # a record, or settings
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value


@functools.cache
def _fields_of(kind: type) -> tuple[tuple[str, str, object, bool], ...]:
    """Return a record's fields: name, JSON key, type, and whether it is required."""
    hints, missing = typing.get_type_hints(kind), dataclasses.MISSING
    return tuple(
        (f.name, _key_of(f), hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(kind)
    )


def typed(hint, value):
    """Return a JSON value as the type that an annotation names.

    Raises:
        ValueError: it has another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and hasattr(hint, "model_fields"):
        return _settings(hint, value)
    if isinstance(hint, type) and issubclass(hint, Record):
        if not isinstance(value, dict):
            raise ValueError(f"{hint.__name__} is {str(value)[:40]!r}")
        absent = [key for _, key, _, needed in _fields_of(hint) if needed and key not in value]
        if absent:
            raise ValueError(f"{hint.__name__} lacks {', '.join(absent)}")
        return hint(**{name: typed(kind, value[key]) for name, key, kind, _ in _fields_of(hint) if key in value})
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(typed(args[0], v) for v in value)
    if origin in (typing.Union, UnionType):
        for one in args:
            with contextlib.suppress(ValueError):
                return typed(one, value)
    elif origin is typing.Literal and value in args:
        return value
    elif hint in (Path, Name) and isinstance(value, str) and is_inside(value):
        return Path(value) if hint is Path else value
    elif hint is NoneType and value is None:
        return None
    elif (
        hint is float
        and type(value) in (int, float)
        or isinstance(origin or hint, type)
        and type(value) is (origin or hint)
    ):
        return value
    raise ValueError(f"{str(value)[:40]!r} is not a {getattr(hint, '__name__', hint)}")


def _settings(kind: type, value: object):
    """Return a file's settings as their pydantic model; as `typed`."""
    if not isinstance(value, dict):
        raise ValueError(f"{kind.__name__} is {str(value)[:40]!r}")
    try:
        return kind.from_dict(value)
    except HeadshotError as error:
        raise ValueError(error.happened) from error


@dataclass(frozen=True)
class Photo(Record):
    """A photo. Its size is that of the upright picture (EXIF applied); 0 if it can't be read."""

    path: Path
    width_px: int
    height_px: int
    sha256: str


@dataclass(frozen=True)
class Reason(Record):
    """Why a photo is refused: a code of REASON_CODES, the measured value, the limit, plain words."""

    code: str
    value: float | str | None
    limit: float | str | None
    text: str


LEFT_OUT = "left out by you"
"""The verdict on a photo that a person left out."""


@dataclass(frozen=True)
class Verdict(Record):
    """The gate's verdict on one photo. `photo` is its path relative to the photo folder.

    `overridden`: a person decided against the reasons.
    """

    photo: Name
    kept: bool
    reasons: tuple[Reason, ...] = ()
    measures: dict = field(default_factory=dict)
    overridden: bool = stored_as("overruled", default=False)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the verdict in words: kept, or every reason against the photo; and what a person decided.

        >>> Verdict("a.jpg", True).lines, Verdict("a.jpg", False, overridden=True).lines
        (('kept',), ('left out by you',))
        """
        reasons = tuple(reason.text for reason in self.reasons)
        if self.overridden:
            return ("kept by you, though", *reasons) if self.kept else (LEFT_OUT,)
        return reasons or ("kept" if self.kept else LEFT_OUT,)


@dataclass(frozen=True)
class TrainingPhoto(Record):
    """One prepared picture: its file in the dataset folder, its caption, its crop, the face's position.

    `original_size_px` and `crop_top_left_px` are (width, height) and (top, left) after resizing: SDXL's
    micro-conditioning. `face_box_px` is (x0, y0, x1, y1) in the prepared picture. `size_px` is the picture's (width,
    height), empty for the dataset's square. `written` is headshotkit's own caption if a person edited it since, else
    empty.
    """

    file: Name
    photo: Name
    caption: str
    original_size_px: tuple[int, ...]
    crop_top_left_px: tuple[int, ...]
    face_box_px: tuple[float, ...]
    size_px: tuple[int, ...] = ()
    written: str = ""


@dataclass(frozen=True)
class Dataset(Record):
    """The training folder: its photos, the person's token and class word, and class images if there are any.

    class_prompt: prompt of the class images; empty: a photo of the class word.
    """

    folder: Path
    token: str
    class_word: str
    size_px: int
    photos: tuple[TrainingPhoto, ...]
    class_images: tuple[Name, ...] = ()
    class_prompt: str = ""

    @property
    def captions(self) -> list[str]:
        """Return all captions of the training: each caption once, the class's, and the empty one."""
        return sorted({photo.caption for photo in self.photos}) + [
            self.class_prompt or f"photo of a {self.class_word}",
            "",
        ]

    @property
    def instance(self) -> str:
        """Return the person's name in a prompt: token and class word."""
        return f"{self.token} {self.class_word}"


class Names(typing.NamedTuple):
    """The person's name in prompts, the class that replaces it, and the expression that nearly all photos show."""

    person: str
    class_prompt: str
    usual_expression: str = ""


NO_SUBJECT = Names("", "")


@dataclass(frozen=True)
class Lora(Record):
    """The result of a training, mostly an adapter file, and what is needed to use it.

    `path` and `files` are relative to the stage's folder, `path` is the first file. `rank` and `alpha` are 0 if the
    `method` has no LoRA. `usual_expression`: what nearly all photos show, in the captions' words; empty: it varies.
    """

    path: Path
    base: str
    rank: int
    alpha: int
    token: str
    class_word: str
    step: int
    method: str = "lora"
    files: tuple[Path, ...] = ()
    usual_expression: str = ""

    @property
    def names(self) -> Names:
        """Return how prompts name the person and the class.

        >>> Lora(Path("person.safetensors"), "mini", 32, 32, "ohwx", "woman", 1000).names
        Names(person='ohwx woman', class_prompt='a woman', usual_expression='')
        """
        return Names(f"{self.token} {self.class_word}", f"a {self.class_word}", self.usual_expression)


@dataclass(frozen=True)
class Headshot(Record):
    """One generated picture; `size_px` is (width, height). `identity` is None without exactly one face in it.

    likeness: identity relative to the own photos' median, so 0.87 is 87 % of the similarity of your own photos ·
    quality: of the face, in [0, 1], higher is better · copy: largest similarity of the face's structure to a photo's ·
    adherence: prompt adherence, share of the measurable requests that are shown, in [0, 1]; None without any ·
    sharpness: of the face, as `measures.sharpness` · face_points_px: eyes, nose and corners of the mouth, (x, y) each ·
    held_out: similarity to the photos that were not trained on, in [-1, 1]; None without such photos ·
    artefacts: kind -> rating in [0, 1], empty if they were not rated.
    """

    file: Name
    prompt_id: str
    prompt: str
    negative: str
    seed: int
    attempt: int
    lora_scale: float
    identity: float | None
    accepted: bool
    reasons: tuple[str, ...] = ()
    size_px: tuple[int, ...] = ()
    likeness: float | None = None
    quality: float | None = None
    copy: float | None = None
    adherence: float | None = stored_as("obeyed", default=None)
    sharpness: float | None = None
    face_points_px: tuple[tuple[float, ...], ...] = ()
    held_out: float | None = None
    artefacts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Pick(Record):
    """A checkpoint of the LoRA at a lora_scale, and the scores of its `pictures` of a few prompts, each in [0, 1].

    `file` is relative to the LoRA's stage. likeness: mean, relative to the own photos' median and at most 1 ·
    adherence: mean prompt adherence · passed: share of the pictures that the gate accepts · held_out: mean likeness to
    the photos that were not trained on, relative to the trained photos' median and at most 1; None without such photos.
    """

    step: int
    scale: float
    file: Name
    pictures: int
    likeness: float
    adherence: float = stored_as("obeyed")
    passed: float
    held_out: float | None = None

    @property
    def decisive(self) -> float:
        """Return the likeness that a choice goes by: to photos that the LoRA never saw, if there are any.

        Likeness to photos that were trained on also rises when a LoRA learns those photos by heart.
        """
        return self.likeness if self.held_out is None else self.held_out

    def __str__(self) -> str:
        unseen = "" if self.held_out is None else f", {self.held_out:.0%} of those not trained on"
        return (
            f"step {self.step} at {self.scale:g} (likeness {self.likeness:.0%} of your photos'{unseen}, prompt "
            f"adherence {self.adherence:.0%}, {round(self.passed * self.pictures)} of {self.pictures} accepted)"
        )


@dataclass(frozen=True)
class IdentityThreshold(Record):
    """The least identity of an accepted headshot, and how it was derived from the own photos' identity."""

    value: float = stored_as("mark")
    own_median: float = 0.0
    own_quantile: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Score(Record):
    """The evaluation of one headshot: identity by each recogniser, and sharpness of the face."""

    file: str
    arcface: float | None
    dlib: float | None
    sharpness: float | None


MOST_REFUSALS = 40
"""Number of refused photos that are listed by name."""


def refusals(verdicts: list[Verdict], most: int = MOST_REFUSALS) -> list[str]:
    """Return a line for each refused photo, its name and first reason; after `most`, the number of the rest."""
    lines = [f"{v.photo}: {v.lines[0].removeprefix(f'{v.photo} ')}" for v in verdicts if not v.kept]
    more = len(lines) - most
    return lines[:most] + [f"and {more} more, in photos/index.html"] * (more > 0)


def kept_photos(verdicts: list[Verdict], at_least: int, advice: str = "", left_out: str = "") -> list[Verdict]:
    """Return the kept verdicts, if there are enough.

    Args:
        advice: the coach's request, for the error.
        left_out: unread contents of the photo folder, for the error.
    Raises:
        TooFewPhotos: fewer than `at_least` were kept; the error counts the refusals by reason.
    """
    kept = [v for v in verdicts if v.kept]
    if len(kept) >= at_least:
        return kept
    refused = Counter(v.reasons[0].code for v in verdicts if v.reasons and not v.kept)
    counts = ", ".join(f"{n} {code}" for code, n in refused.most_common()) or "none was refused"
    advice = advice or f"Add {at_least - len(kept)} or more sharp photos of one person."
    raise TooFewPhotos(
        f"kept {len(kept)} of {len(verdicts)} photos, training needs {at_least}.",
        "\n  ".join(
            [
                f"Refused: {counts}; photos/index.html shows each with its reasons."
                + (f" Not read: {left_out}." if left_out else ""),
                *refusals(verdicts),
            ]
        ),
        ("Put the unread photos into the folder itself, as JPEG. " if left_out else "")
        + f"{advice} Or lower --min-photos (now {at_least}).",
    )
