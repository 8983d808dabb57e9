"""Attention within windows of a map."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SHIFT_MASK = -100.0  # between regions that a cyclic shift brought side by side


def dot_product_attention(q_xMxHxD: Array, k_xNxHxD: Array, v_xNxHxD: Array, bias_xHxMxN: Array | None) -> Array:
    """softmax(q k / sqrt(D) + bias) v, `(..., M, H, D)`; products in the input's dtype, softmax in float32 or wider."""
    wide = jnp.promote_types(q_xMxHxD.dtype, jnp.float32)
    q_xMxHxD = q_xMxHxD * q_xMxHxD.shape[-1] ** -0.5
    score = jnp.einsum("...mhd,...nhd->...hmn", q_xMxHxD, k_xNxHxD, preferred_element_type=wide)
    if bias_xHxMxN is not None:
        score += bias_xHxMxN
    weight = jax.nn.softmax(score, axis=-1).astype(v_xNxHxD.dtype)
    return jnp.einsum("...hmn,...nhd->...mhd", weight, v_xNxHxD)


def partition(x_BxFxTx: Any, window: tuple[int, int]) -> Any:
    """Cuts a map into windows, row-major: `(B, W, M, ...)`; of numpy or jax arrays."""
    (b, f, t), (wf, wt), rest = x_BxFxTx.shape[:3], window, x_BxFxTx.shape[3:]
    tiles = x_BxFxTx.reshape(b, f // wf, wf, t // wt, wt, *rest).swapaxes(2, 3)
    return tiles.reshape(b, (f // wf) * (t // wt), wf * wt, *rest)


def merge(tiles_BxWxMxC: Array, window: tuple[int, int], size: tuple[int, int]) -> Array:
    """Puts windows back into a map of `size`; the inverse of `partition`."""
    (f, t), (wf, wt), c = size, window, tiles_BxWxMxC.shape[-1]
    return tiles_BxWxMxC.reshape(-1, f // wf, t // wt, wf, wt, c).swapaxes(2, 3).reshape(-1, f, t, c)


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """Additive mask `(W, M, M)` of a rolled map: 0 within a region, `SHIFT_MASK` between regions."""
    labels = []
    for pixels, wide, moved in zip(size, window, shift):
        label = np.zeros(pixels, np.int64)
        if moved:
            label[pixels - wide : pixels - moved], label[pixels - moved :] = 1, 2
        labels.append(label)
    region = partition((3 * labels[0][:, None] + labels[1][None, :])[None], window)[0]
    return np.where(region[:, :, None] == region[:, None, :], 0.0, SHIFT_MASK).astype(np.float32)


def window_index(window: tuple[int, int], table: tuple[int, int]) -> np.ndarray:
    """Where each (query, key) pair of a window reads a table whose centre is zero displacement, `(M, M)` int."""
    at = np.stack(np.meshgrid(*(np.arange(side) for side in window), indexing="ij"), -1).reshape(-1, 2)
    row, time = np.moveaxis(at[:, None] - at[None, :] + (np.array(table) - 1) // 2, -1, 0)
    return row * table[1] + time


def roll(x: Array, shift: tuple[int, ...], sign: int) -> Array:
    """Cyclic shift over both axes of a map, `(B, F, T, ...)`; `sign` gives its direction."""
    return jnp.roll(x, tuple(sign * s for s in shift), (1, 2)) if any(shift) else x
