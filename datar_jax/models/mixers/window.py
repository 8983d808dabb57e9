"""Window attention, plain (L) and shifted (S): Liu et al., "Swin Transformer" (ICCV 2021).

Shapes: B batch, F frequency rows, T time columns, C channels, H heads, D head width, W windows, M queries, N keys.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from datar_jax.config.mixers import WindowSettings
from datar_jax.models.layers import Dense, table_init
from datar_jax.models.mixers.base import MixerSite
from datar_jax.ops.masking import MASK_VALUE
from datar_jax.ops.window_attention import dot_product_attention, merge, partition, roll, shift_mask, window_index


class WindowAttention(nn.Module):
    """Attention inside windows with a relative position table; `shifted` rolls the map by half a window first.

    A map that windows do not divide is padded and the padding masked; a map smaller than the window is one window.
    `shift_covered` rolls an axis, too, that one window covers; `shift` are pixels of (F, T), in place of half a window.
    """

    heads: int
    window: tuple[int, int]
    shifted: bool = False
    dtype: Any = jnp.float32
    shift_covered: bool = False
    shift: tuple[int, int] | None = None

    @classmethod
    def from_settings(cls, settings: WindowSettings, site: MixerSite, name: str) -> WindowAttention:
        window, shifted = settings.sizes[site.stage], site.letter == "S"
        shift = settings.shifts[site.stage] if settings.shifts else None
        return cls(site.heads, window, shifted, site.dtype, settings.shift_covered, shift, name=name)

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array:
        f, t, c = x_BxFxTxC.shape[1:]
        table_shape = tuple(2 * side - 1 for side in self.window)
        table_HxRS = self.param("table", table_init, (self.heads, math.prod(table_shape)))

        window = (min(self.window[0], f), min(self.window[1], t))
        size = tuple(math.ceil(n / side) * side for n, side in zip((f, t), window))
        shift = (0, 0)
        if self.shifted:
            wanted = self.shift or tuple(-(-w // 2) for w in window)
            # A roll by whole windows moves none of their borders.
            rows, times = (s % w if n > w or self.shift_covered else 0 for s, n, w in zip(wanted, size, window))
            shift = (rows, times)
        qkv = Dense(3 * c, self.dtype, name="qkv")(x_BxFxTxC)
        if size != (f, t):
            valid_BxT = jnp.ones((1, t), bool) if valid_BxT is None else valid_BxT
            valid_BxT = jnp.pad(valid_BxT, ((0, 0), (0, size[1] - t)))
            qkv = jnp.pad(qkv, ((0, 0), (0, size[0] - f), (0, size[1] - t), (0, 0)))
        q, k, v = (
            part.reshape(*part.shape[:-1], self.heads, -1)
            for part in jnp.split(partition(roll(qkv, shift, -1), window), 3, axis=-1)
        )
        bias_HxMxN = table_HxRS[:, window_index(window, table_shape)]  # type: ignore[arg-type]
        bias = jnp.asarray(bias_HxMxN, jnp.promote_types(self.dtype, jnp.float32))[None, None]
        if any(shift):
            bias = bias + jnp.asarray(shift_mask(size, window, shift))[None, :, None]  # type: ignore[arg-type]
        if valid_BxT is not None:
            inside = valid_BxT[:, None, :] & (np.arange(size[0]) < f)[None, :, None]
            key = partition(roll(inside, shift, -1), window)
            bias = bias + jnp.where(key, 0.0, MASK_VALUE)[:, :, None, None, :]
        out = dot_product_attention(q, k, v, bias)
        out = roll(merge(out.reshape(*out.shape[:3], c), window, size), shift, 1)[:, :f, :t]  # type: ignore[arg-type]
        return Dense(c, self.dtype, name="out")(out)
