"""Position bias of deformable attention: a learned table, read bilinearly at (query - key), a network, or each pair's.

All formulations give one row of queries at a time, because the model never needs the bias of all pairs at once
(`deformable_attention`); `position_bias` puts the rows together for tests and benchmarks.

Shapes: H heads, R x S the table, F x T the map, N keys. The table's centre is zero displacement.

`centre`, ours: displacements in pixels of the map, at any map size; beyond its edge a table reads its edge, and a key
further than one pixel outside the map reads as one at one pixel. The published grids scale the map to the table, and
the table is zero outside.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from datar_jax.ops.sampling import (
    Grid,
    Method,
    bilinear_weights,
    exact,
    query_points,
    sample_by_gather,
    sample_by_map_coordinates,
    split,
)


def position_bias(
    table_HxRxS: Array,
    position_Nx2: Array,
    size: tuple[int, int],
    grid: Grid = "centre",
    method: Method = "auto",
) -> Array:
    """Bias of every query and key.

    Args:
      table_HxRxS: one group's heads; R and S are odd, 2 F - 1 and 2 T - 1 of the map it was made for.
      position_Nx2: keys, `(freq, time)` in pixels.
      size: (F, T) of the queries' map.
      grid: convention of the query lattice and of the table's scale.
      method: see `bias_row`.

    Returns:
      `(H, F * T, N)`, dtype of the positions.
    """
    table_HxRxS = fit_table(table_HxRxS, size, grid)
    row = partial(table_bias_row, table_HxRxS, position_Nx2, size=size, grid=grid, method=method)
    bias_HxNxFxT = jax.vmap(row, out_axes=2)(jnp.arange(size[0]))
    return bias_HxNxFxT.reshape(*bias_HxNxFxT.shape[:2], -1).swapaxes(1, 2)


def fit_table(table_HxRxS: Array, size: tuple[int, int], grid: Grid) -> Array:
    """`centre`: cuts the table, or repeats its edge, until it is 2 F + 3 by 2 T + 3.

    That holds every displacement of keys up to one pixel outside the map, and a pixel beyond, so that slopes end flat.
    """
    if grid != "centre":
        return table_HxRxS
    for axis, pixels in enumerate(size, 1):
        beyond = pixels + 1 - (table_HxRxS.shape[axis] - 1) // 2
        if beyond < 0:
            table_HxRxS = jax.lax.slice_in_dim(table_HxRxS, -beyond, beyond, axis=axis)
        pad = [(max(beyond, 0),) * 2 if a == axis else (0, 0) for a in range(3)]
        table_HxRxS = jnp.pad(table_HxRxS, pad, mode="edge")
    return table_HxRxS


def table_bias_row(
    table_HxRxS: Array,
    position_Nx2: Array,
    row: Array,
    size: tuple[int, int],
    grid: Grid = "centre",
    method: Method = "auto",
) -> Array:
    """Bias of one row of queries.

    Args:
      table_HxRxS: from `fit_table`.
      position_Nx2: keys, `(freq, time)` in pixels.
      row: which of the F rows, int32 scalar.
      size: (F, T) of the queries' map.
      grid: convention of the query lattice and of the table's scale.
      method: formulation. `map_coordinates`: the definition. `gather`: four reads per pair. `window` (`centre` only):
        the lattice of queries has unit spacing in the table, so a key needs one window of it and one pair of fractions;
        its derivative is made of products and does not scatter. `separable`: two products with bilinear weights; `hat`
        (`centre` only): the same, so that one name also sets the samples. `auto`: products on TPU, where a gather
        becomes a loop over keys, else `window`, or `gather` in the published grids.

    Returns:
      `(H, N, T)`, dtype of the positions.

    Raises:
      ValueError: an unknown method, or one that the grid does not have.
    """
    if method not in get_args(Method):
        raise ValueError(f"no formulation {method!r}; choose one of {', '.join(get_args(Method))}")
    if grid != "centre" and method in ("window", "hat"):
        raise ValueError(f"formulation {method!r} needs the grid 'centre', not {grid!r}; use 'gather' or 'separable'")
    table_HxRxS = table_HxRxS.astype(position_Nx2.dtype)
    if grid == "centre":
        position_Nx2 = jnp.clip(position_Nx2, -1, np.array([size]))
    pairs = partial(_pairs, (table_HxRxS.shape[1], table_HxRxS.shape[2]), size, grid)
    forms = {
        "map_coordinates": lambda *args: _read(sample_by_map_coordinates, pairs, *args),
        "gather": lambda *args: _read(sample_by_gather, pairs, *args),
    }
    if grid == "centre":
        forms["window"] = lambda *args: _windows(size, False, *args)
        forms["separable"] = forms["hat"] = lambda *args: _windows(size, True, *args)
    else:
        forms["separable"] = lambda *args: _separable(pairs, *args)
    if method != "auto":
        return forms[method](table_HxRxS, position_Nx2, row)
    default = forms["window" if grid == "centre" else "gather"]
    return jax.lax.platform_dependent(table_HxRxS, position_Nx2, row, tpu=forms["separable"], default=default)


class BiasNetwork(NamedTuple):
    """Two layers from a displacement to the bias of one group's heads, ReLU between them; P hidden units."""

    kernel_2xP: Array
    bias_P: Array
    heads_PxH: Array


