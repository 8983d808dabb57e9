"""The product of a Dense layer."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array


def dense_product(
    x_xC: Array, kernel_CxD: Array, _: Any, precision: Any = None, preferred_element_type: Any = None
) -> Array:
    """`(..., C)` by `(C, D)` as a product of two matrices; the signature is that of `jax.lax.dot_general`.

    With all axes of a map, the derivative by the kernel is a product over three axes at once, for which XLA writes the
    map to memory transposed.
    """
    axes = (((1,), (0,)), ((), ()))
    rows = x_xC.reshape(-1, x_xC.shape[-1])
    product = jax.lax.dot_general(rows, kernel_CxD, axes, precision, preferred_element_type)
    return product.reshape(*x_xC.shape[:-1], -1)
