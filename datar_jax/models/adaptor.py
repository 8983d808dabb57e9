"""The learnable input adaptor."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from datar_jax.models.layers import DepthwiseConv
from datar_jax.ops.add_bias import add_bias
from datar_jax.ops.masking import mask_columns


class InputAdaptor(nn.Module):
    """Adds trainable signal to a map before queries, offsets, keys and values are made from it.

    `signal` is a learned map, resized to the clip; `conv` a depthwise branch of the input. It starts as the identity.
    The idea is the paper's ("learnable input adaptor"), the two forms are ours.
    """

    kind: str
    size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array:
        f, t, c = x_BxFxTxC.shape[1:]
        out = x_BxFxTxC
        if self.kind in ("signal", "both"):
            signal = self.param("signal", nn.initializers.zeros, (*self.size, c))
            if self.size != (f, t):
                signal = jax.image.resize(signal, (f, t, c), "linear")
            out = add_bias(out, signal)
        if self.kind in ("conv", "both"):
            branch = DepthwiseConv(identity=True, dtype=self.dtype, name="conv")
            out = out + branch(mask_columns(x_BxFxTxC, valid_BxT)).astype(x_BxFxTxC.dtype)
        return out
