"""The bias of a layer and its gradient."""

from __future__ import annotations

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
    rows = jnp.zeros((4, 32, 32, 3), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda bias: add_bias(rows, bias).astype(jnp.float32).sum()))(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, np.full(3, 4096.0))
