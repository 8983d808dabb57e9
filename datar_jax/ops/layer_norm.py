"""LayerNorm as a pure function with its own derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-5  # of every LayerNorm


@jax.custom_vjp
def layer_norm(x_xC: Array, scale_C: Array, bias_C: Array) -> Array:
    """Normalized over channels, scaled, shifted; `(..., C)`. Its derivative keeps the input and two numbers a row."""
    return _layer_norm_forward(x_xC, scale_C, bias_C)[0]


def _layer_norm_forward(x_xC: Array, scale_C: Array, bias_C: Array) -> tuple[Array, tuple[Array, ...]]:
    mean = jnp.full_like(scale_C, 1 / len(scale_C))
    mean_x1 = _weighted_channel_sum(x_xC, mean)
    inverse_x1 = jax.lax.rsqrt(_weighted_channel_sum(jnp.square(x_xC - mean_x1), mean) + EPSILON)
    normal_xC = (x_xC - mean_x1) * inverse_x1
    return normal_xC * _like(x_xC, scale_C) + _like(x_xC, bias_C), (x_xC, mean_x1, inverse_x1, scale_C)


def _layer_norm_backward(saved: tuple[Array, ...], above_xC: Array) -> tuple[Array, Array, Array]:
    x_xC, mean_x1, inverse_x1, scale_C = saved
    normal_xC, mean = (x_xC - mean_x1) * inverse_x1, scale_C / len(scale_C)
    along = _weighted_channel_sum(above_xC * normal_xC, mean)
    d_x = inverse_x1 * (above_xC * _like(x_xC, scale_C) - _weighted_channel_sum(above_xC, mean) - normal_xC * along)
    return d_x, _row_sum(above_xC * normal_xC), _row_sum(above_xC)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _like(x_xC: Array, weight_C: Array) -> Array:
    """With as many axes as `x`, `(1, ..., C)`."""
    return jnp.expand_dims(weight_C, tuple(range(x_xC.ndim - 1)))


def _weighted_channel_sum(x_xC: Array, weight_C: Array) -> Array:
    """Sum over the channels, `(..., 1)`.

    On a CPU a product: XLA draws what comes before a sum into it, and writes every broadcast of that to memory
    (measured: the derivative of a LayerNorm of 8 x 16 x 128 rows of 128 channels, 15 ms; as products 2).
    """

    def product(x_xC: Array, weight_C: Array) -> Array:
        return (x_xC.reshape(-1, len(weight_C)) @ weight_C[:, None]).reshape(*x_xC.shape[:-1], 1)

    def total(x_xC: Array, weight_C: Array) -> Array:
        return (x_xC * _like(x_xC, weight_C)).sum(-1, keepdims=True)

    return jax.lax.platform_dependent(x_xC, weight_C, cpu=product, default=total)


def _row_sum(x_xC: Array) -> Array:
    """Sum over all rows, `(C,)`; on a CPU a product, as above."""

    def product(x_xC: Array) -> Array:
        rows = x_xC.reshape(-1, x_xC.shape[-1])
        return (jnp.ones((1, len(rows)), x_xC.dtype) @ rows)[0]

    return jax.lax.platform_dependent(x_xC, cpu=product, default=lambda x: x.sum(tuple(range(x.ndim - 1))))
