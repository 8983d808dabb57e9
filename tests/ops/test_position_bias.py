"""The relative position bias: every formulation is the definition, and that is plain loops over pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.ops.position_bias import position_bias, table_bias_row
from tests.reference import GRIDS, bias_by_loops

pytestmark = pytest.mark.usefixtures("quick_compiles")

TABLES = [  # (F, T) of the map that the table is made for, (F, T) of the map at run time
    ((3, 4), (3, 4)),
    ((3, 4), (5, 6)),
    ((3, 4), (1, 2)),
    ((1, 4), (1, 7)),
    ((3, 1), (4, 1)),
    ((2, 3), (1, 1)),
]
HEADS = 2
METHODS = ("map_coordinates", "gather", "window", "separable", "auto")


@cache
def bias_all(size: tuple[int, int], grid: Any) -> Callable[..., list[Any]]:
    """Value and both gradients of every method, compiled once per size."""

    def run(table: Any, position: Any, above: Any) -> list[Any]:
        def one(method: Any) -> Any:
            value, back = jax.vjp(lambda t, p: position_bias(t, p, size, grid, method), table, position)
            return value, back(above)

        return [one(method) for method in METHODS if grid == "centre" or method != "window"]

    return jax.jit(run)


@st.composite
def tables_and_points(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    made_for, size = draw(st.sampled_from(TABLES))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    near = [st.integers(-96, 64 * n + 32).map(lambda x: x / 64) for n in size]
    far = st.sampled_from([-1e6, 1e6, -40.25, 40.25])
    columns = [draw(st.lists(st.one_of(strategy, strategy, far), min_size=6, max_size=6)) for strategy in near]
    table = rng.normal(size=(HEADS, *(2 * n - 1 for n in made_for))).astype(np.float32)
    above = rng.normal(size=(HEADS, math.prod(size), 6)).astype(np.float32)
    return table, np.stack(columns, -1).astype(np.float32), above, size


@pytest.mark.slow
@given(tables_and_points())
def test_every_method_gives_the_same_bias(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]],
) -> None:
    table, position, above, size = case
    (definition, slopes), *others = bias_all(size, "centre")(table, position, above)
    np.testing.assert_allclose(definition, bias_by_loops(table, position, size, "centre"), atol=1e-5)
    for value, gradients in others:
        chex.assert_trees_all_close(value, definition, atol=1e-5)
        chex.assert_trees_all_close(gradients, slopes, atol=5e-5)


@pytest.mark.parametrize("grid", GRIDS[1:])
@pytest.mark.parametrize("made_for, size", [((3, 4), (3, 4)), ((3, 4), (5, 6))])
def test_published_bias(grid: Any, made_for: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(HEADS, *(2 * n - 1 for n in made_for))).astype(np.float32)
    position = rng.uniform(-1.0, np.array(size), (6, 2)).astype(np.float32)
    above = rng.normal(size=(HEADS, math.prod(size), 6)).astype(np.float32)
    (definition, slopes), *others = bias_all(size, grid)(table, position, above)
    np.testing.assert_allclose(definition, bias_by_loops(table, position, size, grid), atol=1e-5)
    for value, gradients in others:
        chex.assert_trees_all_close(value, definition, atol=1e-5)
        chex.assert_trees_all_close(gradients, slopes, atol=5e-5)


@pytest.mark.parametrize("made_for, size", TABLES)
def test_zero_displacement_reads_the_centre(made_for: tuple[int, int], size: tuple[int, int]) -> None:
    table = np.random.default_rng(3).normal(size=(HEADS, *(2 * n - 1 for n in made_for))).astype(np.float32)
    pixels = jnp.asarray(np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2), jnp.float32)
    bias = np.asarray(position_bias(jnp.asarray(table), pixels, size))
    own = np.diagonal(bias, axis1=1, axis2=2)
    np.testing.assert_array_equal(own, np.repeat(table[:, made_for[0] - 1, made_for[1] - 1, None], len(pixels), 1))


def test_whole_displacements_index_the_table_up_to_its_edge() -> None:
    (f, t), (rows, times) = (5, 6), (3, 4)
    table = np.random.default_rng(4).normal(size=(HEADS, 2 * rows - 1, 2 * times - 1)).astype(np.float32)
    at = np.stack(np.meshgrid(np.arange(f), np.arange(t), indexing="ij"), -1).reshape(-1, 2)
    bias = np.asarray(position_bias(jnp.asarray(table), jnp.asarray(at, jnp.float32), (f, t)))
    apart = at[:, None] - at[None, :]  # query minus key
    row = np.clip(apart[..., 0], 1 - rows, rows - 1) + rows - 1
    time = np.clip(apart[..., 1], 1 - times, times - 1) + times - 1
    np.testing.assert_array_equal(bias, table[:, row, time])


@pytest.mark.parametrize("method", METHODS)
def test_a_key_further_than_one_pixel_outside_reads_as_at_one_pixel(method: Any) -> None:
    """It does not slide along the table's edge and has no slope; nor if the table was made for a smaller map."""
    size = (3, 4)
    outside = np.array([[-1.5, 1.3], [3.5, 2.2], [1.2, -7.0], [0.7, 40.0], [-1e6, 1e6], [3.01, -1.01]])
    nearest = np.clip(outside, -1, size)
    beyond = outside != nearest
    rng = np.random.default_rng(6)

    @jax.jit
    def read(table: Any, position: Any, above: Any) -> Any:
        value, back = jax.vjp(lambda p: position_bias(table, p, size, method=method), position)
        return value, back(above)[0]

    table = rng.normal(size=(HEADS, 3, 3)).astype(np.float32)
    above = rng.normal(size=(HEADS, math.prod(size), len(outside))).astype(np.float32)
    value, slope = read(table, jnp.asarray(outside, jnp.float32), above)
    at_one_pixel, _ = read(table, jnp.asarray(nearest, jnp.float32), above)
    np.testing.assert_allclose(value, at_one_pixel, atol=1e-5)
    np.testing.assert_allclose(value, bias_by_loops(table, outside, size, "centre"), atol=1e-5)
    slope = np.asarray(slope)
    assert not slope[beyond].any() and (slope[~beyond] != 0).all()


