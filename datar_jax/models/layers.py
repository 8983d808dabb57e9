"""What every block is made of: Dense, depthwise convolution, LayerNorm, GELU, and what weights start from."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from datar_jax.ops.depthwise_conv import depthwise
from datar_jax.ops.fusion_barrier import unfused

EPSILON = 1e-5  # of every LayerNorm

linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # what the published DAT weights start from


def uniform_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform within +-1/sqrt(fan_in), the published start of kernels and biases alike."""

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return draw


def gelu(x: Array) -> Array:
    """Exact GELU; by erf, because the erfc of jax.nn.gelu costs a CPU twice as much forward."""
    return unfused(lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5))), x)


def dense(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    """A Dense layer, `(..., C)` to `(..., features)`."""
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=linear_init, dot_general=_product, name=name)


def _product(
    x_xC: Array, kernel_CxD: Array, _: Any, precision: Any = None, preferred_element_type: Any = None
) -> Array:
    """The product of a Dense layer as one of two matrices.

    Of a map with all its axes, the derivative by the kernel is a product over three axes at once, for which XLA writes
    the map to memory transposed.
    """
    axes = (((1,), (0,)), ((), ()))
    rows = x_xC.reshape(-1, x_xC.shape[-1])
    product = jax.lax.dot_general(rows, kernel_CxD, axes, precision, preferred_element_type)
    return product.reshape(*x_xC.shape[:-1], -1)


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution with bias; `identity` starts it at zero."""

    identity: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxFxTxC: Array) -> Array:
        c = x_BxFxTxC.shape[-1]
        start = nn.initializers.zeros if self.identity else nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", start, (3, 3, 1, c))[:, :, 0]
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return depthwise(x_BxFxTxC.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over channels (Ba et al., 2016), `(..., C)`; statistics in float32 or wider."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_xC: Array) -> Array:
        c = x_xC.shape[-1]
        scale, bias = self.param("scale", nn.initializers.ones, (c,)), self.param("bias", nn.initializers.zeros, (c,))
        wide = jnp.promote_types(x_xC.dtype, jnp.float32)
        return layer_norm(x_xC.astype(wide), scale.astype(wide), bias.astype(wide)).astype(self.dtype)


@jax.custom_vjp
def layer_norm(x_xC: Array, scale_C: Array, bias_C: Array) -> Array:
    """Normalised over channels, scaled, shifted; `(..., C)`. Its derivative keeps the input and two numbers a row."""
    return _layer_norm_forward(x_xC, scale_C, bias_C)[0]


def _layer_norm_forward(x_xC: Array, scale_C: Array, bias_C: Array) -> tuple[Array, tuple[Array, ...]]:
    mean = jnp.full_like(scale_C, 1 / len(scale_C))
    mean_x1 = _weighed(x_xC, mean)
    inverse_x1 = jax.lax.rsqrt(_weighed(jnp.square(x_xC - mean_x1), mean) + EPSILON)
    return (x_xC - mean_x1) * inverse_x1 * scale_C + bias_C, (x_xC, mean_x1, inverse_x1, scale_C)


def _layer_norm_backward(saved: tuple[Array, ...], above_xC: Array) -> tuple[Array, Array, Array]:
    x_xC, mean_x1, inverse_x1, scale_C = saved
    normal_xC, mean = (x_xC - mean_x1) * inverse_x1, scale_C / len(scale_C)
    along = _weighed(above_xC * normal_xC, mean)
    d_x = inverse_x1 * (above_xC * scale_C - _weighed(above_xC, mean) - normal_xC * along)
    return d_x, _total(above_xC * normal_xC), _total(above_xC)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _weighed(x_xC: Array, weight_C: Array) -> Array:
    """Sum over the channels, `(..., 1)`.

    On a CPU a product: XLA draws what comes before a sum into it, and writes every broadcast of that to memory
    (measured: the derivative of a LayerNorm of 8 x 16 x 128 rows of 128 channels, 15 ms; as products 2).
    """

    def product(x_xC: Array, weight_C: Array) -> Array:
        return (x_xC.reshape(-1, len(weight_C)) @ weight_C[:, None]).reshape(*x_xC.shape[:-1], 1)

    def total(x_xC: Array, weight_C: Array) -> Array:
        return (x_xC * weight_C).sum(-1, keepdims=True)

    return jax.lax.platform_dependent(x_xC, weight_C, cpu=product, default=total)


def _total(x_xC: Array) -> Array:
    """Sum over all rows, `(C,)`; on a CPU a product, as above."""

    def product(x_xC: Array) -> Array:
        rows = x_xC.reshape(-1, x_xC.shape[-1])
        return (jnp.ones((1, len(rows)), x_xC.dtype) @ rows)[0]

    return jax.lax.platform_dependent(x_xC, cpu=product, default=lambda x: x.sum(tuple(range(x.ndim - 1))))
