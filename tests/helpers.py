"""Sounds, small models and parameters that several test files use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from datar_jax import config as c
from datar_jax.labels import Head


def sound(audio, seconds=1.0, seed=0):
    """A chirp in noise that fades by 60 dB."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * audio.sample_rate)) / audio.sample_rate
    wave = 0.5 * np.sin(2 * np.pi * (200 + 900 * t) * t) + 0.05 * rng.standard_normal(t.size)
    return (wave * 10 ** (-3 * t / max(seconds, 1e-9))).astype(np.float32)


def noisy(params: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """Parameters far from their start, so that no zero hides a path."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [x + scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def build(module: Any, shape: tuple[int, ...], seed: int = 0) -> tuple[Any, np.ndarray]:
    """Noisy parameters of a module and an input for it."""
    x = np.random.default_rng(seed + 1).normal(size=shape).astype(np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return noisy(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params), seed), x


def golden_folders() -> list[Path]:
    """Folders with numbers of the official code: those that `DATAR_GOLDEN` names, or the one beside this checkout."""
    beside = Path(__file__).parents[2] / "shared" / "golden"
    return [Path(folder) for folder in os.environ.get("DATAR_GOLDEN", str(beside)).split(os.pathsep)]


def head(name: str, size: int) -> Head:
    """A classification head whose classes are `name 0`, `name 1` and so on."""
    return Head(name, tuple(f"{name} {i}" for i in range(size)))


# One deformable block: cheap to compile.
LONE = c.ModelConfig(
    dims=(8,),
    spec=("D",),
    heads=(2,),
    deformable=c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,)),
    adaptor="none",
)


def assert_one_line(error: Any, *parts: str) -> None:
    """The text of a caught exception is one line that holds every part."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, f"{part!r} is missing in: {text}"


def make_settings(kind: type, values: dict[str, Any]) -> Any:
    """Settings of a kind; a dict among the values stands for the settings of a mixer."""
    mixers = {field: type(getattr(c.ModelConfig(), field)) for field in ("window", "neighborhood", "deformable")}
    return kind(**{name: mixers[name](**x) if isinstance(x, dict) else x for name, x in values.items()})
