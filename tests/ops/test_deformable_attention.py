"""Attention by rows of queries against plain attention among all pairs, and the laws of keys and masks."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datar_jax.ops import deformable_attention as rowwise
from datar_jax.ops.deformable_attention import deformable_attention
from datar_jax.ops.masking import MASK_VALUE
from datar_jax.ops.position_bias import BiasNetwork, position_bias
from datar_jax.ops.sampling import query_points
from tests.reference import bias_by_loops, weigh

pytestmark = pytest.mark.usefixtures("quick_compiles")

B, N, D = 2, 5, 3
Size = tuple[int, int]


def inputs(
    size: Size, heads: int, groups: int, made_for: Size | None, mask: bool = False, seed: int = 0
) -> tuple[Any, ...]:
    """Queries, keys, values, table, positions and mask; some keys lie outside of the map, one of them far."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(B, *size, heads * D))
    k, v = (rng.normal(size=(B, N, heads, D)) for _ in range(2))
    position = rng.uniform(-0.9, np.array(size) - 0.1, (B, groups, N, 2))
    position[:, :, 0] += 9
    table = None if made_for is None else rng.normal(size=(heads, *(2 * n - 1 for n in made_for)))
    added = rng.normal(size=(B, N)) if mask else None
    return jax.tree.map(lambda x: x.astype(np.float32), (q, k, v, table, position, added))


