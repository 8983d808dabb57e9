"""Transfers the weights of a trained model to a new one for fine-tuning, and accounts for every parameter.

Shapes: C channels, S classes; maps (F, T).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.traverse_util as tree
import jax
import numpy as np

from datar_jax.checkpoints.model_info import ModelInfo
from datar_jax.checkpoints.resize_tables import resize_table, resize_window_table
from datar_jax.config import ConfigError
from datar_jax.labels import class_names

MOST = 6  # names in one line of an account


@dataclass(frozen=True)
class Transfer:
    """Transferred values, by parameter name of the new model.

    Attributes:
      values: numpy arrays of the new shapes.
      classes: for each class of the new head the class of the old one whose column it takes, or -1.
      resized: names, old and new shapes.
      left: parameters that only the source model has.
      new: parameters that are newly initialized.
    """

    values: dict[str, np.ndarray]
    classes: np.ndarray
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def account(self, labels: Sequence[str]) -> list[str]:
        """Lines for the log: what was loaded, resized, left out and newly initialized."""
        kept = len(self.values) - len(self.resized)
        known = [label for label, source in zip(labels, self.classes) if source >= 0]
        fresh = [label for label, source in zip(labels, self.classes) if source < 0]
        shapes = [f"{name} {_shape(old)} to {_shape(now)}" for name, (old, now) in self.resized.items()]
        return [
            f"loaded: {kept} parameters as they are" + (f", {len(shapes)} resized: {_some(shapes)}" if shapes else ""),
            f"head: {len(known)} of {len(labels)} classes taken over by name"
            + (f", new: {_some(fresh)}" if fresh else ""),
            f"left out: {_some(self.left) or 'nothing'}; newly made: {_some(self.new) or 'nothing'}",
        ]


def transfer(params: Any, source: ModelInfo, like: Any, target: ModelInfo) -> Transfer:
    """Fits the parameters of one model to another of the same form, whatever its mels, window, hop and classes.

    Position tables keep their meaning: in time a table of our grid is read in the same seconds, in frequency in the
    same share of the mel axis; one of a published grid is resized with its map. Learned signals are resized as they are
    for a clip of another length. A class of the same name (and head) keeps its column of the head.

    Args:
      params: the other model's tree.
      source: its description.
      like: the new model's tree, or its shapes.
      target: the new model's description.

    Raises:
      ConfigError: a parameter that only one of the two has, or of another shape, and that neither
        `init.allow_missing` nor `init.allow_unexpected` names.
    """
    init = target.config.init
    old = {name: np.asarray(leaf) for name, leaf in tree.flatten_dict(params, sep="/").items()}
    wanted = {name: tuple(leaf.shape) for name, leaf in tree.flatten_dict(like, sep="/").items()}
    left = [name for name in old if name not in wanted]
    new = [name for name in wanted if name not in old]
    _expected("init.allow_unexpected", init.allow_unexpected, left, f"{init.source} has", "this model has not")
    _expected("init.allow_missing", init.allow_missing, new, "this model has", f"{init.source} has not")

    fit = _Resize(source, target)
    values, resized, wrong = {}, {}, []
    for name, shape in wanted.items():
        if name in new or name.startswith("head/"):
            continue
        value = fit(name, old[name], shape)
        if value.shape != shape:
            wrong.append(f"{name} {_shape(value.shape)}, here {_shape(shape)}")
            continue
        if value.shape != old[name].shape:
            resized[name] = (old[name].shape, value.shape)
        values[name] = value
    if wrong:
        raise ConfigError(
            f"init.from={init.source!r}: other sizes than this model's: {_some(wrong)}; give model.* as it is there"
        )
    return Transfer(values, _same_classes(source, target), resized, tuple(left), tuple(new))


class _Resize:
    """Resizes parameters whose shape depends on the size of the map."""

    def __init__(self, source: ModelInfo, target: ModelInfo) -> None:
        before, now = source.config, target.config
        self._grid, self._models = before.model.deformable.grid, (before.model, now.model)
        self._maps = (
            before.model.maps(before.audio.n_mels, source.frames),
            now.model.maps(now.audio.n_mels, target.frames),
        )
        hop = (before.audio.hop_length / before.audio.sample_rate) / (now.audio.hop_length / now.audio.sample_rate)
        self._scale = (now.audio.n_mels / before.audio.n_mels, hop)  # new pixels for each old one

    def __call__(self, name: str, value: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
        """Returns `value` resized for the new model; other parameters are returned unchanged."""
        found = re.match(r"stage_(\d+)_(\d+)/", name)
        stage = int(found[1]) if found else 0
        if name.endswith("mixer/table") and value.ndim == 3 and self._models[0].deformable.position == "table":
            before, now = self._maps[0][stage], self._maps[1][stage]
            return resize_table(value, before, now, self._grid, self._scale)
        if found and name.endswith("mixer/table") and len(wanted) == 2:
            mixers = [model.mixer(model.spec[stage][int(found[2])]) for model in self._models]
            before, now = (mixer.sizes[stage] for mixer in mixers)  # type: ignore[attr-defined]
            return resize_window_table(value, before, now)
        if name.endswith("adaptor/signal") and value.shape[2:] == wanted[2:]:
            return np.asarray(jax.image.resize(value, wanted, "linear"))
        return value


def _same_classes(source: ModelInfo, target: ModelInfo) -> np.ndarray:
    """For each new class the old one of the same name in the head of the same name, or -1."""
    known, wanted = (class_names(model.labels, model.heads) for model in (source, target))
    number = {name: i for i, name in enumerate(known)}
    return np.array([number.get(name, -1) for name in wanted], np.int64)


def _expected(field: str, pattern: str, names: list[str], has: str, has_not: str) -> None:
    """Refuses parameters that only one side has, but for those that were named."""
    stray = [name for name in names if not (pattern and re.search(pattern, name)) and not name.startswith("head/")]
    if stray:
        raise ConfigError(f"{field}={pattern!r}: {has} {_some(stray)}, which {has_not}; name them if that is meant")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
