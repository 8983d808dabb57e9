"""Layers that every block is made of, and initializers: Dense, depthwise convolution, LayerNorm, MLP, DropPath."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from datar_jax.ops.activations import gelu
from datar_jax.ops.add_bias import add_bias
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


class Dense(nn.Module):
    """A linear layer, `(..., C)` to `(..., features)`; its parameters are those of `nn.Dense`."""

    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_xC: Array) -> Array:
        kernel = self.param("kernel", linear_init, (x_xC.shape[-1], self.features))
        y_xD = dense_product(x_xC.astype(self.dtype), kernel.astype(self.dtype))
        return add_bias(y_xD, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else y_xD


class Conv(nn.Module):
    """A strided convolution that mixes channels, `(B, F, T, C)` to `(B, F', T', features)`; parameters as `nn.Conv`."""

    features: int
    size: int
    stride: int
    padding: int
    dtype: Any = jnp.float32
    use_bias: bool = True
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x_BxFxTxC: Array) -> Array:
        kernel = self.param("kernel", linear_init, (self.size, self.size, x_BxFxTxC.shape[-1], self.features))
        y_BxFxTxD = jax.lax.conv_general_dilated(
            x_BxFxTxC.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return add_bias(y_BxFxTxD, self.param("bias", self.bias_init, (self.features,))) if self.use_bias else y_BxFxTxD


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
        return add_bias(depthwise(x_BxFxTxC.astype(self.dtype), kernel.astype(self.dtype)), bias)


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
        up = Dense(self.ratio * c, self.dtype, name="up")(x_BxFxTxC)
        if self.conv:
            up = up + DepthwiseConv(dtype=self.dtype, name="conv")(mask_columns(up, valid_BxT))
        return Dense(c, self.dtype, name="down")(gelu(up))


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
