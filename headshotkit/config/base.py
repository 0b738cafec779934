"""The base of all configs: each setting's type and range are declared in its field and checked here."""

from __future__ import annotations

import functools
import numbers
import reprlib
import typing
import unicodedata
from collections.abc import Collection
from dataclasses import MISSING, dataclass, fields
from typing import Annotated

from headshotkit.config.bases import find_base
from headshotkit.core.errors import BadConfig

MOST_PARTS = 1000
"""Longest list in a setting."""
MOST_LETTERS = 4096
"""Longest text, characters; most systems allow no longer path."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Range:
    """The allowed numbers of a setting, as a note of its type: `Annotated[int, Range(1, 1024)]`.

    low, high: both included, unless `open` excludes "low", "high" or "both".
    why: what is wrong with other numbers, as a sentence.
    multiple: the number must be a multiple of this; 0: any number.
    """

    low: float
    high: float
    why: str = ""
    open: str = ""
    multiple: int = 0

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range; NaN and infinity never are."""
        above = self.low < value if self.open in ("low", "both") else self.low <= value
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below and (not self.multiple or value % self.multiple == 0)

    def __str__(self) -> str:
        multiple = f"a multiple of {self.multiple}, " if self.multiple else ""
        words = {"": "from {} to {}", "low": "above {} and up to {}", "high": "from {} to below {}"}
        limits = words.get(self.open, "above {} and below {}").format(f"{self.low:.20g}", f"{self.high:.20g}")
        return f"{multiple}{limits}"


@dataclass(frozen=True)
class OneOf:
    """The allowed words of a setting; `none` also allows the empty one."""

    known: Collection[str]
    none: bool = False


@dataclass(frozen=True)
class Text:
    """The longest allowed text, and whether it is a path, which may hold bytes that are no characters."""

    most: int = MOST_LETTERS
    path: bool = False


Seed = Annotated[int, Range(0, 2**63 - 1, "Everything random comes from it; there is no seed that means any.")]
Size = Annotated[int, Range(16, 4096, "The autoencoder halves the picture three times.", multiple=8)]
Batch = Annotated[int, Range(1, 64)]
FilePath = Annotated[str, Text(path=True)]
Minutes = Annotated[float, Range(0, 100_000, "It is a time, and 0 stands for none.")]
MOST_SCALE = 2
Scale = Annotated[float, Range(0, MOST_SCALE, "Beyond it no LoRA holds a picture together.")]


def demand(holds: bool, happened: str, why: str, next_step: str) -> None:
    """Raise BadConfig unless the relation holds."""
    if not holds:
        raise BadConfig(happened, why, next_step)


def check_settings(config) -> None:
    """Check all settings of a dataclass by their types and ranges.

    Raises:
        BadConfig: a setting violates its field's type or range.
    """
    for name in ranges_of(type(config)):
        check_setting(type(config), name, getattr(config, name))


def check_setting(kind: type, name: str, value: object) -> None:
    """Check a value for a setting of a dataclass.

    Raises:
        BadConfig: it violates the field's type or range; the error names the setting, the value and the range.
    """
    hint, default = ranges_of(kind)[name]
    check_value(name, value, hint, f"Change {kind.__name__}.{name}{default}.")


def check_value(name: str, value: object, hint: object, next_step: str) -> None:
    """Check a value by a type with a Range, OneOf or Text as its note.

    Raises:
        BadConfig: it has another type, or is out of range.
    """
    if wanted := _wanted(value, hint):
        raise BadConfig(f"{name} is {shown(value)}.", f"It must be {wanted}", next_step)


@functools.cache
def ranges_of(kind: type) -> dict[str, tuple[object, str]]:
    """Return the settings of a dataclass: name -> (type with notes, text of an example value)."""
    hints = typing.get_type_hints(kind, include_extras=True)
    known = {f.name: f.default for f in fields(kind)}
    return {n: (hints[n], "" if d in (MISSING, "", ()) else f", for example to {d!r}") for n, d in known.items()}


def shown(value: object) -> str:
    """Return a value as an error shows it: in one short line, with control characters escaped.

    >>> shown(0.5), shown("a" * 3), shown("\\x1b[2J")
    ('0.5', "'aaa'", "'\\\\x1b[2J'")
    """
    try:
        return str(value) if isinstance(value, numbers.Real) else _SHORT.repr(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        return "a number of more than 4300 digits"


def _wanted(value: object, hint: object) -> str:
    """Return what a setting must be if the value is invalid; empty if it is valid."""
    kind, notes = (hint, ()) if typing.get_origin(hint) is not Annotated else (hint.__origin__, hint.__metadata__)
    if typing.get_origin(kind) is tuple:
        return _wanted_list(value, typing.get_args(kind))
    note = next((one for one in notes if isinstance(one, (Range, OneOf, Text))), None)
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False."
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, number) and not isinstance(value, bool) and (note is None or note.holds(value)):
            return ""
        words = f"a{' whole' if kind is int else ''} number {note or ''}".rstrip()
        return f"{words}. {note.why if note else ''}".rstrip()
    if kind is str and isinstance(note, OneOf):
        fits = isinstance(value, str) and (value in note.known or (note.none and not value))
        return "" if fits else f"one of: {', '.join(note.known)}{', or empty' if note.none else ''}."
    return _wanted_text(value, note or Text()) if kind is str else ""


def _wanted_list(value: object, kinds: tuple) -> str:
    """Return what a list must be; as `_wanted`."""
    if not isinstance(value, (tuple, list)):
        return "a list."
    if kinds[-1] is Ellipsis:
        if len(value) > MOST_PARTS:
            return f"a list of at most {MOST_PARTS}."
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return f"a list of {len(kinds)}."
    wanted = next((words for one, kind in zip(value, kinds, strict=True) if (words := _wanted(one, kind))), "")
    return f"a list, each part of it {wanted}" if wanted else ""


def _wanted_text(value: object, note: Text) -> str:
    """Return what a text must be; as `_wanted`."""
    if not isinstance(value, str):
        return "text."
    odd = {"Cc"} if note.path else {"Cc", "Cs"}
    if any(unicodedata.category(c) in odd and not (c.isspace() and not note.path) for c in value):
        return "text without control characters."
    return f"text of at most {note.most} characters." if len(value) > note.most else ""


class Config:
    """Base of all configs."""

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def for_base(cls, base: str, **overrides):
        """Return the settings that suit a base, with the given ones overridden; None keeps the preset's value.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting does not exist or contradicts another.
        """
        chosen = {"base": base, **find_base(base).presets[cls.__name__]}
        return cls.with_options(**chosen | {k: v for k, v in overrides.items() if v is not None})

    @classmethod
    def with_options(cls, **options):
        """Return the default settings, with the given ones overridden; None keeps the default.

        Raises:
            BadConfig: a setting does not exist or contradicts another.
        """
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        demand(
            not unknown,
            f"{cls.__name__} has no setting {', '.join(unknown)}.",
            f"Its settings are: {', '.join(cls.__dataclass_fields__)}.",
            "Correct the name.",
        )
        return cls(**{name: value for name, value in options.items() if value is not None})
