"""Sampling points of deformable attention and bilinear sampling: pure functions.

Shapes: F frequency rows, T time columns, C channels, N sampled points (keys). Positions are in pixels of the map,
`(freq, time)`, 0 at the centre of the first pixel, and float32 or wider: a bfloat16 coordinate is off by up to an
eighth of a pixel from 32 on, by a quarter from 64 on. Outside the map is zero, each of the four neighbours by itself,
and the slope at an integer coordinate is that of the cell to its right.

`jax.scipy.ndimage.map_coordinates` (order 1, constant 0) is the definition; the other formulations give the same
numbers and gradients.

Grids: `centre` is ours; `dat2022` and `dat2023` are the two published conventions of Deformable Attention Transformers
(Xia et al., CVPR 2022; "DAT++", 2023), kept so that their weights load and their numbers can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates

from datar_jax.ops.fusion_barrier import fusion_barrier

Grid = Literal["centre", "dat2022", "dat2023"]
Method = Literal["auto", "map_coordinates", "gather", "window", "hat", "separable"]


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


def offset_padding(kernel: int, stride: int, grid: Grid) -> int:
    """Zeros on each side of the map that the offset network reads: half a kernel; none in `dat2023` if kernel = stride.

    An axis of n pixels has `(n + 2 padding - kernel) // stride + 1` keys.
    """
    return 0 if grid == "dat2023" and kernel == stride else kernel // 2


def query_points(size: int, grid: Grid) -> np.ndarray:
    """Pixel coordinates of the queries along an axis, as the position bias measures them, float64 `(size,)`."""
    pixel = np.arange(size, dtype=np.float64)
    return (pixel + 0.5) / size * (size - 1) if grid == "dat2022" else pixel


def sampling_positions(raw_xN: Array, size: int, keys: int, offset_range: float, grid: Grid) -> Array:
    """Moves the reference points of one axis by predicted offsets.

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
    before = tuple(range(raw_xN.ndim - 1))
    reference = jnp.expand_dims(jnp.asarray(reference_points(size, keys, grid), raw_xN.dtype), before)
    half = (size if grid == "centre" else size - 1) / 2  # pixels of one normalized unit
    if offset_range > 0 or (offset_range == 0 and grid != "dat2022"):
        if grid == "dat2023" and keys == 1:
            raise ValueError("grid dat2023 has no bounded offsets on a map with one key along an axis; use 'centre'")
        unit = half / (keys - 1 if grid == "dat2023" else keys)
        return reference + offset_range * unit * jnp.tanh(raw_xN)
    if grid != "dat2022":
        return jnp.clip(reference + raw_xN * half, 0, size - 1)
    if offset_range == 0:
        return reference + raw_xN * half
    unit_reference = jnp.expand_dims(jnp.asarray(2 * (np.arange(keys) + 0.5) / keys - 1, raw_xN.dtype), before)
    return (jnp.tanh(unit_reference + raw_xN) + 1) * half


def pool_cells(x_BxFxTxC: Array, stride: int) -> Array:
    """Means of stride x stride pixels, `(B, F // stride, T // stride, C)`; pixels that fill no cell are left out."""
    b, f, t, c = x_BxFxTxC.shape
    rows, times = f // stride, t // stride
    cells = x_BxFxTxC[:, : rows * stride, : times * stride].reshape(b, rows, stride, times, stride, c)
    return cells.mean((2, 4))


def split(coordinate: Array) -> tuple[Array, Array]:
    """Integer cell (int32) and fraction of a coordinate; the fraction carries the gradient."""
    cell = jnp.floor(jax.lax.stop_gradient(coordinate))
    return cell.astype(jnp.int32), coordinate - cell


def bilinear_weights(coordinate_N: Array, size: int) -> Array:
    """Bilinear weights of `size` pixels for each coordinate, `(N, size)`: two neighbours, zero outside."""
    cell, fraction = split(coordinate_N)
    distance = jnp.expand_dims(jnp.arange(size), tuple(range(cell.ndim))) - cell[..., None]
    return jnp.where(distance == 0, 1 - fraction[..., None], jnp.where(distance == 1, fraction[..., None], 0))


