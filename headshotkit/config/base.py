"""The base of all settings: pydantic models whose fields hold type, default, range and one sentence each.

Whatever lists settings reads the fields: the command line, the notebook panel, range errors and `headshotkit settings`.
"""

from __future__ import annotations

import functools
import json
import numbers
import reprlib
import typing
import unicodedata
from typing import Annotated, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)

from headshotkit.config.bases import find_base, stored_name
from headshotkit.core.errors import BadConfig

MOST_PARTS = 1000
"""Longest list in a setting."""
MOST_LETTERS = 4096
"""Longest text, characters; most systems allow no longer path."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _visible(text: str) -> str:
    """Refuse control characters, which a terminal would act on, and halves of characters."""
    if any(unicodedata.category(c) in ("Cc", "Cs") and not c.isspace() for c in text):
        raise ValueError("control characters")
    return text


def _path(text: object, _check: typing.Callable) -> str:
    """Refuse what is no path. It may hold bytes that are no characters, which pydantic's own check refuses."""
    if not isinstance(text, str) or len(text) > MOST_LETTERS or any(unicodedata.category(c) == "Cc" for c in text):
        raise ValueError("no path")
    return text


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Size = Annotated[int, Field(ge=16, le=4096, multiple_of=8)]
Batch = Annotated[int, Field(ge=1, le=64)]
Text = Annotated[str, Field(max_length=MOST_LETTERS), AfterValidator(_visible)]
BaseName = Annotated[Text, AfterValidator(stored_name)]
"""A base; the path of a folder or a file becomes the name that a run may hold."""
FilePath = Annotated[str, Field(max_length=MOST_LETTERS), WrapValidator(_path)]
Minutes = Annotated[float, Field(ge=0, le=100_000)]
Scale = Annotated[float, Field(ge=0, le=2)]


def stored_as(name: str, default: object) -> object:
    """Return a field that files of a run hold by another name than the code.

    Files keep their names, so that programs that read them, and runs of earlier versions, go on working.
    """
    return Field(default, serialization_alias=name)


def usually(low: float, high: float, step: float) -> object:
    """Return a note of a number's type: the range and the step of its slider in a panel, where most values lie."""
    return Field(json_schema_extra={"usual": (low, high, step)})


class Settings(BaseModel):
    """Base of all settings: frozen, strict about types, and unknown names are errors."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True,
        protected_namespaces=(),
    )  # fmt: skip
    BEFORE: ClassVar[dict] = {}
    """Settings that files of earlier versions lack -> the value by which those versions worked.

    A file leaves out a setting that has this value, so that a stage of an earlier version counts as done in the same
    way, and is not done again.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: object, check: typing.Callable) -> Self:
        """Turn pydantic's error into one that names the setting, its value, its range and the next step."""
        try:
            return check(values)
        except ValidationError as error:
            raise cls._error(values, error.errors(include_url=False, include_context=False)[0]) from error

    @field_validator("*", mode="before")
    @classmethod
    def _accept_lists(cls, value: object) -> object:
        value = _as_tuples(value)
        if isinstance(value, tuple) and len(value) > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS} parts")
        return value

    @classmethod
    def _error(cls, values: dict, problem: dict) -> BadConfig:
        """Return the error for pydantic's first problem with these values."""
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            unknown = ", ".join(sorted(shown_name(one) for one in set(values) - set(cls.model_fields)))
            known = ", ".join(cls.model_fields)
            return BadConfig(f"{cls.__name__} has no setting {unknown}.", f"Its settings are: {known}.",
                             "Correct the name.")  # fmt: skip
        if problem["type"] == "missing":
            return BadConfig(f"{name} is not set.", meaning(cls, name), f"Set {cls._place(name)}.")
        default = cls._example(name)
        example = "" if default in (None, "", ()) else f", for example to {default!r}"
        why = f"It must be {allowed(cls, name)}. {meaning(cls, name)}"
        return BadConfig(f"{name} is {shown(values[name])}.", why, f"Change {cls._place(name)}{example}.")

    @classmethod
    def _place(cls, name: str) -> str:
        """Return where a person changes a setting."""
        return f"{cls.__name__}.{name}"

    @classmethod
    def _example(cls, name: str) -> object:
        """Return a value that is allowed, or None."""
        field = cls.model_fields[name]
        return None if field.is_required() else field.default

    def replace(self, **changes) -> Self:
        """Return the settings with the given ones changed, checked again.

        Raises:
            BadConfig: a setting does not exist, is out of range, or contradicts another.
        """
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def to_dict(self) -> dict:
        """Return the settings as JSON types, by the names that files of a run use."""
        as_before = {name for name, value in self.BEFORE.items() if getattr(self, name) == value}
        return json.loads(json.dumps(self.model_dump(by_alias=True, exclude=as_before)))

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """Return the settings from a file of a run; unknown names are left out.

        Raises:
            BadConfig: a value is out of range or of another type.
        """
        return cls(**cls.BEFORE | cls.named(values))

    @classmethod
    def named(cls, values: dict) -> dict:
        """Return the settings of a file, by either name, by their names in the code; unknown ones are left out."""
        names = {name: name for name in cls.model_fields}
        names |= {field.serialization_alias or name: name for name, field in cls.model_fields.items()}
        return {names[stored]: _as_tuples(value) for stored, value in values.items() if stored in names}


