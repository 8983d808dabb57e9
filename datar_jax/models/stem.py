"""Stem and downsampling: from the spectrogram to the first feature map, and from stage to stage."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from datar_jax.models.layers import Conv, LayerNorm, uniform_init
from datar_jax.ops.activations import gelu
from datar_jax.ops.masking import columns, mask_columns


class Stem(nn.Module):
    """Projects a spectrogram to a quarter of its resolution: one 4x4 patch, or two 3x3 convolutions.

    The bias keeps the level of the sound through the LayerNorm that follows; without one, only the shape of a patch
    would be left. The patch starts with the published bias, the convolutions with zero (docs/concepts/model.md).
    """

    dim: int
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, frames_B: Array | None = None) -> Array:
        if self.kind == "patch":
            x_BxFxTxC = _pad_to(x_BxFxTxC, 4)
            published = uniform_init(16 * x_BxFxTxC.shape[-1])
            x = Conv(self.dim, 4, 4, 0, self.dtype, bias_init=published, name="project")(x_BxFxTxC)
            return LayerNorm(self.dtype, name="norm")(x)
        x = x_BxFxTxC
        for i, width in enumerate((self.dim // 2, self.dim)):
            if i:
                x = mask_columns(gelu(x), columns(frames_B, x.shape[2], 1))
            x = Conv(width, 3, 2, 1, self.dtype, name=f"project_{i}")(x)
            x = LayerNorm(self.dtype, name=f"norm_{i}")(x)
        return x


class Downsample(nn.Module):
    """Halves the resolution and widens: convolution 2x2 (or 3x3 with the convolutional stem), no bias, LayerNorm."""

    dim: int
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxFxTxC: Array) -> Array:
        if self.kind == "patch":
            x_BxFxTxC, size, padding = _pad_to(x_BxFxTxC, 2), 2, 0
        else:
            size, padding = 3, 1
        project = Conv(self.dim, size, 2, padding, self.dtype, use_bias=False, name="project")
        return LayerNorm(self.dtype, name="norm")(project(x_BxFxTxC))


def _pad_to(x_BxFxTxC: Array, multiple: int) -> Array:
    f, t = (-n % multiple for n in x_BxFxTxC.shape[1:3])
    return jnp.pad(x_BxFxTxC, ((0, 0), (0, f), (0, t), (0, 0))) if f or t else x_BxFxTxC