@pytest.mark.parametrize("method", METHODS[:-1])
def test_a_bfloat16_table_is_read_in_float32(method: Any) -> None:
    """What comes out has the digits of the positions; only the gradient goes back to the table's dtype."""
    rng, size = np.random.default_rng(8), (3, 4)
    table = jnp.asarray(rng.normal(size=(HEADS, 5, 7)), jnp.bfloat16)
    position = jnp.asarray(rng.uniform(-1, size, (6, 2)), jnp.float32)

    @jax.jit
    def read(table: Any, position: Any) -> Any:
        value, back = jax.vjp(lambda t, p: position_bias(t, p, size, method=method), table, position)
        return value, back(value)

    value, (d_table, d_position) = read(table, position)
    assert (value.dtype, d_table.dtype, d_position.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(
        value, bias_by_loops(np.asarray(table, np.float64), np.asarray(position), size, "centre"), atol=1e-5
    )


def test_an_unknown_formulation_is_refused_by_the_names_of_the_known() -> None:
    for grid in GRIDS:
        with pytest.raises(
            ValueError, match=r"'nearest'; choose one of auto, map_coordinates, gather, window, hat, sep"
        ):
            table_bias_row(jnp.zeros((1, 7, 7)), jnp.zeros((1, 2)), jnp.int32(0), (2, 2), grid, "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", GRIDS[1:])
@pytest.mark.parametrize("method", ["window", "hat"])
def test_a_published_grid_refuses_formulations_that_it_does_not_have(grid: Any, method: Any) -> None:
    with pytest.raises(ValueError, match=rf"'{method}' needs the grid 'centre', not '{grid}'"):
        table_bias_row(jnp.zeros((1, 7, 7)), jnp.zeros((1, 2)), jnp.int32(0), (2, 2), grid, method)
