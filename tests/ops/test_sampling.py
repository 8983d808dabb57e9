"""Where attention looks and what it reads: every formulation is the definition, and that is plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.ops import sampling
from datar_jax.ops.sampling import reference_points, sample_features, sampling_positions
from tests.reference import GRIDS, bilinear, to_pixels

pytestmark = pytest.mark.usefixtures("quick_compiles")

METHODS = ("map_coordinates", "gather", "window", "hat", "separable")
SIZES = [(1, 1), (1, 6), (5, 1), (4, 7)]
N = 10  # points of every draw


def coordinates(size: int) -> st.SearchStrategy[float]:
    """Inside, on pixels, on the border, just outside, far outside; exact in float32 or far from a kink."""
    last = float(size - 1)
    return st.one_of(
        st.integers(-2, size + 1).map(float),
        st.sampled_from([0.0, last, -1.0, last + 1, -0.5, last + 0.5, -1e6, 1e6, -3e9, 3e9]),
        st.integers(-5 * 64, (size + 4) * 64).map(lambda x: x / 64),
    )


def read_map(map_FxTxC: Any, position_Nx2: Any, method: Any = "auto") -> Any:
    """A batch of one map with one group of channels."""
    return sample_features(map_FxTxC[None, :, :, None], position_Nx2[None, None], method)[0, :, 0]


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
        value, back = jax.vjp(lambda m, p: read_map(m, p, method), map_FxTxC, position)
        return value, back(above.astype(value.dtype))

    return [one(method) for method in (*METHODS, "auto")]


@pytest.mark.slow
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
    rounded, narrow = (jnp.asarray(a, jnp.bfloat16) for a in (map_FxTxC, above))
    truth = bilinear(np.asarray(rounded, np.float64), position)
    _, slopes = read_all(rounded.astype(jnp.float32), position, narrow.astype(jnp.float32))[0]
    for value, (d_map, d_position) in read_all(rounded, position, narrow):
        assert (value.dtype, d_map.dtype, d_position.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
        np.testing.assert_allclose(np.asarray(value, np.float64), truth, rtol=2**-8, atol=1e-6)
        np.testing.assert_allclose(d_position, slopes[1], atol=3e-5)
        # A pixel that all points read is summed from four times N numbers of up to 4, by some in bfloat16.
        np.testing.assert_allclose(np.asarray(d_map, np.float64), slopes[0], rtol=2**-8, atol=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_many_points_on_one_bfloat16_pixel_add_up(method: Any) -> None:
    """A sum that is kept in bfloat16 would stop at 256, where 1 is less than half of its last digit."""
    points = jnp.zeros((1000, 2))
    pixels = jnp.ones((2, 2, 1), jnp.bfloat16)
    d_map = jax.jit(jax.grad(lambda x: read_map(x, points, method).astype(jnp.float32).sum()))(pixels)
    np.testing.assert_array_equal(np.asarray(d_map, np.float64)[..., 0], [[1000, 0], [0, 0]])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_integer_positions_are_indexing(size: tuple[int, int], method: Any) -> None:
    map_FxTxC = np.random.default_rng(0).normal(size=(*size, 2)).astype(np.float32)
    at = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 2)
    value = read_map(jnp.asarray(map_FxTxC), jnp.asarray(at, jnp.float32), method)
    np.testing.assert_array_equal(value, map_FxTxC[at[:, 0], at[:, 1]])


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_every_group_of_every_map_is_read_at_its_own_points(method: Any) -> None:
    rng = np.random.default_rng(2)
    map_BxFxTxGxC = rng.normal(size=(2, 4, 5, 3, 2)).astype(np.float32)
    position_BxGxNx2 = rng.uniform(-1, (4, 5), size=(2, 3, N, 2)).astype(np.float32)
    value = sample_features(jnp.asarray(map_BxFxTxGxC), jnp.asarray(position_BxGxNx2), method)
    for b, g in np.ndindex(2, 3):
        np.testing.assert_allclose(
            value[b, :, g], bilinear(map_BxFxTxGxC[b, :, :, g], position_BxGxNx2[b, g]), atol=1e-5
        )


def test_both_automatic_choices_read_the_same() -> None:
    """A map of 512 pixels is read in windows, one of 513 gathered from."""
    rng = np.random.default_rng(1)
    for size in ((1, 512), (1, 513)):
        map_FxTxC, position = rng.normal(size=(*size, 2)), rng.uniform(-1, size, (N, 2))
        value = read_map(jnp.asarray(map_FxTxC, jnp.float32), jnp.asarray(position, jnp.float32))
        np.testing.assert_allclose(value, bilinear(map_FxTxC, position), atol=3e-4)


def test_an_unknown_formulation_is_refused_by_the_names_of_the_known() -> None:
    with pytest.raises(
        ValueError, match=r"'nearest'; choose one of auto, map_coordinates, gather, window, hat, separable"
    ):
        read_map(jnp.zeros((2, 2, 1)), jnp.zeros((1, 2)), "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
@given(st.lists(coordinates(7), min_size=N, max_size=N))
def test_hat_weights_are_two_neighbours_that_sum_to_one_inside(wrap: Callable[..., Any], at: list[float]) -> None:
    weights = np.asarray(
        wrap(sampling.bilinear_weights, **({"static_argnums": 1} if wrap is jax.jit else {}))(jnp.array(at), 7)
    )
    np.testing.assert_allclose(weights, np.maximum(0, 1 - np.abs(np.arange(7) - np.array(at)[:, None])), atol=1e-6)
    inside = (np.array(at) >= 0) & (np.array(at) <= 6)
    np.testing.assert_allclose(weights.sum(1)[inside], 1, rtol=1e-6)


@pytest.mark.parametrize("first, step, error", [(32, 1 / 4, 1 / 8), (64, 1 / 2, 1 / 4)])
def test_a_bfloat16_coordinate_would_be_half_its_spacing_off(first: int, step: float, error: float) -> None:
    """Why positions are float32: bfloat16 knows quarters of a pixel from 32 on and halves from 64 on."""
    at = np.arange(first, 2 * first, 1 / 16)
    rounded = np.asarray(jnp.asarray(at, jnp.bfloat16), np.float64)
    np.testing.assert_array_equal(np.unique(np.diff(rounded)), [0, step])
    assert np.abs(rounded - at).max() == error


@pytest.mark.parametrize("method", METHODS)
def test_a_ramp_is_read_without_steps(method: Any) -> None:
    at = jnp.linspace(32.0, 63.0, 1000)
    read = read_map(jnp.arange(64.0)[None, :, None], jnp.stack([jnp.zeros_like(at), at], -1), method)
    np.testing.assert_allclose(read[:, 0], at, atol=1e-4)


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
