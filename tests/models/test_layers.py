"""Layers: Dense, LayerNorm and GELU against their definitions, stochastic depth, the input adaptor, column masks."""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.scipy.stats import norm

from datar_jax.models.adaptor import InputAdaptor
from datar_jax.models.flops import macs
from datar_jax.models.layers import Dense, DropPath, LayerNorm
from datar_jax.ops.activations import gelu
from datar_jax.ops.layer_norm import EPSILON, layer_norm
from datar_jax.ops.masking import columns


def rows(seed: int, shape: tuple[int, ...], level: float, spread: float) -> tuple[np.ndarray, ...]:
    """Input, scale, shift, and the gradient from above; float64."""
    rng = np.random.default_rng(seed)
    x, above = level + spread * rng.normal(size=shape), rng.normal(size=shape)
    return x, rng.normal(size=shape[-1]), rng.normal(size=shape[-1]), above


def by_flax(x: Any, scale: Any, bias: Any) -> Any:
    module = nn.LayerNorm(EPSILON, dtype=x.dtype, use_fast_variance=False)
    return module.apply({"params": {"scale": scale, "bias": bias}}, x)


def value_and_slopes(function: Any, x: Any, scale: Any, bias: Any, above: Any) -> Any:
    value, back = jax.vjp(function, x, scale, bias)
    return value, back(above)


@given(
    st.integers(0, 99),
    st.sampled_from([(3,), (1, 1), (4, 7), (2, 3, 5, 8)]),
    st.sampled_from([0.0, -5.0, 300.0]),
    st.sampled_from([0.0, 1e-4, 1.0, 50.0]),
)
def test_layer_norm_and_its_slopes_are_those_of_flax(
    seed: int, shape: tuple[int, ...], level: float, spread: float
) -> None:
    """In float64, of loud, quiet and constant rows too."""
    with jax.enable_x64(True):
        x, scale, bias, above = map(jnp.asarray, rows(seed, shape, level, spread))
        mine = value_and_slopes(layer_norm, x, scale, bias, above)
        chex.assert_trees_all_close(mine, value_and_slopes(by_flax, x, scale, bias, above), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_norm_of_bfloat16_has_float32_statistics(dtype: Any) -> None:
    """A mean of 100 takes all digits of a bfloat16; what is left of the rows must not be lost with it."""
    x, _, _, _ = rows(0, (6, 64), 100.0, 1.0)
    x = jnp.asarray(x, jnp.bfloat16)
    module = LayerNorm(dtype)
    params = module.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == {
        "scale": ((64,), jnp.float32),
        "bias": ((64,), jnp.float32),
    }
    value = module.apply({"params": params}, x)
    assert value.dtype == dtype
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + EPSILON)
    # Float32: a mean of 100 is rounded by 4e-6. Bfloat16: half of the last of 8 binary digits of the result.
    np.testing.assert_allclose(
        np.asarray(value, np.float64), exact, atol=1e-4, rtol=0 if dtype == jnp.float32 else 2**-8
    )


def test_the_sums_of_a_layer_norm_are_not_counted_as_products() -> None:
    x = jnp.zeros((2, 3, 4))
    assert macs(layer_norm, x, x[0, 0], x[0, 0]) == 0
    assert macs(lambda x: x @ jnp.ones((4, 2)), x) == 2 * 3 * 4 * 2


def test_gelu_and_its_slope_are_exact() -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(-9, 9, 1001)  # far below zero, 1 + erf is rounded to the last digit of 1
        np.testing.assert_allclose(gelu(x), x * norm.cdf(x), rtol=1e-12, atol=2e-15)
        slope = jax.grad(lambda x: gelu(x).sum())(x)
        np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), rtol=1e-12, atol=2e-15)


def test_dense_is_the_dense_layer_of_flax() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)

    class Net(nn.Module):
        """Ours or flax's, same name."""

        ours: bool

        @nn.compact
        def __call__(self, x: Any) -> Any:
            return Dense(7, jnp.float32, name="same")(x) if self.ours else nn.Dense(7, name="same")(x)

    params = Net(True).init(jax.random.key(0), x)

    def slopes(net: Net) -> Any:
        return jax.value_and_grad(lambda params: (net.apply(params, x) ** 3).sum())(params)

    chex.assert_trees_all_close(slopes(Net(True)), slopes(Net(False)), rtol=1e-5)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_drop_path_keeps_the_expectation(wrap: Any, rate: float) -> None:
    n, x = 20_000, 3.0
    apply = wrap(partial(DropPath(rate, train=True).apply, {}))
    kept = np.asarray(apply(jnp.full((n, 1, 2, 1), x), rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(kept[:, 0, 0], kept[:, 0, 1], err_msg="an example is dropped as a whole")
    assert {round(float(v), 4) for v in np.unique(kept)} == {0.0, round(x / (1 - rate), 4)}
    deviation = x * np.sqrt(rate / (1 - rate) / n)
    assert abs(kept[:, 0, 0, 0].mean() - x) < 4 * deviation
    for still in (DropPath(rate, train=False), DropPath(0.0, train=True)):
        np.testing.assert_array_equal(still.apply({}, jnp.ones((2, 1, 1, 1))), 1)


def test_the_adaptor_adds_its_signal_and_its_branch() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    signal = np.random.default_rng(1).normal(size=(3, 4, 2)).astype(np.float32)
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[1, 0] = 2.0  # twice the column before
    bias = np.array([0.5, -0.5], np.float32)
    before = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    params = {"signal": signal, "conv": {"kernel": kernel, "bias": bias}}
    out = InputAdaptor("both", (3, 4)).apply({"params": params}, x)
    np.testing.assert_allclose(out, x + signal + 2 * before + bias, atol=1e-6)
    longer = InputAdaptor("signal", (3, 4)).apply({"params": {"signal": signal}}, np.zeros((1, 3, 8, 2), np.float32))
    expected = jax.image.resize(signal, (3, 8, 2), "linear")
    np.testing.assert_allclose(longer[0], expected, atol=1e-6)


def test_columns_that_hold_sound() -> None:
    """A column of a halved map holds sound if any of its frames does."""
    frames = np.array([0, 1, 4, 5, 8])
    for halvings in range(4):
        sound = np.arange(16) < frames[:, None]
        held = sound.reshape(5, -1, 2**halvings).any(-1)
        np.testing.assert_array_equal(columns(jnp.asarray(frames), held.shape[1], halvings), held)
    assert columns(None, 4, 1) is None
