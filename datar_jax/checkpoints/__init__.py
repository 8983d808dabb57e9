"""Models and train states on disk, in every format that is read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datar_jax.checkpoints.manager import CheckpointManager
    from datar_jax.checkpoints.model_info import ModelInfo
    from datar_jax.checkpoints.pretrained import load_pretrained

__all__ = ["CheckpointManager", "ModelInfo", "load_pretrained"]


def __getattr__(name: str) -> Any:
    """Imports public names on first use: orbax takes seconds to import, and loading an export does not need it."""
    if name == "CheckpointManager":
        from datar_jax.checkpoints.manager import CheckpointManager

        return CheckpointManager
    if name == "ModelInfo":
        from datar_jax.checkpoints.model_info import ModelInfo

        return ModelInfo
    if name == "load_pretrained":
        from datar_jax.checkpoints.pretrained import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
