"""Resizes position tables to another map or window, in numpy.

Shapes: H heads, R x S a table of displacements (query - key), its centre zero displacement; F x T a map.
"""

from __future__ import annotations

import numpy as np

from datar_jax.ops.sampling import Grid

CUBIC = -0.75  # slope of the cubic kernel (Keys, 1981); this one is PyTorch's, with which the official loader resizes


def resize_table(
    table_HxRxS: np.ndarray,
    size_from: tuple[int, int],
    size_to: tuple[int, int],
    grid: Grid,
    scale: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Resizes the table of deformable attention to another map.

    `centre`: a table is read in pixels, so what a displacement reads stays what it was: the table is cut, or its edge
    repeated. Where pixels have another meaning (`scale`), it is read bilinearly at the old displacement. The published
    grids stretch a table over its map, whatever its size: resized bicubically, as the official loader does.

    Args:
      table_HxRxS: R = 2 F - 1 and S = 2 T - 1 of `size_from`.
      size_from: (F, T) of the map that the table was made for.
      size_to: (F, T) of the new map.
      grid: convention of the table.
      scale: new pixels for each old one, by axis, as when the hop is another; for `centre` only.

    Returns:
      `(H, 2 F - 1, 2 T - 1)` of `size_to`, dtype of the table.

    Raises:
      ValueError: the table is not one for `size_from`.
    """
    _check(table_HxRxS.shape[1:], size_from)
    if grid != "centre":
        return _apply(table_HxRxS, *(cubic_weights(2 * a - 1, 2 * b - 1) for a, b in zip(size_from, size_to)))
    weights = (_linear_weights(a, b, new) for a, b, new in zip(size_from, size_to, scale))
    return _apply(table_HxRxS, *weights)


def resize_window_table(table_HxRS: np.ndarray, window_from: tuple[int, int], window_to: tuple[int, int]) -> np.ndarray:
    """The flat table of window or neighbourhood attention for another window, bicubically as the official loader does.

    Args:
      table_HxRS: R = 2 Wf - 1 times S = 2 Wt - 1 entries, row-major.
      window_from: (Wf, Wt) that it was made for.
      window_to: the new window.

    Returns:
      `(H, R S)` of `window_to`, dtype of the table.

    Raises:
      ValueError: the table is not one for `window_from`.
    """
    (r, s), (new_r, new_s) = ([2 * side - 1 for side in window] for window in (window_from, window_to))
    if table_HxRS.shape[1] != r * s:
        raise ValueError(f"a table of {table_HxRS.shape[1]} entries is not one of a window {window_from}")
    tables = _apply(table_HxRS.reshape(-1, r, s), cubic_weights(r, new_r), cubic_weights(s, new_s))
    return tables.reshape(len(table_HxRS), -1)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """What each new sample takes of the old ones, float64 `(new, old)`: cubic convolution of cells, edge repeated."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    cell = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        x = np.abs(centre - cell - step)
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
        np.add.at(weights, (np.arange(new), np.clip(cell + step, 0, old - 1)), np.where(x <= 1, near, far))
    return weights


def _linear_weights(old: int, new: int, scale: float) -> np.ndarray:
    """Of tables for `old` and `new` pixels: bilinear at the same displacement, edge repeated; float64."""
    at = np.clip(np.arange(1 - new, new) / scale, 1 - old, old - 1) + old - 1
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(2 * old - 1)))


def _apply(table_HxRxS: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return (rows @ table_HxRxS.astype(np.float64) @ columns.T).astype(table_HxRxS.dtype)


def _check(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if shape != tuple(2 * side - 1 for side in size):
        raise ValueError(f"a table of {' x '.join(map(str, shape))} is not one for a map of {size[0]} x {size[1]}")