def by_pairs(q: Any, k: Any, v: Any, table: Any, position: Any, mask: Any, grid: Any) -> Any:
    """All scores, all weights, one softmax; the bias by its definition."""
    (f, t), (heads, d), groups = q.shape[1:3], k.shape[2:], position.shape[1]
    score = jnp.einsum("bmhd,bnhd->bhmn", q.reshape(B, f * t, heads, d), k) / math.sqrt(d)
    if table is not None:
        read = partial(position_bias, size=(f, t), grid=grid, method="map_coordinates")
        tables = table.reshape(groups, heads // groups, *table.shape[1:])
        score += jax.vmap(jax.vmap(read), (None, 0))(tables, position).reshape(score.shape)
    if mask is not None:
        score += mask[:, None, None, :]
    return jnp.einsum("bhmn,bnhd->bmhd", jax.nn.softmax(score, -1), v).reshape(q.shape)


def by_loops(q: Any, k: Any, v: Any, table: Any, position: Any, mask: Any, grid: Any) -> np.ndarray:
    """The law in float64 numpy, clip by clip and pair by pair."""
    q, k, v, table, position, mask = jax.tree.map(lambda x: np.asarray(x, np.float64), (q, k, v, table, position, mask))
    (f, t), (heads, d), groups, out = q.shape[1:3], k.shape[2:], position.shape[1], np.zeros(q.shape)
    for b in range(B):
        bias = np.zeros((heads, f * t, N))
        if table is not None:
            parts = zip(np.split(table, groups), position[b])
            bias += np.concatenate([bias_by_loops(part, at, (f, t), grid) for part, at in parts])
        if mask is not None:
            bias += mask[b]
        out[b] = weigh(q[b].reshape(f * t, heads, d), k[b], v[b], bias).reshape(f, t, -1)
    return out


@cache
def program(grid: Any, method: Any, pairs: int) -> tuple[Any, list[int]]:
    """Value and the gradients of all inputs, compiled once; and how many blocks of heads each compilation made."""
    blocks: list[int] = []

    def run(args: Any, above: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            attend = rowwise._attend
            patch.setattr(rowwise, "PAIRS", pairs)
            patch.setattr(
                rowwise,
                "_attend",
                lambda plan, *args: (blocks.append(plan.blocks), attend(plan, *args))[1],
            )
            value, back = jax.vjp(lambda *args: deformable_attention(*args, grid=grid, method=method), *args)
        return value, back(above.astype(value.dtype))

    return jax.jit(run), blocks


def run(
    args: tuple[Any, ...], above: Any, grid: Any = "centre", method: Any = "auto", pairs: int = rowwise.PAIRS
) -> tuple[Any, Any]:
    return program(grid, method, pairs)[0](args, above)


@partial(jax.jit, static_argnums=2)
def definition(args: Any, above: Any, grid: Any) -> tuple[Any, Any]:
    value, back = jax.vjp(lambda *args: by_pairs(*args, grid), *args)
    return value, back(above)


ALL = rowwise.PAIRS
CASES = [  # map, heads, groups, the table's map, mask, grid, method, pairs at once
    ((3, 4), 4, 2, (3, 4), True, "centre", "auto", ALL),
    ((3, 4), 4, 2, (3, 4), True, "centre", "auto", 1),
    ((3, 4), 4, 2, (3, 4), False, "centre", "window", 1),
    ((3, 4), 4, 4, (5, 2), True, "centre", "gather", 1),
    ((3, 4), 2, 1, (2, 6), False, "centre", "separable", ALL),
    ((3, 4), 4, 2, (3, 4), False, "centre", "hat", 1),
    ((3, 4), 2, 2, (3, 4), True, "centre", "map_coordinates", ALL),
    ((1, 5), 4, 2, (1, 5), False, "centre", "window", ALL),
    ((5, 1), 4, 2, (4, 1), True, "centre", "window", 1),
    ((1, 1), 2, 2, (2, 2), False, "centre", "window", ALL),
    ((3, 4), 4, 2, None, True, "centre", "auto", 1),
    ((3, 4), 4, 2, None, False, "centre", "auto", ALL),
    ((3, 4), 4, 2, (3, 4), True, "dat2022", "auto", ALL),
    ((3, 4), 4, 2, (4, 3), False, "dat2023", "separable", 1),
]


@pytest.mark.parametrize("size, heads, groups, made_for, mask, grid, method, pairs", CASES)
def test_by_rows_is_by_pairs(
    size: Size, heads: int, groups: int, made_for: Size | None, mask: bool, grid: Any, method: Any, pairs: int
) -> None:
    """Value and every gradient, all heads at once and group by group.

    The other side is float64, so the tolerance is float32's own: some 20 roundings of numbers of up to 10.
    """
    args = inputs(size, heads, groups, made_for, mask)
    above = np.random.default_rng(9).normal(size=args[0].shape).astype(np.float32)
    truth = by_loops(*args, grid)
    with jax.enable_x64(True):
        exact, slopes = jax.device_get(definition(*jax.tree.map(np.float64, (args, above)), grid))
    np.testing.assert_allclose(exact, truth, atol=1e-12)
    value, gradients = run(args, above, grid, method, pairs)
    assert program(grid, method, pairs)[1][-1] == (1 if pairs == ALL else groups)
    np.testing.assert_allclose(value, truth, atol=1e-5)
    for name, mine, other in zip(("q", "k", "v", "table", "position"), gradients, slopes):
        chex.assert_trees_all_close(mine, other, atol=5e-5, custom_message=name)
    assert not mask or not np.asarray(gradients[5]).any(), "a mask takes no gradient"


HEADS_ALONE = B * 4 * N * 4  # scores of all heads would fit, the network's hidden units would not


@pytest.mark.parametrize(
    "size, grid, pairs",
    [((3, 4), "centre", ALL), ((3, 4), "dat2022", HEADS_ALONE), ((3, 4), "dat2023", 1), ((1, 5), "centre", 1)],
)
def test_a_network_in_place_of_the_table(size: Size, grid: Any, pairs: int) -> None:
    """Shared by two groups of two heads; value and every gradient, all at once and group by group."""
    q, k, v, _, position, mask = inputs(size, 4, 2, None, mask=True)
    rng = np.random.default_rng(4)
    network = BiasNetwork(*(rng.normal(size=shape).astype(np.float32) for shape in ((2, 6), (6,), (6, 2))))
    above = rng.normal(size=q.shape).astype(np.float32)

    def plain(q: Any, k: Any, v: Any, network: Any, position: Any, mask: Any) -> Any:
        f, t = size
        pixel = jnp.stack(jnp.meshgrid(*(jnp.asarray(query_points(n, grid)) for n in size), indexing="ij"), -1)
        apart = pixel.reshape(1, 1, -1, 1, 2) - position[:, :, None]
        if grid != "centre":
            apart = apart * (8 / (np.array(size) - 1)).reshape(1, 1, 1, 1, 2)
        spaced = jnp.sign(apart) * jnp.log2(jnp.abs(apart) + 1) / 3
        hidden = jax.nn.relu(spaced @ network[0] + jnp.expand_dims(network[1], (0, 1, 2, 3)))
        bias = jnp.moveaxis(hidden @ network[2], -1, 2).reshape(B, 4, f * t, N)
        score = jnp.einsum("bmhd,bnhd->bhmn", q.reshape(B, f * t, 4, D), k) / math.sqrt(D) + bias
        weight = jax.nn.softmax(score + mask[:, None, None, :], -1)
        return jnp.einsum("bhmn,bnhd->bmhd", weight, v).reshape(q.shape)

    args = (q, k, v, network, position, mask)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, args)
        exact, slopes = jax.device_get(jax.jit(lambda *args: _value_and_slopes(plain, args, above))(*wide))
    value, gradients = run(args, above, grid, "auto", pairs)
    assert program(grid, "auto", pairs)[1][-1] == (1 if pairs == ALL else 2)
    np.testing.assert_allclose(value, exact, atol=1e-5)
    for name, mine, other in zip(("q", "k", "v", "network", "position"), gradients, slopes):
        chex.assert_trees_all_close(mine, other, atol=5e-5, custom_message=name)


def _value_and_slopes(function: Any, args: Any, above: Any) -> Any:
    value, back = jax.vjp(function, *args)
    return value, back(above.astype(value.dtype))


@pytest.mark.parametrize("limit, blocks", [(4, 1), (3, 2), (2, 2), (1, 4), (0, 4)])
def test_blocks_are_as_few_whole_groups_as_fit(monkeypatch: pytest.MonkeyPatch, limit: int, blocks: int) -> None:
    """Of four groups in blocks of one size; where three fit, two go together."""
    args = inputs((2, 3), 8, 4, None)
    made: list[int] = []
    monkeypatch.setattr(rowwise, "PAIRS", limit * B * 2 * N * 3)
    monkeypatch.setattr(rowwise, "_attend", lambda plan, *_: made.append(plan.blocks))
    deformable_attention(*args)
    assert made == [blocks]


def test_two_groups_of_four_at_once() -> None:
    args = inputs((2, 3), 8, 4, (2, 3))
    value = jax.jit(lambda *args: run(args, jnp.zeros(args[0].shape), pairs=2 * B * 2 * N * 3)[0])(*args)
    assert program("centre", "auto", 2 * B * 2 * N * 3)[1] == [2]
    np.testing.assert_allclose(value, by_loops(*args, "centre"), atol=1e-5)


@pytest.mark.parametrize("made_for", [(3, 4), None])
def test_bfloat16_in_bfloat16_out(made_for: Size | None) -> None:
    """Products of bfloat16 numbers, but their sums, the softmax, table and positions in float32."""
    q, k, v, table, position, mask = inputs((3, 4), 4, 2, made_for, mask=True)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (8 * q, k, v))  # scores that bfloat16 would hurt
    args = (q, k, v, table, position, mask)
    above = jnp.asarray(np.random.default_rng(9).normal(size=q.shape), jnp.bfloat16)
    value, gradients = run(args, above)
    assert value.dtype == jnp.bfloat16
    # The weights and the result are rounded, each by at most half of the last of 8 binary digits.
    np.testing.assert_allclose(
        np.asarray(value, np.float64), by_loops(*args, "centre"), atol=2 * 2.0**-9 * np.abs(np.asarray(v)).max()
    )
    _, exact = run(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), args), above)
    for given, mine, other in zip(args, gradients, exact):
        if given is None:
            assert mine is None
            continue
        assert mine.dtype == given.dtype and mine.shape == given.shape and np.isfinite(mine).all()
        np.testing.assert_allclose(
            np.asarray(mine, np.float64), other, atol=0.02 * max(1.0, float(np.abs(other).max()))
        )


