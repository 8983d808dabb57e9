"""Depthwise convolution: both forms against scipy, and against each other."""

from __future__ import annotations

from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from datar_jax.ops.depthwise_conv import depthwise

pytestmark = pytest.mark.usefixtures("quick_compiles")

B, C = 2, 3


CASES = [  # kernel, stride, (F, T): sizes that the stride divides and does not, one row, one pixel, less than a kernel
    ((3, 3), 1, (4, 7)),
    ((3, 3), 2, (7, 4)),
    ((3, 3), 2, (1, 1)),
    ((3, 5), 1, (1, 6)),
    ((5, 3), 4, (9, 10)),
    ((7, 7), 4, (5, 13)),
    ((9, 9), 8, (16, 11)),
    ((1, 1), 2, (4, 5)),
    ((3, 3), 4, (8, 6)),
    ((7, 9), 2, (3, 2)),
]


def by_scipy(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Correlation of every plane with its kernel, zeros around it, every stride-th pixel kept."""
    planes = [
        [ndimage.correlate(x[b, :, :, c], kernel[:, :, c], mode="constant")[::stride, ::stride] for c in range(C)]
        for b in range(B)
    ]
    return np.moveaxis(np.array(planes), 1, -1)


def gradients_by_scipy(x: np.ndarray, kernel: np.ndarray, stride: int, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map is linear in both arguments: a gradient is the answer to unit vectors."""
    spread = np.zeros_like(x)
    spread[:, ::stride, ::stride] = dy
    dx = np.stack(
        [[ndimage.convolve(spread[b, :, :, c], kernel[:, :, c], mode="constant") for c in range(C)] for b in range(B)]
    )
    d_kernel = np.zeros_like(kernel)
    for i, j in np.ndindex(kernel.shape[:2]):
        unit = np.zeros_like(kernel)
        unit[i, j] = 1
        d_kernel[i, j] = (by_scipy(x, unit, stride) * dy).sum((0, 1, 2))
    return np.moveaxis(dx, 1, -1), d_kernel


@cache
def both(stride: int) -> Any:
    def run(x: Any, kernel: Any, dy: Any) -> list[Any]:
        def one(method: Any) -> Any:
            value, back = jax.vjp(lambda x, kernel: depthwise(x, kernel, stride, method), x, kernel)
            return value, back(dy.astype(value.dtype))

        return [one("conv"), one("shifted")]

    return jax.jit(run)


def case_arrays(index: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    kernel_size, stride, (f, t) = CASES[index]
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(B, f, t, C)), rng.normal(size=(*kernel_size, C))
    dy = rng.normal(size=(B, -(-f // stride), -(-t // stride), C))
    return x, kernel, dy, stride


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{k}-{s}-{n}" for k, s, n in CASES])
@settings(max_examples=3)
@given(seed=st.integers(0, 999))
def test_both_forms_are_the_correlation(index: int, seed: int) -> None:
    x, kernel, dy, stride = case_arrays(index, seed)
    truth, slopes = by_scipy(x, kernel, stride), gradients_by_scipy(x, kernel, stride, dy)
    for value, gradients in both(stride)(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, dy))):
        assert value.shape == dy.shape
        np.testing.assert_allclose(value, truth, atol=3e-5)
        chex.assert_trees_all_close(gradients, slopes, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("kernel_size", [(1, 9), (3, 7), (5, 5), (7, 3), (9, 1)])
def test_the_input_gradient_of_a_strided_kernel(kernel_size: tuple[int, int], stride: int) -> None:
    """Kernels smaller and larger than the stride along each axis, a map one pixel over and one short of whole cells."""
    f, t = 2 * stride + 1, 3 * stride - 1
    rng = np.random.default_rng(0)
    x, dy, kernel = (rng.normal(size=shape) for shape in ((B, f, t, C), (B, 3, 3, C), (*kernel_size, C)))
    truth, _ = gradients_by_scipy(x, kernel, stride, dy)

    @jax.jit
    def slope(x: Any, kernel: Any, dy: Any) -> Any:
        return jax.vjp(lambda x: depthwise(x, kernel, stride, "shifted"), x)[1](dy)[0]

    d_x = slope(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, dy)))
    np.testing.assert_allclose(d_x, truth, atol=3e-5)


@settings(max_examples=5)
@given(seed=st.integers(0, 999))
def test_bfloat16_stays_bfloat16(seed: int) -> None:
    x, kernel, dy, stride = case_arrays(1, seed)
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel, dy)]
    wide = [np.asarray(a, np.float64) for a in narrow]
    truth, slopes = by_scipy(wide[0], wide[1], stride), gradients_by_scipy(*wide[:2], stride, wide[2])
    for value, gradients in both(stride)(*narrow):
        assert {a.dtype for a in jax.tree.leaves((value, gradients))} == {jnp.dtype(jnp.bfloat16)}
        np.testing.assert_allclose(np.asarray(value, np.float64), truth, atol=0.1)
        for mine, other in zip(gradients, slopes):
            np.testing.assert_allclose(np.asarray(mine, np.float64), other, atol=0.1)


