"""All settings, each written once: its type, range and default in its field, and what it does in the docstring below.

A config is frozen. Relations between settings are checked when it is created, and the error names both settings.
`for_base` returns the settings that suit a base; any of them can be overridden by name.
"""

from headshotkit.config.base import Config
from headshotkit.config.check import CheckConfig
from headshotkit.config.generate import SAMPLERS, GenerateConfig
from headshotkit.config.pick import PickConfig
from headshotkit.config.prepare import ASPECTS, CLASS_WORDS, SDXL_SIZES_PX, TOKEN, PrepareConfig
from headshotkit.config.restore import RestoreConfig
from headshotkit.config.run_settings import Resolved, RunSettings, resolve
from headshotkit.config.tools import CropConfig, EvaluateConfig, LeakConfig, PlanConfig, TokenConfig
from headshotkit.config.train import METHODS, UNUSED, TrainConfig

__all__ = [
    "ASPECTS", "CLASS_WORDS", "METHODS", "SAMPLERS", "SDXL_SIZES_PX", "TOKEN", "UNUSED",
    "Config", "CropConfig", "PrepareConfig", "EvaluateConfig", "CheckConfig", "PickConfig", "PlanConfig",
    "GenerateConfig", "LeakConfig", "Resolved", "RestoreConfig", "RunSettings", "TokenConfig", "TrainConfig", "resolve",
]  # fmt: skip
