"""Exports trained models: weights or whole programs, for use without this package's training code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datar_jax.export.exporter import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    """Imports `export` on first use: reading an exported program does not need the writer."""
    if name == "export":
        from datar_jax.export.exporter import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
