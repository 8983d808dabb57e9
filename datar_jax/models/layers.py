"""Layers that every block is made of, and initializers: Dense, depthwise convolution, LayerNorm, MLP, DropPath."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from datar_jax.ops.activations import gelu
from datar_jax.ops.dense_product import dense_product
from datar_jax.ops.depthwise_conv import depthwise
from datar_jax.ops.layer_norm import layer_norm
from datar_jax.ops.masking import mask_columns

linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as the published DAT
table_init = nn.initializers.normal(0.01)


def uniform_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform within +-1/sqrt(fan_in), as published for kernels and biases alike."""

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return draw


def dense(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    """A Dense layer, `(..., C)` to `(..., features)`."""
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=linear_init, dot_general=dense_product, name=name)


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution with bias; `identity` starts it at zero."""

    identity: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxFxTxC: Array) -> Array:
        c = x_BxFxTxC.shape[-1]
        start = nn.initializers.zeros if self.identity else linear_init
        kernel = self.param("kernel", start, (3, 3, 1, c))[:, :, 0]
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return (
            depthwise(x_BxFxTxC.astype(self.dtype), kernel.astype(self.dtype))
            + bias.astype(self.dtype)[None, None, None]
        )


class LayerNorm(nn.Module):
    """LayerNorm over channels (Ba et al., 2016), `(..., C)`; statistics in float32 or wider."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_xC: Array) -> Array:
        c = x_xC.shape[-1]
        scale, bias = self.param("scale", nn.initializers.ones, (c,)), self.param("bias", nn.initializers.zeros, (c,))
        wide = jnp.promote_types(x_xC.dtype, jnp.float32)
        return layer_norm(x_xC.astype(wide), scale.astype(wide), bias.astype(wide)).astype(self.dtype)


class Mlp(nn.Module):
    """Two layers with exact GELU; `conv` adds a depthwise residual before it (DAT++)."""

    ratio: int
    conv: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array:
        c = x_BxFxTxC.shape[-1]
        up = dense(self.ratio * c, self.dtype, "up")(x_BxFxTxC)
        if self.conv:
            up = up + DepthwiseConv(dtype=self.dtype, name="conv")(mask_columns(up, valid_BxT))
        return dense(c, self.dtype, "down")(gelu(up))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual per example, scales what is kept (Huang et al., 2016)."""

    rate: float
    train: bool

    @nn.compact
    def __call__(self, x_BxFxTxC: Array) -> Array:
        if not self.train or self.rate == 0:
            return x_BxFxTxC
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x_BxFxTxC.shape[0], 1, 1, 1))
        return jnp.where(keep, x_BxFxTxC / (1 - self.rate), 0).astype(x_BxFxTxC.dtype)
