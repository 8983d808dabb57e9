"""Stores weights as float32, bfloat16 or int8; computation is always float32.

`bfloat16` halves every tensor. `int8` quantizes the kernels that mix channels (nearly all weights), with one scale per
output channel (symmetric: zero stays zero); depthwise kernels, position tables, biases and norms stay float32.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

WeightDtype = Literal["float32", "bfloat16", "int8"]

INT8_MAX = 127  # symmetric range


class Quantized(NamedTuple):
    """A kernel in int8: `values * scale` along the last axis."""

    values: Any  # int8 (..., S)
    scale: Any  # float32 (S,)


def quantize(params: Any, form: WeightDtype) -> Any:
    """Converts parameters to a storage dtype.

    Args:
      params: nested dictionaries of floating arrays.
      form: the error is at most 1/256 of a weight for `bfloat16`, and half a scale for `int8`, which is 1/254 of the
        largest weight of the output channel.

    Returns:
      The same dictionaries; leaves are numpy arrays, or `Quantized`.

    Raises:
      ValueError: an unknown dtype, or a weight that is not finite.
    """
    if form not in get_args(WeightDtype):
        raise ValueError(f"weights={form!r}: give one of {', '.join(get_args(WeightDtype))}")

    def small(path: Any, leaf: Any) -> Any:
        weight = np.asarray(leaf, np.float32)
        if not np.isfinite(weight).all():
            raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: holds NaN or infinity")
        if form == "int8" and _mixes(path[-1].key, weight.shape):
            return quantize_leaf(weight)
        return weight.astype(jnp.bfloat16) if form == "bfloat16" else weight

    return jax.tree_util.tree_map_with_path(small, params)


def quantize_leaf(weight_xS: np.ndarray) -> Quantized:
    """Quantizes to integers from -127 to 127, with a scale per output channel (last axis)."""
    most_S = np.abs(weight_xS).reshape(-1, weight_xS.shape[-1]).max(0)
    scale_S = np.maximum(most_S / np.float32(INT8_MAX), np.finfo(np.float32).tiny)  # a channel may be all zeros
    return Quantized(np.round(weight_xS / scale_S).astype(np.int8), scale_S)


def dequantize(stored: Any) -> Any:
    """Converts the result of `quantize` to float32; works on numpy arrays and on traced jax arrays."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return leaf.values.astype(np.float32) * leaf.scale.reshape(*(1,) * (leaf.values.ndim - 1), -1)
        return leaf.astype(np.float32)

    return jax.tree.map(wide, stored, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def _mixes(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf is the kernel of a Dense layer or of a convolution that mixes channels."""
    return name == "kernel" and (len(shape) == 2 or (len(shape) == 4 and shape[2] > 1))