def sample_features(x_BxFxTxGxC: Array, position_BxGxNx2: Array, method: Method = "auto") -> Array:
    """Samples maps bilinearly at fractional positions; zero outside.

    Args:
      x_BxFxTxGxC: maps, their channels in groups that are read at positions of their own.
      position_BxGxNx2: `(freq, time)` in pixels, at least float32.
      method: formulation. `map_coordinates`: the definition. `gather`: four neighbours, whose derivative scatters.
        `window`: one patch of 2 x 2 pixels, whose derivative is a product and does not scatter. `hat`: one product with
        the weights of all pixels. `separable`: rows first, then columns. `auto`: the fastest that was measured
        (docs/benchmarks.md). On TPU products: no gather, sort or scatter survives in their program. Elsewhere four
        reads are cheap; what costs is the scatter of their derivative, which `window` avoids as long as the map is
        small.

    Returns:
      `(B, N, G, C)`, dtype of the maps.

    Raises:
      ValueError: an unknown method.
    """
    forms: dict[str, Callable[[Array, Array], Array]] = {
        "map_coordinates": sample_by_map_coordinates,
        "gather": sample_by_gather,
        "window": _sample_window,
        "hat": _sample_hat,
        "separable": _sample_separable,
    }
    batched = {name: jax.vmap(jax.vmap(form, (2, 0), 1)) for name, form in forms.items()}
    if method in batched:
        return fusion_barrier(batched[method], x_BxFxTxGxC, position_BxGxNx2)
    if method != "auto":
        raise ValueError(f"no formulation {method!r}; choose one of {', '.join(get_args(Method))}")
    # Chosen for all maps at once: a choice inside vmap would have every group's channels copied out first.
    small = x_BxFxTxGxC.shape[1] * x_BxFxTxGxC.shape[2] <= 512
    reads = batched["window" if small else "gather"]
    chosen = partial(jax.lax.platform_dependent, tpu=batched["hat"], default=reads)
    return fusion_barrier(chosen, x_BxFxTxGxC, position_BxGxNx2)


def sample_by_map_coordinates(x_FxTxC: Array, position_Nx2: Array) -> Array:
    """Reference formulation by `jax.scipy.ndimage.map_coordinates`, `(N, C)`."""
    wide = x_FxTxC.astype(position_Nx2.dtype)
    read = jax.vmap(lambda plane: map_coordinates(plane, list(position_Nx2.T), order=1, cval=0.0), -1, -1)
    return read(wide).astype(x_FxTxC.dtype)


def sample_by_gather(x_FxTxC: Array, position_Nx2: Array) -> Array:
    """Four reads per point, `(N, C)`."""
    f, t, c = x_FxTxC.shape
    row, row_part = split(position_Nx2[:, 0])
    time, time_part = split(position_Nx2[:, 1])
    flat = x_FxTxC.reshape(f * t, c).astype(position_Nx2.dtype)  # its derivative adds up many bfloat16
    total = jnp.zeros((position_Nx2.shape[0], c), position_Nx2.dtype)
    for i, row_weight in ((row, 1 - row_part), (row + 1, row_part)):
        for j, time_weight in ((time, 1 - time_part), (time + 1, time_part)):
            inside = (i >= 0) & (i < f) & (j >= 0) & (j < t)
            weight = jnp.where(inside, row_weight * time_weight, 0)
            index = jnp.where(inside, i * t + j, 0)
            total += weight[:, None] * jnp.take(flat, index, axis=0)
    return total.astype(x_FxTxC.dtype)


@jax.custom_vjp
def _sample_window(x_FxTxC: Array, position_Nx2: Array) -> Array:
    patch_Nx2x2xC, (rows_Nx2, times_Nx2), _ = _patches(x_FxTxC, position_Nx2)
    return _blend(patch_Nx2x2xC, rows_Nx2, times_Nx2).astype(x_FxTxC.dtype)


