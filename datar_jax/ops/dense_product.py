"""The product of a Dense layer."""

from __future__ import annotations

from jax import Array


def dense_product(x_xC: Array, kernel_CxD: Array) -> Array:
    """`(..., C)` by `(C, D)` as a product of two matrices.

    With all axes of a map, the derivative by the kernel is a product over three axes at once, for which XLA writes the
    map to memory transposed.
    """
    return (x_xC.reshape(-1, x_xC.shape[-1]) @ kernel_CxD).reshape(*x_xC.shape[:-1], -1)
