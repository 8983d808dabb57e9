"""Neighborhood attention against plain attention among the pixels of each window, and the laws of its borders."""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax import config as c
from datar_jax.models.flops import macs_per_clip
from datar_jax.models.mixers.neighborhood import NeighborhoodAttention
from datar_jax.ops.neighborhood_attention import TILE, neighborhood_attention
from tests.helpers import build
from tests.models.test_datar import WINDOWS
from tests.reference import dense, lattice, weigh

pytestmark = pytest.mark.usefixtures("quick_compiles")

C, HEADS = 8, 4
Size = tuple[int, int]


def own(size: Size, window: Size) -> np.ndarray:
    """Which key each pixel of a map sees: the window around it, moved into the map; `(F T, F T)`."""
    seen = np.ones((math.prod(size),) * 2, bool)
    for axis, (n, w) in enumerate(zip(size, window)):
        at = lattice(*size)[:, axis]
        first = np.clip(at - w // 2, 0, max(n - w, 0))[:, None]
        seen &= (at >= first) & (at < first + w)
    return seen


def by_loops(params: Any, x: np.ndarray, window: Size) -> np.ndarray:
    """One map, all pairs, those outside of a window forbidden; the bias looked up by indexing."""
    f, t, _ = x.shape
    q, k, v = (part.reshape(f * t, HEADS, -1) for part in np.split(dense(params, "qkv", x), 3, axis=-1))
    apart = lattice(f, t)[None] - lattice(f, t)[:, None]  # key minus query
    row, time = (np.clip(apart[..., a] + w - 1, 0, 2 * w - 2) for a, w in enumerate(window))
    table = np.asarray(params["table"], np.float64).reshape(HEADS, 2 * window[0] - 1, 2 * window[1] - 1)
    bias = np.where(own((f, t), window), table[:, row, time], -np.inf)
    return dense(params, "out", weigh(q, k, v, bias).reshape(f, t, C))


def filled(x: np.ndarray, window: Size) -> np.ndarray:
    return np.pad(x, [(0, max(w - n, 0)) for w, n in zip(window, x.shape)] + [(0, 0)])


CASES = [  # map, window: within a tile, over several, not divided by tiles, wider than a tile, than the map, one pixel
    ((3, 5), (3, 3)),
    ((9, 19), (3, 5)),
    ((8, 16), (7, 7)),
    ((5, 9), (9, 3)),
    ((5, 20), (1, 17)),
    ((4, 8), (7, 7)),
    ((1, 6), (3, 7)),
    ((3, 4), (1, 1)),
]


@pytest.mark.parametrize("size, window", CASES)
def test_neighborhood_attention_is_attention_to_ones_window(size: Size, window: Size) -> None:
    """Of a whole clip, and of a shorter one in the same map; where a window is moved, or zeros fill up the map."""
    ours, published = (NeighborhoodAttention(HEADS, window, fill) for fill in (False, True))
    params, x = build(ours, (2, *size, C))
    sound = max(1, size[1] - 3)
    valid = np.arange(size[1]) < np.array([[size[1]], [sound]])

    @jax.jit
    def run(params: Any, x: Any) -> Any:
        return [(m.apply({"params": params}, x), m.apply({"params": params}, x, valid)) for m in (ours, published)]

    for (whole, masked), fill in zip(run(params, x), (False, True)):
        for b, columns in enumerate((size[1], sound)):
            for y, seen in ((whole, x[b]), (masked, x[b, :, :columns])):
                expected = by_loops(params, filled(seen, window) if fill else seen, window)
                expected = expected[: size[0], : seen.shape[1]]
                np.testing.assert_allclose(y[b, :, : seen.shape[1]], expected, atol=3e-5, err_msg=f"{fill} {b}")
        assert np.isfinite(masked).all()


def test_every_gradient_is_that_of_plain_attention() -> None:
    size, window, columns = (6, 11), (3, 5), np.array([11, 7])
    rng = np.random.default_rng(3)
    q, k, v, above = (rng.normal(size=(2, *size, HEADS, 2)).astype(np.float32) for _ in range(4))
    above[1, :, 7:] = 0
    table = rng.normal(size=(HEADS, 5, 9)).astype(np.float32)
    apart = lattice(*size)[None] - lattice(*size)[:, None]
    row, time = (np.clip(apart[..., a] + w - 1, 0, 2 * w - 2) for a, w in enumerate(window))
    seen = np.stack([own(size, window), np.zeros((66, 66), bool)])
    short = (np.arange(11) < 7).repeat(6).reshape(11, 6).T.ravel()
    seen[1][np.ix_(short, short)] = own((6, 7), window)
    seen[1][~short] = True  # padding, whose output nobody reads

    def plain(q: Any, k: Any, v: Any, table: Any) -> Any:
        q, k, v = (x.reshape(2, -1, HEADS, 2) for x in (q, k, v))
        score = jnp.einsum("bmhd,bnhd->bhmn", q, k) / math.sqrt(2) + table[None, :, row, time]
        weight = jax.nn.softmax(jnp.where(seen[:, None], score, -jnp.inf), -1)
        return jnp.einsum("bhmn,bnhd->bmhd", weight, v).reshape(2, *size, HEADS, 2)

    def tiled(q: Any, k: Any, v: Any, table: Any) -> Any:
        return neighborhood_attention(q, k, v, table, window, 6, jnp.asarray(columns))

    def gradients(form: Any) -> Any:
        return jax.jit(jax.grad(lambda *args: jnp.sum(form(*args) * above), (0, 1, 2, 3)))(q, k, v, table)

    chex.assert_trees_all_close(gradients(tiled), gradients(plain), atol=2e-5)


def test_bfloat16_in_bfloat16_out() -> None:
    params, x = build(NeighborhoodAttention(HEADS, (3, 5)), (1, 4, 9, C))
    y = NeighborhoodAttention(HEADS, (3, 5), dtype=jnp.bfloat16).apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    expected = by_loops(params, x[0], (3, 5))
    np.testing.assert_allclose(np.asarray(y[0], np.float64), expected, atol=0.05 * np.abs(expected).max())


def test_what_a_clip_costs() -> None:
    """Per tile its pixels times all keys within reach, for scores and for values; beside window attention's own."""
    window, f, t = (3, 5), 8, 16
    around = c.ModelConfig(dims=(8,), spec=("N",), heads=(2,), neighborhood=c.NeighborhoodSettings(sizes=(window,)))
    windows = msgspec.structs.replace(WINDOWS, window=c.WindowSettings(sizes=((4, 8),)))
    reach = [(w - 1) + max(side + w // 2, w) for side, w in zip(TILE, window)]
    more = f * t * (math.prod(reach) - 32) * 2 * 8
    assert macs_per_clip(around, 5, 32, 64) - macs_per_clip(windows, 5, 32, 64) == more