def _patches(x_FxTxC: Array, position_Nx2: Array) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """A patch of the map around each point, and of its rows and of its columns the weights and their slopes.

    At the border the patch stays inside, so the map needs no rim of zeros; a neighbour outside has no weight.
    """
    size = x_FxTxC.shape[:2]
    patch = (min(2, size[0]), min(2, size[1]))  # of a map of one row or one column: that one
    cell_Nx2, part_Nx2 = split(position_Nx2)
    first_Nx2 = jnp.clip(cell_Nx2, 0, np.subtract(size, patch)[None])
    cut = jax.vmap(lambda at: jax.lax.dynamic_slice(x_FxTxC, (at[0], at[1], 0), (*patch, x_FxTxC.shape[2])))
    weights, slopes = [], []
    for axis in (0, 1):
        distance = np.arange(patch[axis])[None] + (first_Nx2 - cell_Nx2)[:, axis, None]
        part = part_Nx2[:, axis, None]
        weights.append(jnp.where(distance == 0, 1 - part, jnp.where(distance == 1, part, 0)))
        slopes.append(jnp.where(distance == 0, -1, jnp.where(distance == 1, 1, 0)).astype(part.dtype))
    return cut(first_Nx2).astype(position_Nx2.dtype), tuple(weights), tuple(slopes)


def _blend(patch_NxKxLx: Array, rows_NxK: Array, times_NxL: Array) -> Array:
    """Weighted sum of the pixels of each patch; `(N, ...)`."""
    high, wide = patch_NxKxLx.shape[1:3]
    weight = (rows_NxK[:, :, None] * times_NxL[:, None, :]).reshape(-1, high, wide, *(1,) * (patch_NxKxLx.ndim - 3))
    return reduce(jnp.add, (patch_NxKxLx[:, i, j] * weight[:, i, j] for i in range(high) for j in range(wide)))


def _window_forward(x_FxTxC: Array, position_Nx2: Array) -> tuple[Array, tuple[Array, Array]]:
    return _sample_window(x_FxTxC, position_Nx2), (x_FxTxC, position_Nx2)


def _window_backward(saved: tuple[Array, Array], above_NxC: Array) -> tuple[Array, Array]:
    x_FxTxC, position_Nx2 = saved
    f, t, c = x_FxTxC.shape
    above_NxC = above_NxC.astype(position_Nx2.dtype)
    patch, (rows, times), (row_slopes, time_slopes) = _patches(x_FxTxC, position_Nx2)
    seen_NxKxL = (patch * above_NxC[:, None, None]).sum(-1)
    d_position = jnp.stack([_blend(seen_NxKxL, row_slopes, times), _blend(seen_NxKxL, rows, time_slopes)], -1)
    rows_FxN, times_TxN = bilinear_weights(position_Nx2[:, 0], f).T, bilinear_weights(position_Nx2[:, 1], t).T
    weights_FTxN = (rows_FxN[:, None] * times_TxN[None]).reshape(f * t, -1)
    d_x = exact("mn,nc->mc", weights_FTxN, above_NxC).reshape(f, t, c)
    return d_x.astype(x_FxTxC.dtype), d_position


_sample_window.defvjp(_window_forward, _window_backward)


def _sample_hat(x_FxTxC: Array, position_Nx2: Array) -> Array:
    f, t, c = x_FxTxC.shape
    rows, times = bilinear_weights(position_Nx2[:, 0], f), bilinear_weights(position_Nx2[:, 1], t)
    weights_NxFT = (rows[:, :, None] * times[:, None, :]).reshape(-1, f * t)
    wide = x_FxTxC.reshape(f * t, c).astype(weights_NxFT.dtype)
    return exact("nm,mc->nc", weights_NxFT, wide).astype(x_FxTxC.dtype)


def _sample_separable(x_FxTxC: Array, position_Nx2: Array) -> Array:
    rows_NxF, times_NxT = (bilinear_weights(position_Nx2[:, axis], x_FxTxC.shape[axis]) for axis in (0, 1))
    read_NxTxC = exact("nf,ftc->ntc", rows_NxF, x_FxTxC.astype(position_Nx2.dtype))
    return exact("nt,ntc->nc", times_NxT, read_NxTxC).astype(x_FxTxC.dtype)


def exact(equation: str, left: Array, right: Array) -> Array:
    """An einsum at full precision: weights in bfloat16 would lose the fraction of a pixel."""
    return jnp.einsum(equation, left, right, precision=jax.lax.Precision.HIGHEST)
