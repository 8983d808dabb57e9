"""A parameter that is added to every example, and its gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.ops.add_bias import add_bias


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_bias_is_added_to_every_row_in_the_dtype_of_the_rows(dtype: object) -> None:
    x = jnp.arange(24, dtype=dtype).reshape(2, 3, 4)
    y = add_bias(x, jnp.arange(4.0))
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.float32(y), np.arange(24).reshape(2, 3, 4) + np.arange(4))


def test_the_gradient_of_many_bfloat16_rows_is_their_sum() -> None:
    """In bfloat16 a sum of ones would stop at 256."""
    ones = jnp.ones((4, 32, 32, 3), jnp.bfloat16)

    def total(bias: Any, weight: Any) -> Any:
        return (add_bias(jnp.zeros_like(weight), bias) * weight).astype(jnp.float32).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.zeros(3), ones), np.full(3, 4096.0))
