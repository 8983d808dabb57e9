"""Attention of each pixel to the window around it."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from datar_jax.ops.masking import MASK_VALUE
from datar_jax.ops.window_attention import dot_product_attention, merge, partition

TILE = (4, 8)  # pixels that are scored together


@partial(jax.checkpoint, static_argnums=(4, 5))
def neighborhood_attention(
    q_BxFxTxHxD: Array,
    k_BxFxTxHxD: Array,
    v_BxFxTxHxD: Array,
    table_HxRxS: Array,
    window: tuple[int, int],
    rows: int,
    columns_B: Array,
) -> Array:
    """Attends from every pixel to the window that begins half a window before it, moved into the map.

    A tile of pixels is scored against all keys within reach of it, and what is beyond a pixel's own window is masked:
    of 4 x 8 pixels and a window of 7 x 7 some 220 keys, instead of 49 that would have to be gathered for each pixel.
    The derivative scores again.

    Args:
      q_BxFxTxHxD: queries.
      k_BxFxTxHxD: keys.
      v_BxFxTxHxD: values.
      table_HxRxS: bias by displacement (key - query), zero in the middle.
      window: (F, T), both odd.
      rows: of the map.
      columns_B: of each map, int32; or of all, `(1,)`.

    Returns:
      `(B, F, T, H, D)`; beyond `columns_B`, numbers that mean nothing.
    """
    size, heads = q_BxFxTxHxD.shape[1:3], q_BxFxTxHxD.shape[3:]
    tile = tuple(min(side, pixels) for side, pixels in zip(TILE, size))
    tiles = tuple(-(-pixels // side) for pixels, side in zip(size, tile))
    reach = tuple(max(side + wide // 2, wide) for side, wide in zip(tile, window))  # from a tile's first pixel on
    spread = [(0, 0), *((0, n * side - pixels) for n, side, pixels in zip(tiles, tile, size)), (0, 0), (0, 0)]
    q_BxWxMxHxD = partition(jnp.pad(q_BxFxTxHxD, spread), tile)  # type: ignore[arg-type]

    def around(x_BxFxTxHxD: Array) -> Array:
        x = _around(x_BxFxTxHxD, 1, tile[0], tiles[0], window[0] - 1, reach[0])
        x = _around(x, 3, tile[1], tiles[1], window[1] - 1, reach[1]).swapaxes(2, 3)
        return x.reshape(x.shape[0], math.prod(tiles), -1, *heads)

    row, column = (np.arange(-wide + 1, n) - np.arange(side)[:, None] for wide, n, side in zip(window, reach, tile))
    at = [np.clip(apart + wide - 1, 0, 2 * wide - 2) for apart, wide in zip((row, column), window)]  # beyond: masked
    bias_HxMxN = table_HxRxS[:, at[0][:, None, :, None], at[1][None, :, None, :]].reshape(
        len(table_HxRxS), math.prod(tile), -1
    )
    rows_WxMxN = _own(tile[0], tiles[0], window[0], reach[0], jnp.full(1, rows))[:, :, None, :, None, :, None]
    columns_BxWxMxN = _own(tile[1], tiles[1], window[1], reach[1], columns_B)[:, None, :, None, :, None, :]
    own_BxWxMxN = (rows_WxMxN & columns_BxWxMxN).reshape(columns_B.shape[0], math.prod(tiles), *bias_HxMxN.shape[1:])
    wide = jnp.promote_types(q_BxFxTxHxD.dtype, jnp.float32)
    bias_BxWxHxMxN = bias_HxMxN.astype(wide)[None, None] + jnp.where(own_BxWxMxN, 0.0, MASK_VALUE)[:, :, None]
    out = dot_product_attention(q_BxWxMxHxD, around(k_BxFxTxHxD), around(v_BxFxTxHxD), bias_BxWxHxMxN)
    whole = tuple(n * side for n, side in zip(tiles, tile))
    merged = merge(out.reshape(*out.shape[:3], -1), tile, whole)  # type: ignore[arg-type]
    return merged[:, : size[0], : size[1]].reshape(q_BxFxTxHxD.shape)


def _around(x: Array, axis: int, tile: int, tiles: int, before: int, reach: int) -> Array:
    """Each tile of an axis with what lies around it: `before` pixels, and `reach` from its first on; zeros outside."""
    span = before + reach
    steps = -(-span // tile)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (before, (tiles + steps) * tile - before - x.shape[axis])
    padded = jnp.pad(x, pad)
    shape = (*x.shape[:axis], tiles, tile, *x.shape[axis + 1 :])
    parts = [
        jax.lax.slice_in_dim(padded, step * tile, (step + tiles) * tile, axis=axis).reshape(shape)
        for step in range(steps)
    ]
    return jax.lax.slice_in_dim(jnp.concatenate(parts, axis + 1), 0, span, axis=axis + 1)


def _own(tile: int, tiles: int, window: int, reach: int, pixels_B: Array) -> Array:
    """Which keys around a tile are in the window of each of its pixels, along an axis: `(B, tiles, tile, span)`."""
    query = jnp.arange(tiles * tile).reshape(1, tiles, tile, 1)
    key = jnp.expand_dims(np.arange(tiles)[:, None, None] * tile + np.arange(1 - window, reach), 0)
    pixels = pixels_B[:, None, None, None]
    first = jnp.clip(query - window // 2, 0, jnp.maximum(pixels - window, 0))
    return (key >= first) & (key < first + window) & (key < pixels)
