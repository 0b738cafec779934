"""All settings, each with its unit, its range and its effect.

A config is frozen. Relations between settings are checked when it is created, and the error names both settings.
`for_base` returns the settings that suit a base; any of them can be overridden by name.
"""

from headshotkit.config.base import Config
from headshotkit.config.dataset import ASPECTS, AUGMENTS, CAPTIONERS, CLASS_WORDS, SDXL_SIZES_PX, DatasetConfig
from headshotkit.config.gate import GateConfig
from headshotkit.config.pick import PickConfig
from headshotkit.config.render import SAMPLERS, RenderConfig, RestoreConfig
from headshotkit.config.train import METHODS, OPTIMIZERS, UNUSED, TrainConfig

__all__ = [
    "ASPECTS", "AUGMENTS", "CAPTIONERS", "CLASS_WORDS", "METHODS", "OPTIMIZERS", "SAMPLERS", "SDXL_SIZES_PX", "UNUSED",
    "Config", "DatasetConfig", "GateConfig", "PickConfig", "RenderConfig", "RestoreConfig", "TrainConfig",
]  # fmt: skip