class Config(Settings):
    """Base of the settings of a stage."""

    @classmethod
    def for_base(cls, base: str, **overrides) -> Self:
        """Return the settings that suit a base, with the given ones overridden; None keeps the preset's value.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting does not exist or contradicts another.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        return cls.with_options(**{"base": base, **cls.preset(base)} | given)

    @classmethod
    def preset(cls, base: str, **chosen) -> dict:
        """Return the settings that a base presets.

        Args:
            chosen: settings of the person that the preset depends on.
        Raises:
            UnknownBase: no base has that name.
        """
        return dict(find_base(base).presets.get(cls.__name__, {}))

    @classmethod
    def implied(cls, chosen: dict) -> dict:
        """Return the settings that follow from a person's choices if they are not chosen themselves."""
        return {}

    @classmethod
    def with_options(cls, **options) -> Self:
        """Return the default settings, with the given ones overridden; None keeps the default.

        Raises:
            BadConfig: a setting does not exist or contradicts another.
        """
        return cls(**{name: value for name, value in options.items() if value is not None})


def meaning(kind: type[Settings], name: str) -> str:
    """Return what a setting means: the docstring of its field, on one line."""
    return " ".join((kind.model_fields[name].description or "").split())


def allowed(kind: type[Settings], name: str) -> str:
    """Return the values that a setting allows, in words.

    >>> from headshotkit.config import TrainConfig
    >>> allowed(TrainConfig, "rank"), allowed(TrainConfig, "optimizer")
    ('a whole number from 1 to 1024', 'one of: auto, adamw, adamw8bit, prodigy')
    """
    return _words(_schema(kind)[name])


@functools.cache
def _schema(kind: type[Settings]) -> dict[str, dict]:
    """Return the JSON schema of each setting."""
    return kind.model_json_schema(by_alias=False)["properties"]


def schema_of(kind: type[Settings], name: str) -> dict:
    """Return the JSON schema of a setting: `enum`, `minimum`, `maximum`, and `usual` of a slider, if it has them."""
    return _plain(_schema(kind)[name])


def _plain(schema: dict) -> dict:
    """Return a schema without the None that stands for a setting left open."""
    kinds = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    return kinds[0] if kinds else schema


def _words(schema: dict) -> str:
    """Return the values that a JSON schema allows, in words.

    >>> _words({"anyOf": [{"const": "auto"}, {"type": "number", "minimum": 0}]})
    'auto, or a number from 0'
    """
    kinds = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(kinds) > 1:
        return ", or ".join(map(_words, kinds))
    schema = _plain(schema)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        known = [one for one in schema["enum"] if one]
        return f"one of: {', '.join(known)}{', or empty' if len(known) < len(schema['enum']) else ''}"
    match schema.get("type"):
        case "boolean":
            return "True or False"
        case "integer" | "number":
            return f"a {'whole ' * (schema['type'] == 'integer')}number{_range_words(schema)}"
        case "array":
            if parts := schema.get("prefixItems"):
                return f"a list of {len(parts)}: {', then '.join(_words(part) for part in parts)}"
            return f"a list, each part {_words(schema.get('items', {}))}"
    return f"text without control characters, at most {schema.get('maxLength', MOST_LETTERS)} characters"


def _range_words(schema: dict) -> str:
    """Return the range of a number, in words."""
    low = f" from {schema['minimum']}" if "minimum" in schema else ""
    low = f" above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else low
    high = f" to {schema['maximum']}" if "maximum" in schema else ""
    high = f" to below {schema['exclusiveMaximum']}" if "exclusiveMaximum" in schema else high
    multiple = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
    return f"{low}{high}{multiple}"


def _as_tuples(value: object) -> object:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, (list, tuple)) else value


def shown_name(name: object) -> str:
    """Return the name of a setting as an error shows it."""
    return name if isinstance(name, str) and name.isidentifier() else shown(name)


def shown(value: object) -> str:
    """Return a value as an error shows it: in one short line, with control characters escaped.

    >>> shown(0.5), shown("a" * 3), shown("\\x1b[2J")
    ('0.5', "'aaa'", "'\\\\x1b[2J'")
    """
    try:
        return str(value) if isinstance(value, numbers.Real) else _SHORT.repr(value)
    except ValueError:  # Python prints no number of more than 4300 digits
        return "a number of more than 4300 digits"