def log_cpb_row(
    network: BiasNetwork, position_Nx2: Array, row: Array, size: tuple[int, int], grid: Grid = "centre"
) -> Array:
    """Bias of one row of queries from the logarithm of each displacement (Liu et al., "Swin Transformer V2", 2022).

    Args:
      network: of one group.
      position_Nx2: keys, `(freq, time)` in pixels.
      row: which of the F rows, int32 scalar.
      size: (F, T) of the queries' map.
      grid: `centre` measures in pixels, the published grids in eighths of the map.

    Returns:
      `(H, N, T)`, dtype of the positions.
    """
    spaced = []
    for axis, pixels in enumerate(size):
        scale = 1.0 if grid == "centre" or pixels == 1 else 8 / (pixels - 1)
        lattice = jnp.asarray(query_points(pixels, grid) * scale, position_Nx2.dtype)
        at = lattice[None] if axis else lattice[row, None, None]
        apart = at - scale * position_Nx2[:, axis, None]
        spaced.append(jnp.sign(apart) * jnp.log2(jnp.abs(apart) + 1) / 3)
    kernel, bias, heads = (leaf.astype(position_Nx2.dtype) for leaf in network)
    row_Nx1, time_NxT = spaced
    hidden_NxTxP = jax.nn.relu(
        row_Nx1[..., None] * kernel[:1, None] + time_NxT[..., None] * kernel[1:, None] + bias[None, None]
    )
    return exact("ntp,ph->hnt", hidden_NxTxP, heads)


class PairBias(NamedTuple):
    """A learned bias of every (query, key) pair, wherever the key lies; only for maps of one size."""

    bias_HxFxTxN: Array


def pair_bias_row(pairs: PairBias, row: Array, dtype: Any) -> Array:
    """Bias of one row of queries, `(H, N, T)`."""
    bias_HxTxN = jax.lax.dynamic_index_in_dim(pairs.bias_HxFxTxN, row, 1, keepdims=False)
    return bias_HxTxN.swapaxes(1, 2).astype(dtype)


def _pairs(
    table: tuple[int, int], size: tuple[int, int], grid: Grid, position_Nx2: Array, row: Array
) -> tuple[Array, Array]:
    """Where a row of queries reads the table: its rows `(N,)` and its columns `(N, T)`."""
    at = []
    for axis, pixels in enumerate(size):
        middle = (table[axis] - 1) / 2
        scale = 1.0 if grid == "centre" or pixels == 1 else middle / (pixels - 1)
        lattice = jnp.asarray(query_points(pixels, grid) * scale + middle, position_Nx2.dtype)
        at.append((lattice, scale * position_Nx2[:, axis]))
    (rows_F, row_N), (times_T, time_N) = at
    return rows_F[row] - row_N, times_T[None] - time_N[:, None]


def _read(read: Any, pairs: Any, table_HxRxS: Array, position_Nx2: Array, row: Array) -> Array:
    row_N, time_NxT = pairs(position_Nx2, row)
    at = jnp.stack(jnp.broadcast_arrays(row_N[:, None], time_NxT), -1).reshape(-1, 2)
    return jnp.moveaxis(read(jnp.moveaxis(table_HxRxS, 0, -1), at), -1, 0).reshape(-1, *time_NxT.shape)


def _separable(pairs: Any, table_HxRxS: Array, position_Nx2: Array, row: Array) -> Array:
    row_N, time_NxT = pairs(position_Nx2, row)
    rows_NxR, times_NxTxS = (
        bilinear_weights(row_N, table_HxRxS.shape[1]),
        bilinear_weights(time_NxT, table_HxRxS.shape[2]),
    )
    return exact("nhs,nts->hnt", exact("nr,hrs->nhs", rows_NxR, table_HxRxS), times_NxTxS)


