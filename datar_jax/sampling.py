"""Where deformable attention looks, and what it reads there: pure functions, no linen.

Shapes: B batch, F frequency rows, T time columns, C channels, H heads, G offset groups, N sampled points (keys).
Positions are in pixels of the map, `(freq, time)`, 0 at the centre of the first pixel, and float32 or wider: a bfloat16
coordinate is off by up to an eighth of a pixel from 32 on, by a quarter from 64 on. Outside the map is zero, each of
the four neighbours by itself, and the slope at an integer coordinate is that of the cell to its right.

`jax.scipy.ndimage.map_coordinates` (order 1, constant 0) is the definition of both samplers; the other formulations
give the same numbers and gradients.

Grids: `centre` is ours; `dat2022` and `dat2023` are the two published conventions of Deformable Attention Transformers
(Xia et al., CVPR 2022; "DAT++", 2023), kept so that their weights load and their numbers can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates

Grid = Literal["centre", "dat2022", "dat2023"]
Method = Literal["auto", "map_coordinates", "gather", "hat"]


def reference_points(size: int, keys: int, grid: Grid) -> np.ndarray:
    """Pixel coordinates of `keys` reference points along an axis of `size` pixels, float64 `(keys,)`.

    `centre` divides the axis into equal cells and takes their centres: symmetric, inside, defined for one pixel or one
    key. `dat2023` with one key is infinite, as published; clamped, it reads the last pixel.
    """
    cell = np.arange(keys) + 0.5
    if grid == "centre":
        return cell * (size / keys) - 0.5
    if grid == "dat2022":
        return cell / keys * (size - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(keys > 1, cell / np.float64(keys - 1) * (size - 1), np.inf)


def query_points(size: int, grid: Grid) -> np.ndarray:
    """Pixel coordinates of the queries along an axis, as the position bias measures them, float64 `(size,)`."""
    pixel = np.arange(size, dtype=np.float64)
    return (pixel + 0.5) / size * (size - 1) if grid == "dat2022" else pixel


def sampling_positions(raw_xN: Array, size: int, keys: int, offset_range: float, grid: Grid) -> Array:
    """Moves the reference points of one axis by what the offset network says.

    Args:
      raw_xN: output of the offset network `(..., keys)`.
      size: pixels along the axis.
      keys: reference points along the axis.
      offset_range: positive: tanh bounds the move to half of it, in key cells; negative: no bound, but the position is
        clamped to the map (`dat2022`: squashed into it); 0: no move (`dat2022`: no bound).
      grid: convention of the reference points and of the unit of a move.

    Returns:
      Positions in pixels, `(..., keys)`, dtype of `raw_xN`.

    Raises:
      ValueError: `dat2023` with a bounded offset and a single key: its unit of a move is infinite.
    """
    reference = jnp.asarray(reference_points(size, keys, grid), raw_xN.dtype)
    half = (size if grid == "centre" else size - 1) / 2  # pixels of one normalised unit
    if offset_range > 0 or (offset_range == 0 and grid != "dat2022"):
        if grid == "dat2023" and keys == 1:
            raise ValueError("grid dat2023 has no bounded offsets on a map with one key along an axis; use 'centre'")
        unit = half / (keys - 1 if grid == "dat2023" else keys)
        return reference + offset_range * unit * jnp.tanh(raw_xN)
    if grid != "dat2022":
        return jnp.clip(reference + raw_xN * half, 0, size - 1)
    if offset_range == 0:
        return reference + raw_xN * half
    unit_reference = jnp.asarray(2 * (np.arange(keys) + 0.5) / keys - 1, raw_xN.dtype)
    return (jnp.tanh(unit_reference + raw_xN) + 1) * half


def _split(coordinate: Array) -> tuple[Array, Array]:
    """Integer cell (int32) and fraction of a coordinate; the fraction carries the gradient."""
    cell = jnp.floor(jax.lax.stop_gradient(coordinate))
    return cell.astype(jnp.int32), coordinate - cell


def hat_weights(coordinate_N: Array, size: int) -> Array:
    """Bilinear weights of `size` pixels for each coordinate, `(N, size)`: two neighbours, zero outside."""
    cell, fraction = _split(coordinate_N)
    distance = jnp.arange(size) - cell[..., None]
    return jnp.where(distance == 0, 1 - fraction[..., None], jnp.where(distance == 1, fraction[..., None], 0))


def sample_features(x_FxTxC: Array, position_Nx2: Array, method: Method = "auto") -> Array:
    """Reads a map at fractional positions, bilinearly, zero outside.

    Args:
      x_FxTxC: one map. Batches come by `jax.vmap`, which keeps a sharded batch sharded.
      position_Nx2: `(freq, time)` in pixels, at least float32.
      method: formulation; `auto` takes the product with hat weights on TPU and on small maps, gathers elsewhere.

    Returns:
      `(N, C)`, dtype of the map.
    """
    f, t = x_FxTxC.shape[:2]
    if method == "auto":
        # Measured on a CPU: below some 300 pixels the dense product beats four gathers and, above all, their scatter.
        gathers: Callable[[Array, Array], Array] = _sample_hat if f * t <= 320 else _sample_gather
        return jax.lax.platform_dependent(x_FxTxC, position_Nx2, tpu=_sample_hat, default=gathers)
    if method == "map_coordinates":
        return _sample_map_coordinates(x_FxTxC, position_Nx2)
    return (_sample_gather if method == "gather" else _sample_hat)(x_FxTxC, position_Nx2)


def _sample_map_coordinates(x_FxTxC: Array, position_Nx2: Array) -> Array:
    wide = x_FxTxC.astype(position_Nx2.dtype)
    read = jax.vmap(lambda plane: map_coordinates(plane, list(position_Nx2.T), order=1, cval=0.0), -1, -1)
    return read(wide).astype(x_FxTxC.dtype)


def _sample_gather(x_FxTxC: Array, position_Nx2: Array) -> Array:
    f, t, c = x_FxTxC.shape
    row, row_part = _split(position_Nx2[:, 0])
    time, time_part = _split(position_Nx2[:, 1])
    flat = x_FxTxC.reshape(f * t, c)
    total = jnp.zeros((position_Nx2.shape[0], c), position_Nx2.dtype)
    for i, row_weight in ((row, 1 - row_part), (row + 1, row_part)):
        for j, time_weight in ((time, 1 - time_part), (time + 1, time_part)):
            inside = (i >= 0) & (i < f) & (j >= 0) & (j < t)
            weight = jnp.where(inside, row_weight * time_weight, 0)
            index = jnp.where(inside, i * t + j, 0)
            total += weight[:, None] * jnp.take(flat, index, axis=0)
    return total.astype(x_FxTxC.dtype)


def _sample_hat(x_FxTxC: Array, position_Nx2: Array) -> Array:
    f, t, c = x_FxTxC.shape
    rows, times = hat_weights(position_Nx2[:, 0], f), hat_weights(position_Nx2[:, 1], t)
    weights_NxFT = (rows[:, :, None] * times[:, None, :]).reshape(-1, f * t)
    # Rounding the weights to bfloat16 would lose the fraction of a pixel, so this product keeps full precision.
    out = jnp.matmul(
        weights_NxFT, x_FxTxC.reshape(f * t, c).astype(weights_NxFT.dtype), precision=jax.lax.Precision.HIGHEST
    )
    return out.astype(x_FxTxC.dtype)


def position_bias(
    table_HxRxS: Array,
    position_Nx2: Array,
    size: tuple[int, int],
    grid: Grid = "centre",
    method: Method = "auto",
) -> Array:
    """Relative position bias: a learned table read at (query - key), bilinearly, zero outside.

    The table's centre is zero displacement. `centre` measures displacements in pixels of the map at any map size, and
    a displacement beyond the table reads its edge. The published grids scale the map to the table instead.

    Args:
      table_HxRxS: one group's heads; R and S are odd, 2 F - 1 and 2 T - 1 of the map it was made for.
      position_Nx2: keys, `(freq, time)` in pixels.
      size: (F, T) of the queries' map.
      grid: convention of the query lattice and of the table's scale.
      method: `map_coordinates` (the definition), `gather`, or anything else for windows of the table.

    Returns:
      `(H, F * T, N)`, dtype of the positions.
    """
    if grid == "centre":
        table_HxRxS = _reach(table_HxRxS, size)
    axes = []
    exact = True  # the lattice has unit spacing in table pixels: one window per key holds all its queries
    for axis, pixels in enumerate(size):
        middle = (table_HxRxS.shape[axis + 1] - 1) / 2
        scale = 1.0 if grid == "centre" or pixels == 1 else middle / (pixels - 1)
        exact &= scale == 1.0 and grid != "dat2022"
        axes.append((query_points(pixels, grid) * scale + middle, scale))
    if method in ("map_coordinates", "gather") or not exact:
        row_FxN, time_TxN = (
            jnp.asarray(query, position_Nx2.dtype)[:, None] - scale * position_Nx2[None, :, axis]
            for axis, (query, scale) in enumerate(axes)
        )
        coordinates = jnp.stack(jnp.broadcast_arrays(row_FxN[:, None], time_TxN[None]), -1).reshape(-1, 2)
        read = _sample_map_coordinates if method == "map_coordinates" else _sample_gather
        table_RxSxH = jnp.moveaxis(table_HxRxS, 0, -1).astype(position_Nx2.dtype)
        flat = read(table_RxSxH, coordinates)
        return flat.T.reshape(table_HxRxS.shape[0], size[0] * size[1], -1)
    start_Nx2 = jnp.asarray([axes[0][0][0], axes[1][0][0]], position_Nx2.dtype) - position_Nx2
    return _table_windows(table_HxRxS.astype(position_Nx2.dtype), start_Nx2, size)


def _reach(table_HxRxS: Array, size: tuple[int, int]) -> Array:
    """Repeats the table's edge until it holds every displacement of a map of `size`, with one pixel around it."""
    missing = [max(0, pixels + 1 - (side + 1) // 2) for pixels, side in zip(size, table_HxRxS.shape[1:])]
    return jnp.pad(table_HxRxS, ((0, 0), *((m, m) for m in missing)), mode="edge") if any(missing) else table_HxRxS


def _table_windows(table_HxRxS: Array, start_Nx2: Array, size: tuple[int, int]) -> Array:
    """Bias of all queries from one window of the table per key, blended by one pair of fractions per key."""
    f, t = size
    heads, rows, times = table_HxRxS.shape
    padded = jnp.pad(table_HxRxS, ((0, 0), (f + 1, f + 1), (t + 1, t + 1)))
    cell_Nx2, part_Nx2 = _split(start_Nx2)
    first = jnp.clip(cell_Nx2 + jnp.array([f + 1, t + 1]), 0, jnp.array([rows + f + 1, times + t + 1]))
    cut = jax.vmap(lambda at: jax.lax.dynamic_slice(padded, (0, at[0], at[1]), (heads, f + 1, t + 1)))
    window_NxHxFxT = cut(first)
    row, time = part_Nx2[:, 0, None, None, None], part_Nx2[:, 1, None, None, None]
    window_NxHxFxT = window_NxHxFxT[:, :, :-1] * (1 - row) + window_NxHxFxT[:, :, 1:] * row
    window_NxHxFxT = window_NxHxFxT[..., :-1] * (1 - time) + window_NxHxFxT[..., 1:] * time
    return window_NxHxFxT.reshape(-1, heads, f * t).transpose(1, 2, 0)
