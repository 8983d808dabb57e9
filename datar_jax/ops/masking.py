"""Masks for columns that are padding."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

MASK_VALUE = -1e9  # finite: a window of padding only must not divide zero by zero


def mask_columns(x_BxFxTxC: Array, valid_BxT: Array | None) -> Array:
    """Zeroes padded columns, so that no convolution or sample mixes them into valid ones."""
    return x_BxFxTxC if valid_BxT is None else jnp.where(valid_BxT[:, None, :, None], x_BxFxTxC, 0)


def columns(frames_B: Array | None, width: int, halvings: int) -> Array | None:
    """Valid columns of a map of `width` columns after `halvings` of `frames_B` frames, `(B, T)` bool."""
    if frames_B is None:
        return None
    return 2**halvings * jnp.arange(width)[None] < frames_B[:, None]
