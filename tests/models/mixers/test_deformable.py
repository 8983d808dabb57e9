"""Window and deformable attention against plain loops over tokens, and the laws of masks and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datar_jax.models.mixers.deformable import DeformableAttention
from datar_jax.models.mixers.neighborhood import NeighborhoodAttention
from datar_jax.models.mixers.window import WindowAttention
from datar_jax.ops import window_attention
from datar_jax.ops.sampling import reference_points
from tests.helpers import build
from tests.reference import bias_by_loops, bilinear, dense, lattice, network_by_loops, weigh

pytestmark = pytest.mark.usefixtures("quick_compiles")

C, HEADS = 8, 4


# Windows.


@settings(max_examples=15)
@given(
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    count=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    b=st.integers(1, 2),
)
def test_windows_are_tiles_and_merge_back(window: tuple[int, int], count: tuple[int, int], b: int) -> None:
    f, t = (w * n for w, n in zip(window, count))
    x = np.arange(b * f * t * 2).reshape(b, f, t, 2)
    tiles = window_attention.partition(x, window)  # type: ignore[arg-type]
    assert tiles.shape == (b, math.prod(count), math.prod(window), 2)
    for n, (i, j) in enumerate(lattice(*count)):
        tile = x[:, i * window[0] : (i + 1) * window[0], j * window[1] : (j + 1) * window[1]]
        np.testing.assert_array_equal(tiles[:, n], tile.reshape(b, -1, 2))
    np.testing.assert_array_equal(window_attention.merge(tiles, window, (f, t)), x)


def may_attend(size: tuple[int, int], window: tuple[int, int], shifted: bool) -> np.ndarray:
    """Which key each query sees: they share a window of the rolled map and the roll did not bring them together."""
    together = np.ones((math.prod(size),) * 2, bool)
    for axis, (n, w) in enumerate(zip(size, window)):
        w = min(w, n)
        whole = -(-n // w) * w
        shift = -(-w // 2) if shifted and whole > w else 0
        at = lattice(*size)[:, axis]
        rolled = (at - shift) % whole
        together &= rolled[:, None] // w == rolled[None] // w
        together &= rolled[:, None] - rolled[None] == at[:, None] - at[None]
    return together


def window_by_loops(params: Any, x: np.ndarray, window: tuple[int, int], allowed: np.ndarray) -> np.ndarray:
    """Attention of one map among allowed pairs, with the relative table looked up by indexing."""
    f, t, _ = x.shape
    q, k, v = (part.reshape(f * t, HEADS, -1) for part in np.split(dense(params, "qkv", x), 3, axis=-1))
    apart = lattice(f, t)[:, None] - lattice(f, t)[None]  # query minus key
    row, time = (np.clip(apart[..., a] + w - 1, 0, 2 * w - 2) for a, w in enumerate(window))
    table = np.asarray(params["table"], np.float64).reshape(HEADS, 2 * window[0] - 1, 2 * window[1] - 1)
    bias = np.where(allowed, table[:, row, time], -np.inf)
    return dense(params, "out", weigh(q, k, v, bias).reshape(f, t, C))


WINDOWS = [  # map, window, shifted: divided, not divided, smaller than the window, covered by it, odd windows
    ((4, 4), (4, 4), False),
    ((4, 4), (4, 4), True),
    ((4, 8), (2, 4), False),
    ((4, 8), (2, 4), True),
    ((6, 9), (3, 3), True),
    ((5, 7), (2, 4), False),
    ((5, 7), (2, 4), True),
    ((1, 6), (4, 4), True),
]


@pytest.mark.parametrize("size, window, shifted", WINDOWS)
def test_window_attention_is_attention_among_real_neighbours(
    size: tuple[int, int], window: tuple[int, int], shifted: bool
) -> None:
    module = WindowAttention(HEADS, window, shifted)
    params, x = build(module, (2, *size, C))
    allowed = may_attend(size, window, shifted)
    assert allowed.all() == all(n <= w for n, w in zip(size, window)), "a window over the whole map is full attention"
    valid = np.arange(size[1]) < np.array([[size[1]], [max(1, size[1] - 3)]])
    y, masked = jax.jit(lambda p, x: (module.apply({"params": p}, x), module.apply({"params": p}, x, valid)))(params, x)
    for b in range(2):
        np.testing.assert_allclose(y[b], window_by_loops(params, x[b], window, allowed), atol=2e-5)
        sound = np.tile(valid[b], size[0])
        seen = window_by_loops(params, x[b], window, allowed & (sound[None] | ~sound[:, None]))
        np.testing.assert_allclose(masked[b][:, valid[b]], seen[:, valid[b]], atol=2e-5)
    assert np.isfinite(masked).all(), "a window of padding only divides nothing by zero"


def test_a_token_never_attends_across_regions() -> None:
    size, window = (4, 8), (2, 4)
    module = WindowAttention(HEADS, window, shifted=True)
    params, x = build(module, (1, *size, C))
    token = jax.jit(jax.jacrev(lambda x, at: module.apply({"params": params}, x)[0].reshape(-1, C)[at].sum()))
    allowed = may_attend(size, window, True)
    for at in (0, 3, 17, 31):  # a corner that the roll cut off, and tokens beside every seam
        seen = np.abs(np.asarray(token(x, at))[0]).max(-1).ravel()
        assert seen[~allowed[at]].max() < 1e-9
        assert seen[allowed[at]].min() > 1e-6, "and attends to all of its own region"
    assert window_attention.SHIFT_MASK == -100, "as published"


@given(
    window=st.sampled_from([(2, 2), (4, 2), (3, 5)]),
    count=st.sampled_from([(1, 1), (1, 3), (2, 1), (3, 2)]),
)
def test_the_shift_mask_names_the_pairs_a_roll_brought_together(
    window: tuple[int, int], count: tuple[int, int]
) -> None:
    size = tuple(w * n for w, n in zip(window, count))
    shift = tuple(-(-w // 2) if n > 1 else 0 for w, n in zip(window, count))
    mask = window_attention.shift_mask(size, window, shift)  # type: ignore[arg-type]
    assert set(np.unique(mask)) <= {0.0, window_attention.SHIFT_MASK}
    index = np.roll(np.arange(math.prod(size)).reshape(size), [-s for s in shift], (0, 1))
    tiles = np.asarray(window_attention.partition(index[None], window)[0])  # type: ignore[arg-type]
    allowed = may_attend(size, window, True)  # type: ignore[arg-type]
    for tile, part in zip(tiles, mask):
        np.testing.assert_array_equal(part == 0, allowed[np.ix_(tile, tile)])


# Deformable attention.


def deformable(**changes: Any) -> DeformableAttention:
    settings = {"heads": HEADS, "groups": 2, "stride": 1, "kernel": 3, "size": (3, 5), **changes}
    return DeformableAttention(**settings)


def run(module: DeformableAttention, params: Any, x: Any, valid: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Output and positions."""
    apply = jax.jit(partial(module.apply, mutable=["intermediates"]))
    y, kept = apply({"params": params}, x, valid)
    return np.asarray(y), kept["intermediates"]["positions"][0]


