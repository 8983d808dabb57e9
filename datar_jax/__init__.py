"""DATAR-JAX: audio event recognition with deformable attention, in JAX.

import datar_jax

model = datar_jax.load("runs/mine")
model.top_k(model("dog.wav"))  # [("bark", 0.93), ...]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datar_jax.version import __version__

if TYPE_CHECKING:
    from datar_jax import export
    from datar_jax.config import Config
    from datar_jax.config.loader import load_config
    from datar_jax.inference.classifier import AudioClassifier, load
    from datar_jax.inference.embeddings import embed_files
    from datar_jax.inference.events import EventSettings
    from datar_jax.inference.predict import predict_files
    from datar_jax.models.datar import DATAR
    from datar_jax.training.trainer import train_and_evaluate

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
    """Imports a public name at its first use: jax takes seconds, and `datar-jax --help` needs none of it."""
    if name == "Config":
        from datar_jax.config import Config

        return Config
    if name == "load_config":
        from datar_jax.config.loader import load_config

        return load_config
    if name == "export":  # the package: importing it sets this name, so that a function of this name would not stay
        import datar_jax.export as package

        return package
    if name == "AudioClassifier":
        from datar_jax.inference.classifier import AudioClassifier

        return AudioClassifier
    if name == "load":
        from datar_jax.inference.classifier import load

        return load
    if name == "embed_files":
        from datar_jax.inference.embeddings import embed_files

        return embed_files
    if name == "EventSettings":
        from datar_jax.inference.events import EventSettings

        return EventSettings
    if name == "predict_files":
        from datar_jax.inference.predict import predict_files

        return predict_files
    if name == "DATAR":
        from datar_jax.models.datar import DATAR

        return DATAR
    if name == "train_and_evaluate":
        from datar_jax.training.trainer import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
