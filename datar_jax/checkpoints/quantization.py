"""Weights in float32, bfloat16 or int8."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

WeightDtype = Literal["float32", "bfloat16", "int8"]


LARGEST = 127  # of an int8 value: as far down as up


class Quantized(NamedTuple):
    """A kernel as whole numbers: `values * scale` along the last axis."""

    values: Any  # int8 (..., S)
    scale: Any  # float32 (S,)


def quantize(params: Any, form: WeightDtype) -> Any:
    """Parameters in a smaller form.

    Args:
      params: nested dictionaries of floating arrays.
      form: `bfloat16` errs by a 256th of a weight at most, `int8` by half a scale, which is a 254th of the largest
        weight of its output channel.

    Returns:
      The same dictionaries; leaves are numpy arrays, or `Quantised`.

    Raises:
      ValueError: an unknown form, or a weight that is not finite.
    """
    if form not in get_args(WeightDtype):
        raise ValueError(f"no form {form!r} of weights; there are {', '.join(get_args(WeightDtype))}")

    def small(path: Any, leaf: Any) -> Any:
        weight = np.asarray(leaf, np.float32)
        if not np.isfinite(weight).all():
            raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: holds NaN or infinity")
        if form == "int8" and _mixes(path[-1].key, weight.shape):
            return quantize_leaf(weight)
        return weight.astype(jnp.bfloat16) if form == "bfloat16" else weight

    return jax.tree_util.tree_map_with_path(small, params)


def quantize_leaf(weight_xS: np.ndarray) -> Quantized:
    """Whole numbers from -127 to 127 and a scale per output channel, the last axis."""
    most_S = np.abs(weight_xS).reshape(-1, weight_xS.shape[-1]).max(0)
    scale_S = np.maximum(most_S / np.float32(LARGEST), np.finfo(np.float32).tiny)  # a channel may be zero throughout
    return Quantized(np.round(weight_xS / scale_S).astype(np.int8), scale_S)


def dequantize(stored: Any) -> Any:
    """What `compress` stored, in float32; of numpy or, inside a traced function, of jax arrays."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return leaf.values.astype(np.float32) * leaf.scale
        return leaf.astype(np.float32)

    return jax.tree.map(wide, stored, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def _mixes(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf is the kernel of a Dense layer or of a convolution that mixes channels."""
    return name == "kernel" and (len(shape) == 2 or (len(shape) == 4 and shape[2] > 1))
