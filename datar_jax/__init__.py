"""DATAR-JAX: audio event recognition with deformable attention, in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datar_jax.inference.classifier import load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` brings jax with it: only those who ask for it wait for that."""
    if name == "load":
        from datar_jax.inference.classifier import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