def test_an_impulse_in_the_kernel_is_a_shift() -> None:
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    kernel = jnp.zeros((3, 3, 1)).at[0, 1].set(1)  # looks at the row above
    np.testing.assert_array_equal(depthwise(x, kernel)[0, :, :, 0], [[0, 0, 0, 0], [0, 1, 2, 3], [4, 5, 6, 7]])


def test_auto_is_one_of_the_forms() -> None:
    x, kernel, _, _ = (jnp.asarray(a, jnp.float32) for a in case_arrays(0, 0))
    chex.assert_trees_all_close(depthwise(x, kernel), depthwise(x, kernel, method="conv"), atol=1e-5)


@pytest.mark.parametrize("method", ["conv", "shifted"])
@pytest.mark.parametrize(
    "kernel_size, stride, size, padded",
    [
        ((2, 3), 1, (4, 5), True),
        ((4, 4), 2, (5, 8), True),
        ((2, 2), 3, (7, 5), True),
        ((4, 4), 4, (8, 11), False),
        ((3, 2), 2, (6, 7), False),
        ((2, 2), 3, (5, 9), False),
    ],
)
def test_even_kernels_and_no_padding(
    kernel_size: tuple[int, int], stride: int, size: tuple[int, int], padded: bool, method: Any
) -> None:
    """The sum over the pixels under a kernel, with as many zeros on opposite sides, or none."""
    pads = [side // 2 if padded else 0 for side in kernel_size]
    rows, times = ((n + 2 * p - k) // stride + 1 for n, p, k in zip(size, pads, kernel_size))
    rng = np.random.default_rng(0)
    x, kernel, dy = (rng.normal(size=shape) for shape in ((B, *size, C), (*kernel_size, C), (B, rows, times, C)))
    around = np.pad(x, ((0, 0), *((p, p) for p in pads), (0, 0)))
    y, d_around, d_kernel = np.zeros_like(dy), np.zeros_like(around), np.zeros_like(kernel)
    for i, j in np.ndindex(rows, times):
        under = np.s_[:, i * stride : i * stride + kernel_size[0], j * stride : j * stride + kernel_size[1]]
        y[:, i, j] = (around[under] * kernel).sum((1, 2))
        d_around[under] += kernel * dy[:, i, j][:, None, None]
        d_kernel += (around[under] * dy[:, i, j][:, None, None]).sum(0)
    d_x = d_around[:, pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]

    value, back = jax.vjp(lambda x, k: depthwise(x, k, stride, method, padded), *map(jnp.float32, (x, kernel)))
    np.testing.assert_allclose(value, y, atol=3e-5)
    chex.assert_trees_all_close(back(jnp.float32(dy)), (d_x, d_kernel), atol=1e-4)
