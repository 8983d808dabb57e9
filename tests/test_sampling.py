"""Where attention looks and what it reads: three formulations, one definition, and that against plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax import sampling
from datar_jax.bias import position_bias
from datar_jax.sampling import reference_points, sample_features, sampling_positions

pytestmark = pytest.mark.usefixtures("quick_compiles")

METHODS = ("map_coordinates", "gather", "window", "hat", "separable")
SIZES = [(1, 1), (1, 6), (5, 1), (4, 7)]
GRIDS = ("centre", "dat2022", "dat2023")
N = 10  # points of every draw


def bilinear(map_FxTxC: np.ndarray, position_Nx2: np.ndarray) -> np.ndarray:
    """The law itself in float64: four neighbours, each of them zero outside."""
    f, t, c = map_FxTxC.shape
    out = np.zeros((len(position_Nx2), c))
    for n, (row, time) in enumerate(np.asarray(position_Nx2, np.float64)):
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(time), math.floor(time) + 1):
                if 0 <= i < f and 0 <= j < t:
                    out[n] += (1 - abs(row - i)) * (1 - abs(time - j)) * map_FxTxC[i, j]
    return out


def coordinates(size: int) -> st.SearchStrategy[float]:
    """Inside, on pixels, on the border, just outside, far outside; exact in float32 or far from a kink."""
    last = float(size - 1)
    return st.one_of(
        st.integers(-2, size + 1).map(float),
        st.sampled_from([0.0, last, -1.0, last + 1, -0.5, last + 0.5, -1e6, 1e6, -3e9, 3e9]),
        st.integers(-5 * 64, (size + 4) * 64).map(lambda x: x / 64),
    )


@st.composite
def maps_and_points(draw: st.DrawFn, sizes: list[tuple[int, int]] = SIZES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map, positions, and the gradient that comes from above."""
    f, t = draw(st.sampled_from(sizes))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = draw(st.lists(coordinates(f), min_size=N, max_size=N))
    times = draw(st.lists(coordinates(t), min_size=N, max_size=N))
    position = np.stack([rows, times], -1).astype(np.float32)
    return rng.normal(size=(f, t, 3)).astype(np.float32), position, rng.normal(size=(N, 3)).astype(np.float32)


@jax.jit
def read_all(map_FxTxC: Any, position: Any, above: Any) -> list[Any]:
    """Value and both gradients of every method."""

    def one(method: Any) -> Any:
        value, back = jax.vjp(lambda m, p: sample_features(m, p, method), map_FxTxC, position)
        return value, back(above.astype(value.dtype))

    return [one(method) for method in (*METHODS, "auto")]