def test_with_one_key_left_its_value_is_the_answer() -> None:
    """The others have no weight at all, and neither they nor what would tell keys apart has a slope."""
    q, k, v, table, position, _ = inputs((3, 4), 4, 2, (3, 4))
    left = np.array([1, 3])
    mask = np.where(np.arange(N) == left[:, None], 0.0, MASK_VALUE).astype(np.float32)
    value, (d_q, d_k, d_v, d_table, d_position, _) = run((q, k, v, table, position, mask), np.ones_like(q))
    own = v[np.arange(B), left].reshape(B, -1)
    np.testing.assert_allclose(value, np.broadcast_to(own[:, None, None], q.shape), rtol=1e-6)
    assert not np.asarray(d_v)[mask < 0].any()
    np.testing.assert_allclose(np.asarray(d_v)[mask == 0], 12, rtol=1e-5)
    chex.assert_trees_all_close(
        (d_q, d_k, d_table, d_position), jax.tree.map(np.zeros_like, (q, k, table, position)), atol=1e-4
    )


def test_with_every_key_masked_the_slopes_are_those_of_a_mean() -> None:
    """As plain attention has it: of scores that a mask of all has swallowed the softmax is uniform."""
    q, k, v, table, position, _ = inputs((3, 4), 4, 2, (3, 4))
    mask = np.full((B, N), MASK_VALUE, np.float32)
    value, gradients = run((q, k, v, table, position, mask), np.ones_like(q))
    np.testing.assert_allclose(value, np.broadcast_to(v.mean(1).reshape(B, 1, 1, -1), q.shape), atol=1e-5)
    np.testing.assert_allclose(gradients[2], 12 / N, rtol=1e-5)


def test_the_order_of_the_keys_changes_nothing() -> None:
    q, k, v, table, position, mask = inputs((3, 4), 4, 2, (3, 4), mask=True)
    above = np.random.default_rng(9).normal(size=q.shape).astype(np.float32)
    order = np.random.default_rng(10).permutation(N)
    value, gradients = run((q, k, v, table, position, mask), above)
    moved, others = run((q, k[:, order], v[:, order], table, position[:, :, order], mask[:, order]), above)
    np.testing.assert_allclose(moved, value, atol=1e-5)
    d_q, d_k, d_v, d_table, d_position, _ = gradients
    permuted = (d_q, d_k[:, order], d_v[:, order], d_table, d_position[:, :, order])
    chex.assert_trees_all_close(others[:5], permuted, atol=2e-5)


def test_what_a_mask_adds_to_all_keys_is_not_seen() -> None:
    q, k, v, table, position, mask = inputs((3, 4), 4, 2, (3, 4), mask=True)
    above = np.random.default_rng(9).normal(size=q.shape).astype(np.float32)
    value, gradients = run((q, k, v, table, position, mask), above)
    for constant in (3.0, -60.0):
        moved, others = run((q, k, v, table, position, mask + np.float32(constant)), above)
        np.testing.assert_allclose(moved, value, atol=3e-5)
        chex.assert_trees_all_close(others[:5], gradients[:5], atol=1e-4)
