"""Neighborhood attention (N): each pixel attends to the window around it.

Hassani et al., "Neighborhood Attention Transformer" (CVPR 2023), as DAT++ (Xia et al., 2023) uses it. Shapes: B batch,
F frequency rows, T time columns, C channels, H heads, D head width, W tiles, M pixels of a tile, N keys around it.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from datar_jax.config.mixers import NeighborhoodSettings
from datar_jax.models.layers import Dense, table_init
from datar_jax.models.mixers.base import MixerSite
from datar_jax.ops.masking import mask_columns
from datar_jax.ops.neighborhood_attention import neighborhood_attention


class NeighborhoodAttention(nn.Module):
    """Attention of each pixel to the window around it, with a relative position table.

    At a border the window stops, and the pixel is no longer its center. A map smaller than the window is one window; in
    the published form zeros fill it up, and are attended to.

    Attributes:
      heads: attention heads; must divide the channels.
      window: (F, T), both odd.
      filled: fill a map that is smaller than the window with zeros, as published.
    """

    heads: int
    window: tuple[int, int]
    filled: bool = False
    dtype: Any = jnp.float32

    @classmethod
    def from_settings(cls, settings: NeighborhoodSettings, site: MixerSite, name: str) -> NeighborhoodAttention:
        return cls(site.heads, settings.sizes[site.stage], settings.fill, site.dtype, name=name)

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array:
        b, f, t, c = x_BxFxTxC.shape
        table_shape = tuple(2 * side - 1 for side in self.window)
        table_HxRS = self.param("table", table_init, (self.heads, math.prod(table_shape)))
        table_HxRxS = table_HxRS.reshape(-1, *table_shape)

        columns_B = jnp.full(1, t) if valid_BxT is None else valid_BxT.sum(1)
        rows, x = f, mask_columns(x_BxFxTxC, valid_BxT)
        if self.filled:
            rows, columns_B = max(f, self.window[0]), jnp.maximum(columns_B, self.window[1])
            x = jnp.pad(x, ((0, 0), (0, rows - f), (0, max(t, self.window[1]) - t), (0, 0)))
        qkv = Dense(3 * c, self.dtype, name="qkv")(x)
        q, k, v = (part.reshape(*part.shape[:-1], self.heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        out = neighborhood_attention(q, k, v, table_HxRxS, self.window, rows, columns_B)[:, :f, :t]
        return Dense(c, self.dtype, name="out")(out.reshape(b, f, t, c))
