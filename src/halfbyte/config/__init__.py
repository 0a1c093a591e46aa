"""The settings tree: what a recipe may say, how it is read, and where each value came from."""

from halfbyte.config.load import Resolved, load_config, resolve, write_config
from halfbyte.config.settings import (
    Config,
    DataSettings,
    EvalSettings,
    LoraSettings,
    ModelSettings,
    TrainSettings,
)

__all__ = [
    "Config",
    "DataSettings",
    "EvalSettings",
    "LoraSettings",
    "ModelSettings",
    "Resolved",
    "TrainSettings",
    "load_config",
    "resolve",
    "write_config",
]
