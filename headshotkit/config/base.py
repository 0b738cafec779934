"""What all configs share."""

from __future__ import annotations

from headshotkit.bases import find_base
from headshotkit.errors import BadConfig


def demand(holds: bool, happened: str, why: str, next_step: str) -> None:
    """Raises BadConfig unless the relation holds."""
    if not holds:
        raise BadConfig(happened, why, next_step)


def demand_seed(config: Config) -> None:
    """Raises BadConfig where the seed is negative."""
    demand(
        config.seed >= 0,
        f"seed is {config.seed}.",
        "Everything random comes from it, and numpy takes none below 0; there is no seed that means any.",
        f"Set {type(config).__name__}.seed to 0 or more.",
    )


def demand_known(config: Config, **known: tuple[str, ...]) -> None:
    """Raises BadConfig unless each of the named settings is one of those that are known."""
    for name, choices in known.items():
        value = getattr(config, name)
        demand(
            value in choices,
            f"{name} is {value!r}.",
            f"Known are: {', '.join(choices)}.",
            f"Set {type(config).__name__}.{name} to one of them.",
        )


class Config:
    """What all configs share."""

    @classmethod
    def for_base(cls, base: str, **overrides):
        """The settings that suit a base, with the given ones in their place; None means: as the preset has it.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting does not exist, or contradicts another.
        """
        chosen = {"base": base, **find_base(base).presets[cls.__name__]}
        return cls.with_options(**chosen | {k: v for k, v in overrides.items() if v is not None})

    @classmethod
    def with_options(cls, **options):
        """The default settings, with the given ones in their place; None means: the default.

        Raises:
            BadConfig: a setting does not exist, or contradicts another.
        """
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        demand(
            not unknown,
            f"{cls.__name__} has no setting {', '.join(unknown)}.",
            f"Its settings are: {', '.join(cls.__dataclass_fields__)}.",
            "Correct the name.",
        )
        return cls(**{name: value for name, value in options.items() if value is not None})
