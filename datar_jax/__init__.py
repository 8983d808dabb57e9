"""DATAR-JAX: audio event recognition with deformable attention, in JAX.

import datar_jax

model = datar_jax.load("runs/mine")
model.top_k(model("dog.wav"))  # [("bark", 0.93), ...]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from datar_jax.version import __version__

if TYPE_CHECKING:
    from datar_jax.config import Config
    from datar_jax.config.loader import load_config
    from datar_jax.export.exporter import export
    from datar_jax.inference.classifier import AudioClassifier, load
    from datar_jax.inference.embeddings import embed_files
    from datar_jax.inference.events import EventSettings
    from datar_jax.inference.predict import predict_files
    from datar_jax.models.datar import DATAR
    from datar_jax.training.trainer import train_and_evaluate

# Imported at first use: jax takes seconds, and `datar-jax --help` needs none of it.
_HOME = {
    "AudioClassifier": "datar_jax.inference.classifier",
    "Config": "datar_jax.config",
    "DATAR": "datar_jax.models.datar",
    "EventSettings": "datar_jax.inference.events",
    "embed_files": "datar_jax.inference.embeddings",
    "export": "datar_jax.export.exporter",
    "load": "datar_jax.inference.classifier",
    "load_config": "datar_jax.config.loader",
    "predict_files": "datar_jax.inference.predict",
    "train_and_evaluate": "datar_jax.training.trainer",
}

__all__ = [
    "DATAR",
    "AudioClassifier",
    "Config",
    "EventSettings",
    "__version__",
    "embed_files",
    "export",
    "load",
    "load_config",
    "predict_files",
    "train_and_evaluate",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
