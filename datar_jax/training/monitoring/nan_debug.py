"""Locates the first non-finite value: in a clip, in a layer, or only in the gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from datar_jax.models.spec import Batch, ModelSpec, spectrograms
from datar_jax.training.sharding import replicated
from datar_jax.training.train_step import TrainState, draw, loss_and_gradient


def diagnose(spec: ModelSpec, mesh: Mesh, state: TrainState, batch: Batch, names: list[str]) -> str:
    """Runs a step's forward and backward pass again, with its own random draws, and looks at every layer.

    With `train.grad_accum_steps`, the forward pass is one over the whole batch: it drops other paths than the step did.

    Args:
      spec: static.
      mesh: on which the state lies.
      state: that the step began with; `step` is its number before it.
      batch: of the step, on the mesh, in decibels.
      names: of its B clips.

    Returns:
      A clause in English: where values that are not finite begin, and what to do.
    """
    forward, order = _forward(spec, mesh)
    found = jax.device_get(forward(state, batch))
    lower = "lower optim.learning_rate"
    if bad := [name for name, fine in zip(names, found["clips"]) if not fine]:
        return f"the input is not finite in {', '.join(bad)}; repair or remove that, and delete the feature cache"
    if not found["drawn"]:
        return "the input is finite, but not after augmentation; mend the settings under augment"
    first = next((name or "the loss" for name in order if not found["layers"][name]), "")
    broken = [name for name, fine in found["params"].items() if not fine]
    weights = f" (weights that are not finite: {_some(broken)})" if broken else ""
    if first:
        return f"values that are not finite begin in the layer {first}{weights}; {lower}"
    grads = jax.device_get(_backward(spec, mesh)(state, batch))
    if bad := [name for name, fine in grads.items() if not fine]:
        return f"the forward pass is finite, the gradient is not, in {_some(bad)}; {lower}"
    return f"run again, with the weights of now, it is finite{weights}; {lower}"


@cache
def _forward(spec: ModelSpec, mesh: Mesh) -> tuple[Callable[[TrainState, Batch], dict[str, Any]], list[str]]:
    """Finiteness of everything before the gradient, and layers in order of their outputs.

    That order, which a tree that goes through jit would lose, is known as soon as the function was called. Layers
    inside of others come before them.
    """
    order: list[str] = []

    def note(module: nn.Module, method: str) -> bool:
        if method != "__call__":
            return False
        order.append("/".join(module.path))
        return True

    def forward(state: TrainState, batch: Batch) -> dict[str, Any]:
        drawn, key = draw(spec, state, batch)
        _, kept = spec.model(train=True).apply(
            {"params": state.params},
            drawn["mel"],
            drawn["frames"],
            rngs={"dropout": key},
            capture_intermediates=note,
            mutable=["intermediates"],
        )
        return {
            "clips": jnp.isfinite(spectrograms(spec, batch)["mel"]).all((1, 2)),
            "drawn": _finite(drawn),
            "layers": {name: _finite(_at(kept["intermediates"], name)) for name in order},
            "params": _by_name(state.params),
        }

    return jax.jit(forward, out_shardings=replicated(mesh)), order


@cache
def _backward(spec: ModelSpec, mesh: Mesh) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """Which parameters have a finite gradient."""

    def backward(state: TrainState, batch: Batch) -> dict[str, Array]:
        drawn, key = draw(spec, state, batch)
        return _by_name(loss_and_gradient(spec, state.params, drawn, key)[1])

    return jax.jit(backward, out_shardings=replicated(mesh))


def _finite(tree: Any) -> Array:
    """Whether all numbers are."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _by_name(tree: Any) -> dict[str, Array]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _finite(leaf) for path, leaf in paths}


def _at(intermediates: dict[str, Any], name: str) -> Any:
    """The output of the layer of that name."""
    for part in name.split("/") if name else ():
        intermediates = intermediates[part]
    return intermediates["__call__"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