@given(maps_and_points())
def test_every_method_reads_the_same_and_slopes_the_same(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    map_FxTxC, position, above = case
    truth = bilinear(map_FxTxC, position)
    (definition, slopes), *others = read_all(map_FxTxC, position, above)
    np.testing.assert_allclose(definition, truth, atol=1e-5)
    for value, gradients in others:
        chex.assert_trees_all_close(value, definition, atol=1e-5)
        chex.assert_trees_all_close(gradients, slopes, atol=3e-5)


@given(maps_and_points())
def test_the_slope_is_that_of_the_cell_to_the_right(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    map_FxTxC, position, above = case
    d_position = np.asarray(read_all(map_FxTxC, position, above)[1][1][1])
    for axis in (0, 1):
        near = np.abs(position[:, axis]) < 100  # a small step cannot be seen further out
        step = np.zeros((N, 2))
        step[:, axis] = 2.0**-8  # smaller than the distance of any draw to the next pixel on its right
        rise = (bilinear(map_FxTxC, position + step) - bilinear(map_FxTxC, position)) * 2.0**8
        np.testing.assert_allclose(d_position[near, axis], (rise * above).sum(-1)[near], atol=1e-4)
        assert not d_position[~near, axis].any()


@given(maps_and_points(sizes=SIZES[-2:]))
def test_a_bfloat16_map_is_read_at_float32_positions(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    map_FxTxC, position, above = case
    rounded = jnp.asarray(map_FxTxC, jnp.bfloat16)
    truth = bilinear(np.asarray(rounded, np.float64), position)
    for value, (d_map, d_position) in read_all(rounded, position, above):
        assert (value.dtype, d_map.dtype, d_position.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
        np.testing.assert_allclose(np.asarray(value, np.float64), truth, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_integer_positions_are_indexing(size: tuple[int, int], method: Any) -> None:
    map_FxTxC = np.random.default_rng(0).normal(size=(*size, 2)).astype(np.float32)
    at = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)
    value = sample_features(jnp.asarray(map_FxTxC), jnp.asarray(at, jnp.float32), method)
    np.testing.assert_array_equal(value, map_FxTxC[at[:, 0], at[:, 1]])


def test_both_automatic_choices_read_the_same() -> None:
    """A map of 321 pixels is gathered from, one of 320 multiplied with hat weights."""
    rng = np.random.default_rng(1)
    for size in ((1, 320), (1, 321)):
        map_FxTxC, position = rng.normal(size=(*size, 2)), rng.uniform(-1, size, (N, 2))
        value = sample_features(jnp.asarray(map_FxTxC, jnp.float32), jnp.asarray(position, jnp.float32))
        np.testing.assert_allclose(value, bilinear(map_FxTxC, position), atol=3e-4)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
@given(st.lists(coordinates(7), min_size=N, max_size=N))
def test_hat_weights_are_two_neighbours_that_sum_to_one_inside(wrap: Callable[..., Any], at: list[float]) -> None:
    weights = np.asarray(
        wrap(sampling.hat_weights, **({"static_argnums": 1} if wrap is jax.jit else {}))(jnp.array(at), 7)
    )
    np.testing.assert_allclose(weights, np.maximum(0, 1 - np.abs(np.arange(7) - np.array(at)[:, None])), atol=1e-6)
    inside = (np.array(at) >= 0) & (np.array(at) <= 6)
    np.testing.assert_allclose(weights.sum(1)[inside], 1, rtol=1e-6)


def test_a_bfloat16_coordinate_would_be_an_eighth_of_a_pixel_off() -> None:
    """Why positions are float32: between 32 and 64 bfloat16 knows quarters only, so a ramp is read in steps."""
    at = jnp.linspace(32.0, 63.0, 1000)
    rounded = np.asarray(at.astype(jnp.bfloat16), np.float64)
    assert 0.12 < np.abs(rounded - np.asarray(at, np.float64)).max() <= 0.125
    ramp = jnp.arange(64.0)[None, :, None]
    for method in METHODS:
        read = sample_features(ramp, jnp.stack([jnp.zeros_like(at), at], -1), method)[:, 0]  # type: ignore[arg-type]
        np.testing.assert_allclose(read, at, atol=1e-4)


# Reference points.


@given(size=st.integers(1, 300), keys=st.integers(1, 300))
def test_centres_are_symmetric_and_inside(size: int, keys: int) -> None:
    points = reference_points(size, keys, "centre")
    assert points.shape == (keys,) and points.dtype == np.float64
    np.testing.assert_allclose(points + points[::-1], size - 1, atol=1e-9)
    assert points.min() >= -0.5 and points.max() <= size - 0.5, "inside the area that the pixels cover"
    if keys <= size:
        assert points.min() >= 0 and points.max() <= size - 1, "between the first and the last pixel's centre"
    np.testing.assert_allclose(np.diff(points), size / keys, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 9, 64])
def test_a_key_per_pixel_is_the_pixel(size: int) -> None:
    np.testing.assert_array_equal(reference_points(size, size, "centre"), np.arange(size))


def published(size: int, keys: int, grid: str) -> np.ndarray:
    """Reference points as published, in units where -1 and 1 are the centres of the first and the last pixel."""
    return 2 * (np.arange(keys) + 0.5) / (keys if grid == "dat2022" else keys - 1) - 1


def to_pixels(unit: np.ndarray, size: int) -> np.ndarray:
    return (unit + 1) / 2 * (size - 1)


@given(size=st.integers(1, 100), keys=st.integers(2, 100), grid=st.sampled_from(GRIDS[1:]))
def test_published_reference_points(size: int, keys: int, grid: Any) -> None:
    points = reference_points(size, keys, grid)
    np.testing.assert_allclose(points, to_pixels(published(size, keys, grid), size), rtol=1e-9, atol=1e-9)
    if grid == "dat2022":
        np.testing.assert_allclose(points + points[::-1], size - 1, atol=1e-9)
    else:
        assert points[-1] >= size - 1, "the last row lies outside, as published"


@pytest.mark.parametrize("grid", GRIDS)
def test_query_points(grid: Any) -> None:
    lattice = np.arange(8) if grid != "dat2022" else to_pixels(2 * (np.arange(8) + 0.5) / 8 - 1, 8)
    np.testing.assert_allclose(sampling.query_points(8, grid), lattice, rtol=1e-12)


# Offsets.

RAW = st.lists(st.one_of(st.floats(-3, 3), st.sampled_from([-1e4, 1e4, 0.0])), min_size=4, max_size=4)
RANGES = st.sampled_from([0.5, 1.0, 2.0, 5.0])


@given(raw=RAW, size=st.sampled_from([1, 4, 8, 31]), bound=RANGES, grid=st.sampled_from(GRIDS))
def test_a_bounded_offset_is_a_tanh_in_key_cells(raw: list[float], size: int, bound: float, grid: Any) -> None:
    keys = 4
    position = np.asarray(sampling_positions(jnp.array(raw), size, keys, bound, grid), np.float64)
    cell = {"centre": size / keys, "dat2022": (size - 1) / keys, "dat2023": (size - 1) / (keys - 1)}[grid]
    moved = position - reference_points(size, keys, grid)
    np.testing.assert_allclose(moved, bound / 2 * cell * np.tanh(raw), atol=3e-5)
    assert np.abs(moved).max() <= bound / 2 * cell + 3e-5


@given(raw=RAW, size=st.sampled_from([1, 4, 8, 31]), keys=st.just(4))
def test_a_negative_range_clamps_to_the_map(raw: list[float], size: int, keys: int) -> None:
    for grid in ("centre", "dat2023"):
        half = (size if grid == "centre" else size - 1) / 2
        free = reference_points(size, keys, grid) + np.array(raw) * half
        position, back = jax.vjp(lambda x, g=grid: sampling_positions(x, size, keys, -1.0, g), jnp.array(raw))
        np.testing.assert_allclose(position, np.clip(free, 0, size - 1), atol=1e-5)
        outside = (free < -1e-4) | (free > size - 1 + 1e-4)
        assert not np.asarray(back(jnp.ones(keys))[0])[outside].any(), "a clamped point has no gradient"
    squashed = sampling_positions(jnp.array(raw), size, keys, -1.0, "dat2022")
    np.testing.assert_allclose(
        squashed, to_pixels(np.tanh(published(size, keys, "dat2022") + np.array(raw)), size), atol=2e-5
    )


@given(raw=RAW, size=st.sampled_from([1, 4, 8, 31]))
def test_a_zero_range_does_not_move(raw: list[float], size: int) -> None:
    for grid in ("centre", "dat2023"):
        position, back = jax.vjp(lambda x, g=grid: sampling_positions(x, size, 4, 0.0, g), jnp.array(raw))
        np.testing.assert_array_equal(position, reference_points(size, 4, grid).astype(np.float32))
        assert not np.asarray(back(jnp.ones(4))[0]).any()
    unbounded = sampling_positions(jnp.array(raw), size, 4, 0.0, "dat2022")
    np.testing.assert_allclose(
        unbounded, to_pixels(published(size, 4, "dat2022") + np.array(raw), size), rtol=1e-5, atol=1e-5
    )


def test_one_key_in_the_convention_of_2023() -> None:
    """A bounded offset has no unit there; a clamped one reads the last pixel, as published."""
    for bound in (2.0, 0.0):
        with pytest.raises(ValueError, match="one key"):
            sampling_positions(jnp.zeros((2, 1)), 5, 1, bound, "dat2023")
    np.testing.assert_array_equal(sampling_positions(jnp.zeros((2, 1)), 5, 1, -1.0, "dat2023"), np.full((2, 1), 4.0))
    np.testing.assert_array_equal(sampling_positions(jnp.zeros((2, 1)), 5, 1, 2.0, "centre"), np.full((2, 1), 2.0))


# Position bias.

TABLES = [  # (F, T) of the map that the table is made for, (F, T) of the map at run time
    ((3, 4), (3, 4)),
    ((3, 4), (5, 6)),
    ((3, 4), (1, 2)),
    ((1, 4), (1, 7)),
    ((3, 1), (4, 1)),
]
HEADS = 2


def bias_by_loops(table: np.ndarray, position: np.ndarray, size: tuple[int, int], grid: str) -> np.ndarray:
    """The law in float64: ours in pixels with the edge repeated, the published ones in units of half a map."""
    sides = table.shape[1:]
    if grid == "centre":
        reach = [max(0, n + 2 - (side + 1) // 2) for n, side in zip(size, sides)]
        table = np.pad(table, ((0, 0), *((r, r) for r in reach)), mode="edge")
        position = np.clip(position, -1, size)
        queries = [np.arange(n) for n in size]
        read = [q[:, None] - p + (side - 1) / 2 for q, p, side in zip(queries, position.T, table.shape[1:])]
    else:
        unit = [2 * position[:, a] / (size[a] - 1) - 1 for a in (0, 1)]
        lattice = [
            2 * (np.arange(n) + 0.5) / n - 1 if grid == "dat2022" else 2 * np.arange(n) / (n - 1) - 1 for n in size
        ]
        read = [to_pixels(0.5 * (q[:, None] - u), side) for q, u, side in zip(lattice, unit, sides)]
    f, t = size
    out = np.zeros((table.shape[0], f * t, len(position)))
    for i in range(f):
        for j in range(t):
            out[:, i * t + j] = bilinear(np.moveaxis(table, 0, -1), np.stack([read[0][i], read[1][j]], -1)).T
    return out


@cache
def bias_all(size: tuple[int, int], grid: Any) -> Callable[..., list[Any]]:
    """Value and both gradients of every method, compiled once per size."""

    def run(table: Any, position: Any, above: Any) -> list[Any]:
        def one(method: Any) -> Any:
            value, back = jax.vjp(lambda t, p: position_bias(t, p, size, grid, method), table, position)
            return value, back(above)

        return [one(method) for method in ("map_coordinates", "gather", "window", "separable", "auto")]

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


def test_bias_is_float32_for_a_bfloat16_table() -> None:
    table = jnp.ones((HEADS, 5, 5), jnp.bfloat16)
    for method in ("map_coordinates", "gather", "auto"):
        read = jax.jit(partial(position_bias, size=(3, 3), method=method))  # type: ignore[arg-type]
        bias = read(table, jnp.full((1, 2), 1.25))
        assert bias.dtype == jnp.float32
        np.testing.assert_allclose(bias, 1)