def deformable_by_loops(module: Any, params: Any, x: np.ndarray, position_GxFxTx2: np.ndarray) -> np.ndarray:
    """Output for given positions: sample per group, project, attend to all keys, bias from the table."""
    f, t, _ = x.shape
    at_GxNx2 = np.asarray(position_GxFxTx2, np.float64).reshape(module.groups, -1, 2)
    parts = np.split(x.astype(np.float64), module.groups, axis=-1)
    sampled = np.concatenate([bilinear(part, at) for part, at in zip(parts, at_GxNx2)], -1)
    q = dense(params, "query", x).reshape(f * t, HEADS, -1)
    k, v = (dense(params, name, sampled).reshape(-1, HEADS, q.shape[-1]) for name in ("key", "value"))
    bias = np.zeros((HEADS, f * t, len(sampled)))
    if module.position == "table":
        tables = np.split(np.asarray(params["table"], np.float64), module.groups)
        bias = np.concatenate([bias_by_loops(tab, at, (f, t), module.grid) for tab, at in zip(tables, at_GxNx2)])
    elif module.position == "log_cpb":
        bias = np.concatenate([network_by_loops(params["position"], at, (f, t), module.grid) for at in at_GxNx2])
    read = weigh(q, k, v, bias).reshape(f, t, C)
    if module.position == "dwc":
        kernel, queries = np.asarray(params["position"]["kernel"], np.float64)[:, :, 0], q.reshape(f, t, C)
        padded = np.pad(queries, ((1, 1), (1, 1), (0, 0)))
        read += sum(padded[i : i + f, j : j + t] * kernel[i, j] for i in range(3) for j in range(3))
        read += params["position"]["bias"]
    return dense(params, "out", read)