def _windows(size: tuple[int, int], products: bool, table_HxRxS: Array, position_Nx2: Array, row: Array) -> Array:
    start_Nx2 = jnp.asarray([size], position_Nx2.dtype) + 1 - position_Nx2  # where query (0, 0) reads: 1..size + 2
    return _window(size, products, table_HxRxS, *split(start_Nx2), row)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _window(
    size: tuple[int, int], products: bool, table_HxRxS: Array, cell_Nx2: Array, part_Nx2: Array, row: Array
) -> Array:
    heads, t = table_HxRxS.shape[0], size[1]
    part, along = part_Nx2[:, :1], part_Nx2[:, 1:]
    if products:
        near_NxK, far_NxK = (at.astype(part.dtype) for at in _reached_rows(size, cell_Nx2))
        reached_HxKxS = jax.lax.dynamic_slice_in_dim(table_HxRxS, row + 1, size[0] + 3, 1)
        read_NxHxS = exact("nk,hks->nhs", near_NxK * (1 - part) + far_NxK * part, reached_HxKxS)
        hat_NxTxS = _shifts(size, cell_Nx2) * (1 - along)[..., None] + _shifts(size, cell_Nx2 + 1) * along[..., None]
        return exact("nhs,nts->hnt", read_NxHxS, hat_NxTxS)
    cut = jax.vmap(lambda at: jax.lax.dynamic_slice(table_HxRxS, (0, at[0] + row, at[1]), (heads, 2, t + 1)))
    near_HxNxT, far_HxNxT = cut(cell_Nx2).transpose(2, 1, 0, 3)
    part, along = part[None], along[None]
    left = near_HxNxT[..., :-1] * (1 - part) + far_HxNxT[..., :-1] * part
    right = near_HxNxT[..., 1:] * (1 - part) + far_HxNxT[..., 1:] * part
    return left * (1 - along) + right * along


def _reached_rows(size: tuple[int, int], cell_Nx2: Array) -> tuple[Array, Array]:
    """Of the K = F + 3 table rows that one row of queries reaches: which lies below each key, and which above."""
    distance_NxK = np.arange(1, size[0] + 4)[None] - cell_Nx2[:, :1]
    return distance_NxK == 0, distance_NxK == 1


def _shifts(size: tuple[int, int], cell_Nx2: Array) -> Array:
    """One where query column T of each key reads table column S, `(N, T, S)`."""
    t = size[1]
    return (cell_Nx2[:, 1, None, None] == (np.arange(2 * t + 3) - np.arange(t)[:, None])[None]).astype(jnp.float32)


def _window_forward(size: tuple[int, int], products: bool, *args: Array) -> tuple[Array, tuple[Array, ...]]:
    return _window(size, products, *args), args


def _window_backward(
    size: tuple[int, int], products: bool, saved: tuple[Array, ...], above_HxNxT: Array
) -> tuple[Any, ...]:
    """Moves the gradient of each key to where its window lies in the table; the rest is two products.

    The same two products give the table's gradient and the four corner sums that the gradient of a position needs.
    """
    table_HxRxS, cell_Nx2, part_Nx2, row = saved
    (f, t), (heads, _, s) = size, table_HxRxS.shape
    if products:
        moved_NxHxS = exact("hnt,nts->nhs", above_HxNxT, _shifts(size, cell_Nx2).astype(above_HxNxT.dtype))
    else:
        padded = jnp.pad(above_HxNxT.swapaxes(0, 1), ((0, 0), (0, 0), (t + 2, t + 2)))
        move = jax.vmap(lambda x, cell: jax.lax.dynamic_slice(x, (0, t + 2 - cell), (heads, s)))
        moved_NxHxS = move(padded, cell_Nx2[:, 1])
    moved_NxHS = moved_NxHxS.reshape(-1, heads * s)

    part, along = part_Nx2[:, :1], part_Nx2[:, 1:]
    near_NxK, far_NxK = _reached_rows(size, cell_Nx2)
    hat_KxN = near_NxK.T * (1 - part.T) + far_NxK.T * part.T
    hats_KKxN = jnp.concatenate([hat_KxN * (1 - along.T), hat_KxN * along.T])
    left, right = exact("kn,nm->km", hats_KKxN, moved_NxHS).reshape(2, f + 3, heads, s)
    d_rows = left + jnp.pad(right[..., :-1], ((0, 0), (0, 0), (1, 0)))
    d_table = jax.lax.dynamic_update_slice(jnp.zeros_like(table_HxRxS), d_rows.swapaxes(0, 1), (0, row + 1, 0))

    reached = jax.lax.dynamic_slice_in_dim(table_HxRxS, row + 1, f + 3, 1).transpose(0, 2, 1)
    shifted = jnp.pad(reached[:, 1:], ((0, 0), (0, 1), (0, 0)))
    sums_Nx2K = exact("nm,mk->nk", moved_NxHS, jnp.concatenate([reached, shifted], 2).reshape(heads * s, -1))
    corners = [[(sums * at).sum(1) for sums in jnp.split(sums_Nx2K, 2, 1)] for at in (near_NxK, far_NxK)]
    return d_table, None, _corner_slopes(corners, part[:, 0], along[:, 0]), None


def _corner_slopes(corner: Any, row: Array, time: Array) -> Array:
    """Derivative of a bilinear blend by its two fractions, `(..., 2)`, from the four values that it blends."""
    (a, b), (c, d) = corner
    return jnp.stack([(c - a) * (1 - time) + (d - b) * time, (b - a) * (1 - row) + (d - c) * row], -1)


_window.defvjp(_window_forward, _window_backward)
