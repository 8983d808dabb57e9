"""Flax modules of DATAR and what is computed about them. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datar_jax.models.datar import DATAR, create_model
    from datar_jax.models.flops import count_parameters, macs, macs_per_clip
    from datar_jax.models.mixers import MIXERS
    from datar_jax.models.spec import Task

__all__ = ["DATAR", "MIXERS", "Task", "count_parameters", "create_model", "macs", "macs_per_clip"]

_MODULES = {
    "DATAR": "datar",
    "create_model": "datar",
    "MIXERS": "mixers",
    "Task": "spec",
    "count_parameters": "flops",
    "macs": "flops",
    "macs_per_clip": "flops",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
