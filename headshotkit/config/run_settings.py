"""The settings that a person chooses for a run: those of all stages, each under one name, all optional."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

from pydantic import Field, create_model

from headshotkit.config.base import Config, Settings
from headshotkit.config.bases import find_base
from headshotkit.config.check import CheckConfig
from headshotkit.config.generate import GenerateConfig
from headshotkit.config.pick import PickConfig
from headshotkit.config.prepare import PrepareConfig
from headshotkit.config.restore import RestoreConfig
from headshotkit.config.tools import CropConfig, EvaluateConfig, LeakConfig, PlanConfig, TokenConfig
from headshotkit.config.train import TrainConfig
from headshotkit.core.errors import BadConfig

CONFIGS: dict[str, type[Config]] = {
    "check": CheckConfig,
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "pick": PickConfig,
    "generate": GenerateConfig,
    "restore": RestoreConfig,
    "evaluate": EvaluateConfig,
}
"""Command -> the settings of its stage."""
TOOLS = (CropConfig, LeakConfig, PlanConfig, TokenConfig)
"""Settings of the commands that are no stage of a run."""
SHARED = ("base", "seed", "minutes")
"""Settings that mean the same in all stages."""
BY_CODE_ONLY = ("captioner_weights",)
"""Settings that a run does not take: it would write down a private path, and could not find the folder again."""


def _names() -> dict[str, tuple[tuple[type[Config], str], ...]]:
    """Return the name of each setting in a run -> the configs and fields that it sets.

    If two stages have a setting of one name, it carries the command's name: train_batch, generate_batch.
    """
    times = Counter(name for kind in CONFIGS.values() for name in kind.model_fields)
    found: dict[str, tuple] = {}
    for command, kind in CONFIGS.items():
        for name in (name for name in kind.model_fields if name not in BY_CODE_ONLY):
            own = name if times[name] == 1 or name in SHARED else f"{command}_{name}"
            found[own] = (*found.get(own, ()), (kind, name))
    return found


NAMES = _names()
"""Name in a run -> (config, field) of the stages that use it."""


def flag(name: str) -> str:
    """Return the command line's word for a setting.

    >>> flag("sampler_steps")
    '--sampler-steps'
    """
    return f"--{name.replace('_', '-')}"


def in_options(text: str) -> str:
    """Return an error's text with options in place of a config's fields.

    >>> in_options("Lower TrainConfig.batch or set PrepareConfig.token.")
    'Lower --train-batch or set --token.'
    """
    flags = {f"{home.__name__}.{field}": flag(name) for name, homes in NAMES.items() for home, field in homes}
    flags |= {f"{kind.__name__}.{name}": flag(name) for kind in TOOLS for name in kind.model_fields}
    return re.sub(r"\b[A-Z][a-z]+Config\.[a-z_]+\b", lambda found: flags.get(found[0], found[0]), text)


class _Chosen(Settings):
    """The methods of RunSettings."""

    def of(self, kind: type[Config]) -> dict:
        """Return the settings that were chosen for a stage, and what follows from them, by the config's names."""
        chosen = {
            field: value
            for name, homes in NAMES.items()
            for home, field in homes
            if home is kind and field != "base" and (value := getattr(self, name)) is not None
        }
        return kind.implied(chosen) | chosen

    @classmethod
    def _place(cls, name: str) -> str:
        return flag(name)

    @classmethod
    def _example(cls, name: str) -> object:
        (kind, field), *_ = NAMES[name]
        return kind.model_fields[field].default


def left_open(kind: type[Config], field: str) -> tuple[object, object]:
    """Return a setting's type and field for a model in which it may be left open."""
    known = kind.model_fields[field]
    notes = [*known.metadata]
    if known.json_schema_extra:  # the words that are allowed
        notes.append(Field(json_schema_extra=known.json_schema_extra))
    hint = Annotated[(known.annotation, *notes)] if notes else known.annotation
    return Optional[hint], Field(None, description=known.description)  # noqa: UP045 (a type made at run time)


RunSettings = create_model(
    "RunSettings",
    __base__=_Chosen,
    __doc__="What a person chose for a run; None leaves a setting to the plan, the run's beginning, or the preset.",
    photos=(Path | str | None, None),
    **{name: left_open(*homes[0]) for name, homes in NAMES.items()},
)


@dataclass(frozen=True)
class Resolved:
    """The settings of a stage, and for each of them where its value comes from.

    origins: name -> "you", "plan", "the run", "preset NAME" or "default".
    """

    config: Config
    origins: dict[str, str]

    def lines(self, width: int = 98) -> list[str]:
        """Return the settings that the person did not set and that differ from the defaults, by origin.

        >>> from headshotkit.config import TrainConfig
        >>> resolve(TrainConfig, "mini", RunSettings(steps=5, rank=8)).lines()[0][:38]
        'preset mini: targets all, batch 4, lea'
        """
        sources: dict[str, list[str]] = {}
        for name, origin in self.origins.items():
            if origin not in ("you", "default"):
                value = getattr(self.config, name)
                words = f"{value:g}" if isinstance(value, float) else str(value)
                sources.setdefault(origin, []).append(f"{name} {words}")
        words = {"plan": "set by the plan", "the run": "kept from the run's start"}
        text = "; ".join(f"{words.get(origin, origin)}: {', '.join(names)}" for origin, names in sources.items())
        return textwrap.wrap(text, width)


def resolve(kind: type[Config], base: str, chosen: RunSettings, planned: dict | None = None,
            begun: dict | None = None) -> Resolved:  # fmt: skip
    """Return a stage's settings: the base's preset, overridden by what the run began with, then by a plan's, then by
    the person's.

    Args:
        planned: a plan's settings.
        begun: settings that the stage began with.
    Raises:
        UnknownBase: no base has that name.
        BadConfig: a setting contradicts another.
    """
    own, planned, begun = chosen.of(kind), planned or {}, begun or {}
    values = begun | planned | own
    of_base = "base" in kind.model_fields
    preset = kind.preset(base, **values) if of_base else {}
    try:
        config = kind.for_base(base, **values) if of_base else kind.with_options(**values)
    except BadConfig as error:
        raise BadConfig(*(in_options(text) for text in (error.happened, error.why, error.next_step))) from error
    origins, like = {}, find_base(base).like or base if preset else base
    for name, field in kind.model_fields.items():
        usual = preset.get(name, field.default)
        if name == "base" or name in own:
            origins[name] = "you"
        elif name in planned:
            origins[name] = "plan"
        elif name in begun and begun[name] != usual:
            origins[name] = "the run"
        else:
            origins[name] = f"preset {like}" if usual != field.default else "default"
    return Resolved(config, origins)