@pytest.mark.parametrize(
    "size, changes",
    [
        ((3, 5), {}),
        ((3, 5), {"groups": 1, "position": "none"}),
        ((3, 5), {"position": "dwc"}),
        ((3, 5), {"position": "log_cpb"}),
        ((3, 5), {"position": "log_cpb", "grid": "dat2023"}),
        ((5, 7), {"stride": 2, "kernel": 5, "sampler": "hat"}),
        ((1, 6), {"offset_range": 5.0, "sampler": "gather"}),
        ((3, 5), {"offset_range": -1.0}),
        ((3, 5), {"grid": "dat2022"}),
        ((3, 5), {"grid": "dat2023", "sampler": "map_coordinates"}),
    ],
)
def test_deformable_attention_is_its_definition(size: tuple[int, int], changes: dict[str, Any]) -> None:
    module = deformable(**changes)
    params, x = build(module, (2, *size, C))
    y, position = run(module, params, x)
    keys = tuple(-(-n // module.stride) for n in size)
    chex.assert_shape(position, (2, module.groups, *keys, 2))
    assert np.ptp(position, axis=(0, 1)).max() > 0.05, "each group of each clip looks elsewhere"
    if module.offset_range > 0:
        for axis in (0, 1):
            reference = np.expand_dims(reference_points(size[axis], keys[axis], module.grid), 1 - axis)
            pixels = size[axis] - (module.grid != "centre")
            cell = pixels / (keys[axis] - (module.grid == "dat2023"))
            moved = np.abs(position[..., axis] - reference[None, None])
            assert moved.max() <= module.offset_range / 2 * cell + 1e-5
            assert moved.max() > 0.1 * cell
    for b in range(2):
        np.testing.assert_allclose(y[b], deformable_by_loops(module, params, x[b], position[b]), atol=5e-5)


def test_a_zero_offset_is_global_attention() -> None:
    """Then every pixel is a key, and the number of offset groups does not matter."""
    f, t = 3, 5
    one, two = (deformable(offset_range=0.0, groups=g) for g in (1, 2))
    params, x = build(one, (1, f, t, C))
    y, position = run(one, params, x)
    np.testing.assert_array_equal(position.reshape(-1, 2), lattice(f, t))

    q, k, v = (dense(params, name, x[0]).reshape(f * t, HEADS, -1) for name in ("query", "key", "value"))
    apart = lattice(f, t)[:, None] - lattice(f, t)[None]
    bias = np.asarray(params["table"], np.float64)[:, apart[..., 0] + f - 1, apart[..., 1] + t - 1]
    expected = dense(params, "out", weigh(q, k, v, bias).reshape(f, t, C))
    np.testing.assert_allclose(y[0], expected, atol=2e-5)

    grouped = {**params, "offset": build(two, (1, f, t, C))[0]["offset"]}
    np.testing.assert_allclose(run(two, grouped, x)[0], y, atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_output_of_the_offset_network_moves_rows_and_the_second_columns(axis: int) -> None:
    module = deformable(stride=2)
    params, x = build(module, (1, 4, 6, C))
    width = C // module.groups
    offset = params["offset"]
    still = {
        **offset,
        "norm": {"scale": np.zeros(width, np.float32), "bias": np.ones(width, np.float32)},  # the same everywhere
        "project": {"kernel": np.zeros((width, 2), np.float32)},
    }
    still["project"]["kernel"][:, axis] = 0.2
    _, position = run(module, {**params, "offset": still}, x)
    gelu = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    moved = math.tanh(0.2 * width * gelu) * module.offset_range / 2 * 2  # a key cell is two pixels
    for a, (n, keys) in enumerate(((4, 2), (6, 3))):
        expected = np.expand_dims(reference_points(n, keys, "centre"), 1 - a) + (moved if a == axis else 0)
        np.testing.assert_allclose(position[..., a], np.broadcast_to(expected, (1, 2, 2, 3)), atol=1e-5)


def test_the_offset_network_learns_and_the_key_bias_cannot() -> None:
    module = deformable(size=(4, 4))
    params, x = build(module, (1, 4, 6, C))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, x)[0, :, :, 0])))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        size = float(np.abs(leaf).max())
        if jax.tree_util.keystr(path) == "['key']['bias']":
            assert size < 1e-5, "softmax does not see what all keys share"
        else:
            assert size > 1e-4, jax.tree_util.keystr(path)


