"""A parameter that is added to every example, whose gradient is a sum over all of them."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def add_bias(x_xC: Array, bias_C: Array) -> Array:
    """`x + bias` for a bias of the last axes of `x`, dtype of `x`; added, and its gradient summed, in float32 or wider.

    A sum in bfloat16 stalls: XLA on a CPU adds one row after another, and 256 + 1 is 256 there.
    """
    wide = jnp.promote_types(x_xC.dtype, jnp.float32)
    bias_C = jnp.expand_dims(bias_C.astype(wide), tuple(range(x_xC.ndim - bias_C.ndim)))
    return (x_xC.astype(wide) + bias_C).astype(x_xC.dtype)
