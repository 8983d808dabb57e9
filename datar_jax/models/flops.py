"""Multiply-accumulates of a function, counted from its trace: matrix products and convolutions.

Element-wise work (norms, softmax, bilinear blending) is not counted, as is usual in this field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
from jax.extend import core

from datar_jax.config import ModelConfig
from datar_jax.models.datar import create_model


def macs(function: Callable[..., Any], *args: Any) -> int:
    """Multiply-accumulates of one call; of branches that depend on the platform, the most expensive counts."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def macs_per_clip(config: ModelConfig, classes: int, mels: int, frames: int) -> int:
    """Multiply-accumulates of the network for one clip of `frames` columns."""
    config = msgspec.structs.replace(config, remat=False)
    model = create_model(config, classes, mels, frames, sampler="gather")  # bilinear sampling counts as blending
    mel = jnp.zeros((1, mels, frames))
    params = jax.eval_shape(model.init, jax.random.key(0), mel)
    return macs(lambda p: model.apply(p, mel)[0], params)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_inner(equation.params))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, right = (_shape(operand) for operand in equation.invars)
            if math.prod(right) > math.prod(left[i] for i in contracted):  # else a sum as a product, as in a LayerNorm
                total += math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            output_channels = equation.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // kernel[output_channels]
        elif name == "cond":
            total += max(map(_count, inner))
        elif name == "scan":
            total += equation.params["length"] * sum(map(_count, inner))
        else:
            total += sum(map(_count, inner))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner(params: dict[str, Any]) -> Any:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def count_parameters(params: Any) -> int:
    """Number of trainable values."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
