"""Typed, frozen settings of a run, and command-line overrides for them. Imports no jax.

A configuration is a tree of frozen structs; every struct checks itself when it is built, and `Config` checks what its
parts must agree on. An error is one line: the field, its value, and what to give instead.
"""

from datar_jax.config.audio import AudioConfig
from datar_jax.config.base import ConfigError, StrictStruct
from datar_jax.config.data import DataConfig
from datar_jax.config.experiment import Config
from datar_jax.config.mixers import DeformableSettings, NeighborhoodSettings, WindowSettings
from datar_jax.config.model import MODELS, ModelConfig, datar_base, datar_nano, datar_small, datar_tiny
from datar_jax.config.training import AugmentConfig, InitConfig, MeshConfig, OptimConfig, TrainConfig

__all__ = [
    "MODELS",
    "AudioConfig",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DeformableSettings",
    "InitConfig",
    "MeshConfig",
    "ModelConfig",
    "NeighborhoodSettings",
    "OptimConfig",
    "StrictStruct",
    "TrainConfig",
    "WindowSettings",
    "datar_base",
    "datar_nano",
    "datar_small",
    "datar_tiny",
]