def test_positions_are_float32_in_a_bfloat16_module() -> None:
    """With an offset network that says zero they are the reference points to the last digit of float32."""
    wide, narrow = (deformable(stride=3, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params, x = build(wide, (1, 4, 64, C))
    silent = {**params, "offset": {**params["offset"], "project": {"kernel": np.zeros((C // 2, 2), np.float32)}}}
    (_, expected), (y, position) = (run(module, silent, x) for module in (wide, narrow))
    assert position.dtype == jnp.float32 and y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(position, expected)
    reference = reference_points(64, 22, "centre")
    np.testing.assert_allclose(position[0, 0, 0, :, 1], reference, rtol=1e-7)
    rounded = np.asarray(jnp.asarray(reference, jnp.bfloat16), np.float64)
    assert np.abs(rounded - reference).max() > 0.1, "a bfloat16 coordinate would have been seen"
    _, moved = run(narrow, params, x)
    assert (moved != jnp.asarray(moved, jnp.bfloat16)).mean() > 0.9, "nor is the sum of point and move rounded"


# Padding.


@pytest.mark.parametrize(
    "module",
    [
        WindowAttention(HEADS, (2, 4)),
        WindowAttention(HEADS, (2, 4), shifted=True),
        deformable(size=(4, 12)),
        deformable(size=(4, 12), stride=4, kernel=5),
        deformable(size=(4, 12), position="none"),
        deformable(size=(4, 12), position="log_cpb"),
        deformable(size=(4, 12), position="dwc"),
        NeighborhoodAttention(HEADS, (3, 5)),
        NeighborhoodAttention(HEADS, (5, 9), filled=True),
    ],
    ids=["window", "shifted", "deformable", "stride", "no table", "network", "depthwise", "neighborhood", "filled"],
)
def test_padding_changes_nothing(module: Any) -> None:
    f, sound, whole = 4, 8, 12
    params, x = build(module, (2, f, whole, C))
    valid = np.broadcast_to(np.arange(whole) < sound, (2, whole))
    apply: Callable[..., Any] = jax.jit(lambda x, valid: module.apply({"params": params}, x, valid))
    padded = apply(x, valid)[:, :, :sound]
    other = x.copy()
    other[:, :, sound:] = 1e3
    np.testing.assert_array_equal(apply(other, valid)[:, :, :sound], padded, "what the padding holds")
    np.testing.assert_allclose(apply(x[:, :, :sound], None), padded, atol=2e-5, err_msg="that there is padding")
    alone = apply(x[:, :, :sound], np.ones((2, sound), bool))
    np.testing.assert_allclose(alone, padded, atol=2e-5, err_msg="a mask of nothing")

    weight = np.random.default_rng(5).normal(size=padded.shape)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(module.apply({"params": params}, x, valid)[:, :, :sound] * weight)))(x)
    assert not np.asarray(slope)[:, :, sound:].any() and np.asarray(slope)[:, :, :sound].any()


@pytest.mark.parametrize("position", ["table", "log_cpb"])
def test_nor_does_it_where_points_move_far_into_it(position: str) -> None:
    module = deformable(size=(4, 12), stride=4, kernel=5, position=position)
    params, x = build(module, (2, 4, 12, C))
    params["offset"]["project"]["kernel"] = params["offset"]["project"]["kernel"] * np.array([0, 1e3], np.float32)
    valid = np.broadcast_to(np.arange(12) < 8, (2, 12))
    apply: Callable[..., Any] = jax.jit(lambda x, valid: module.apply({"params": params}, x, valid))
    np.testing.assert_allclose(apply(x[:, :, :8], None), apply(x, valid)[:, :, :8], atol=2e-5)
