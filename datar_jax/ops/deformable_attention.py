"""Attention to sampled points, one row of queries at a time: scores of all pairs are never kept.

A straightforward form writes bias, scores and weights of every (query, key) pair and keeps some of them for the
derivative: more memory than all the rest of a step, and on a CPU most of its time. Here a row of queries is scored
against all keys, weighed, read and forgotten; the derivative scores it again (as Dao et al., "FlashAttention", 2022).
Keys lie along rows and queries along columns of a score: so a key's window of the position table is read as it lies.

No loop runs over the batch, and no sum over it is inside a loop: a batch that is sharded stays sharded.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from datar_jax.ops.fusion_barrier import fusion_barrier
from datar_jax.ops.position_bias import BiasNetwork, PairBias, fit_table, log_cpb_row, pair_bias_row, table_bias_row
from datar_jax.ops.sampling import Grid, Method

PAIRS = 1 << 20  # (query, key) pairs scored at once, heads and examples together: few enough for a CPU's cache


def deformable_attention(
    q_BxFxTxC: Array,
    k_BxNxHxD: Array,
    v_BxNxHxD: Array,
    table_HxRxS: Array | BiasNetwork | PairBias | None,
    position_BxGxNx2: Array,
    mask_BxN: Array | None = None,
    grid: Grid = "centre",
    method: Method = "auto",
) -> Array:
    """softmax(q k / sqrt(D) + bias + mask) v.

    Args:
      q_BxFxTxC: queries, a map of C = H D channels; heads are group-major.
      k_BxNxHxD: keys.
      v_BxNxHxD: values.
      table_HxRxS: of the relative position bias; or a network, which all groups share; or a bias of each pair; None: no
        bias.
      position_BxGxNx2: where each group's keys lie, `(freq, time)` in pixels.
      mask_BxN: added to all scores of a key; takes no gradient.
      grid: convention of the bias.
      method: formulation of the bias, see `bias.bias_row`.

    Returns:
      `(B, F, T, C)`, dtype of the queries. Products are in the inputs' dtype, sums and softmax in float32 or wider.
    """
    (b, f, t, _), heads, groups = q_BxFxTxC.shape, k_BxNxHxD.shape[2], position_BxGxNx2.shape[1]
    if mask_BxN is None:
        mask_BxN = jnp.zeros(k_BxNxHxD.shape[:2], position_BxGxNx2.dtype)
    scored = heads  # numbers for each pair
    table: Any = table_HxRxS
    if isinstance(table_HxRxS, BiasNetwork):
        scored = max(heads, groups * table_HxRxS.bias_P.size)
        table = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (groups, *leaf.shape)), table_HxRxS)
    elif table_HxRxS is not None:
        table = table_HxRxS if isinstance(table_HxRxS, PairBias) else fit_table(table_HxRxS, (f, t), grid)
        table = jax.tree.map(lambda leaf: leaf.reshape(groups, heads // groups, *leaf.shape[1:]), table)
    known = b if isinstance(b, int) else 1  # a program that is exported for batches of any size: planned for one clip
    pairs = known * scored * k_BxNxHxD.shape[1] * t
    blocks = min(n for n in range(1, groups + 1) if groups % n == 0 and (n == groups or pairs <= n * PAIRS))
    tiling = Tiling((f, t), heads // blocks, blocks, grid, method)
    return _attend(tiling, q_BxFxTxC, k_BxNxHxD, v_BxNxHxD, table, position_BxGxNx2, mask_BxN)


class Tiling(NamedTuple):
    """What is static: the map, heads at once (whole groups), how often, and how to read the bias."""

    size: tuple[int, int]
    heads: int
    blocks: int
    grid: Grid
    method: Method


class HeadBlock(NamedTuple):
    """What some of the heads attend to; `table`, an array or a network, has an axis of groups first in every leaf."""

    first_head: Array
    k_BxHxNxD: Array
    v_BxHxNxD: Array
    table: Any
    position_BxGxNx2: Array
    mask_BxN: Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: Tiling, q: Array, *keys: Any) -> Array:
    return _forward(tiling, q, *keys)[0]


def _forward(tiling: Tiling, q: Array, *keys: Any) -> tuple[Array, tuple[Any, ...]]:
    def block(out: Array, index: Array) -> tuple[Array, Any]:
        block = _block(tiling, index, *keys)
        v_BxHxDxN = block.v_BxHxNxD.swapaxes(2, 3)

        def query_row(out: Array, row: Array) -> tuple[Array, Any]:
            score = _scores(block, _row(tiling, block, out, row)) + fusion_barrier(partial(_bias, tiling), block, row)
            top = score.max(2, keepdims=True)
            weight = jnp.exp(score - top)
            total = weight.sum(2, keepdims=True)
            read = _product("bhdn,bhnt->bhdt", v_BxHxDxN, weight.astype(q.dtype)) / total
            return _put_row(block, out, row, read), (top, jnp.log(total))

        return jax.lax.scan(query_row, out, jnp.arange(tiling.size[0]))

    out, scales = jax.lax.scan(block, q, jnp.arange(tiling.blocks))  # each row of queries gives way to what it read
    return out, (q, *keys, out, scales)


def _backward(tiling: Tiling, saved: tuple[Any, ...], above: Array) -> tuple[Any, ...]:
    q, *keys, out, scales = saved
    k, _, table, position, mask = keys
    scale, wide = k.shape[-1] ** -0.5, scales[0].dtype

    def block(above: Array, given: tuple[Array, Any]) -> tuple[Array, Any]:
        index, scales = given
        block = _block(tiling, index, *keys)
        k_BxHxDxN = block.k_BxHxNxD.swapaxes(2, 3)

        def query_row(carry: Any, given: tuple[Array, Any]) -> tuple[Any, None]:
            (above, d_keys), (row, (top, log_total)) = carry, given
            q_BxTxHxD, out_BxTxHxD = (_row(tiling, block, x, row) for x in (q, out))
            above_BxTxHxD = fusion_barrier(
                partial(_row, tiling), block, above, row
            )  # once: read later, it would be copied
            # In this order: beside the top of scores that are all masked, the logarithm would be lost.
            weight = jnp.exp(_scores(block, q_BxTxHxD) + _bias(tiling, block, row) - top - log_total)
            mean_BxTxH = (above_BxTxHxD.astype(wide) * out_BxTxHxD.astype(wide)).sum(-1)  # over the keys, of d_weight
            d_weight = _product("bhnd,bthd->bhnt", block.v_BxHxNxD, above_BxTxHxD)
            d_score = weight * (d_weight - mean_BxTxH.swapaxes(1, 2)[:, :, None])
            narrow = d_score.astype(q.dtype)
            d_v = _product("bhnt,bthd->bhnd", weight.astype(q.dtype), above_BxTxHxD)
            d_k = _product("bhnt,bthd->bhnd", narrow, q_BxTxHxD) * scale
            d_q = _put_row(block, above, row, _product("bhdn,bhnt->bhdt", k_BxHxDxN, narrow) * scale)
            d_bias = _bias_gradient(tiling, block, row, d_score)
            return (d_q, jax.tree.map(jnp.add, d_keys, (d_k, d_v, d_bias))), None

        zero = jnp.zeros(block.k_BxHxNxD.shape, wide)
        zero_bias = None
        if block.table is not None:  # a table for each example: their sum is for after the loops
            tables = jax.tree.map(lambda leaf: jnp.zeros((len(q), *leaf.shape), position.dtype), block.table)
            zero_bias = tables, jnp.zeros_like(block.position_BxGxNx2)
        start = (above, (zero, zero, zero_bias))
        (d_q, d_keys), _ = jax.lax.scan(query_row, start, (jnp.arange(tiling.size[0]), scales))
        return d_q, d_keys

    # Where a row of `above` was read, the gradient of its queries is written: no second map is kept.
    d_q, (d_k, d_v, d_bias) = jax.lax.scan(block, above, (jnp.arange(tiling.blocks), scales))
    d_k, d_v = (x.transpose(1, 3, 0, 2, 4).reshape(k.shape).astype(k.dtype) for x in (d_k, d_v))
    if d_bias is None:
        return d_q, d_k, d_v, None, jnp.zeros_like(position), jnp.zeros_like(mask)
    d_tables_JxBxGx, d_position_JxBxGxNx2 = d_bias
    d_table = jax.tree.map(lambda d, leaf: d.sum(1).reshape(leaf.shape).astype(leaf.dtype), d_tables_JxBxGx, table)
    d_position = d_position_JxBxGxNx2.swapaxes(0, 1).reshape(position.shape)
    return d_q, d_k, d_v, d_table, d_position, jnp.zeros_like(mask)


_attend.defvjp(_forward, _backward)


def _block(tiling: Tiling, index: Array, k: Array, v: Array, table: Any, position: Array, mask_BxN: Array) -> HeadBlock:
    def part(x: Array, axis: int) -> Array:
        wide = x.shape[axis] // tiling.blocks
        return jax.lax.dynamic_slice_in_dim(x, index * wide, wide, axis)

    k_BxHxNxD, v_BxHxNxD = (part(x, 2).swapaxes(1, 2) for x in (k, v))
    tables = jax.tree.map(lambda leaf: part(leaf, 0), table)
    return HeadBlock(index * tiling.heads, k_BxHxNxD, v_BxHxNxD, tables, part(position, 1), mask_BxN)


def _row(tiling: Tiling, block: HeadBlock, x_BxFxTxC: Array, row: Array) -> Array:
    """One row of a map, the heads of a block: `(B, T, H, D)`."""
    (b, _, t, _), d = x_BxFxTxC.shape, block.k_BxHxNxD.shape[3]
    part = jax.lax.dynamic_slice(x_BxFxTxC, (0, row, 0, block.first_head * d), (b, 1, t, tiling.heads * d))
    return part.reshape(b, t, tiling.heads, d)


def _put_row(block: HeadBlock, x_BxFxTxC: Array, row: Array, value_BxHxDxT: Array) -> Array:
    b, heads, d, t = value_BxHxDxT.shape
    value = value_BxHxDxT.transpose(0, 3, 1, 2).reshape(b, 1, t, heads * d).astype(x_BxFxTxC.dtype)
    return jax.lax.dynamic_update_slice(x_BxFxTxC, value, (0, row, 0, block.first_head * d))


def _product(equation: str, left: Array, right: Array) -> Array:
    """A product in the operands' dtype, summed in float32 or wider."""
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.promote_types(left.dtype, jnp.float32))


def _scores(block: HeadBlock, q_BxTxHxD: Array) -> Array:
    """Of one row of queries, without their bias, `(B, H, N, T)`."""
    return _product("bhnd,bthd->bhnt", block.k_BxHxNxD, q_BxTxHxD) * q_BxTxHxD.shape[-1] ** -0.5


def _bias(tiling: Tiling, block: HeadBlock, row: Array) -> Array:
    """Of one row of queries, with the mask, `(B, H, N, T)` or what broadcasts to it."""
    mask_BxHxNxT = block.mask_BxN[:, None, :, None]
    if block.table is None:
        return mask_BxHxNxT
    group = partial(_group_bias, tiling, row)
    bias_BxGxHxNxT = jax.vmap(jax.vmap(group), (None, 0))(block.table, block.position_BxGxNx2)
    return bias_BxGxHxNxT.reshape(mask_BxHxNxT.shape[0], tiling.heads, *bias_BxGxHxNxT.shape[3:]) + mask_BxHxNxT


def _group_bias(tiling: Tiling, row: Array, table: Any, position_Nx2: Array) -> Array:
    if isinstance(table, BiasNetwork):
        return log_cpb_row(table, position_Nx2, row, tiling.size, tiling.grid)
    if isinstance(table, PairBias):
        return pair_bias_row(table, row, position_Nx2.dtype)
    return table_bias_row(table, position_Nx2, row, tiling.size, tiling.grid, tiling.method)


def _bias_gradient(tiling: Tiling, block: HeadBlock, row: Array, d_score_BxHxNxT: Array) -> tuple[Any, Array] | None:
    """Of each example's table and positions, `(B, G, H, R, S)` (or a network's) and `(B, G, N, 2)`."""
    if block.table is None:
        return None

    def group(table: Any, position: Array, above: Array) -> Any:
        return jax.vjp(partial(_group_bias, tiling, row), table, position)[1](above)

    b, groups = block.position_BxGxNx2.shape[:2]
    above = d_score_BxHxNxT.reshape(b, groups, -1, *d_score_BxHxNxT.shape[2:])
    each = jax.vmap(jax.vmap(group, (None, 0, 0)), (0, 1, 1), 1)  # in this order no map of gradients is transposed
    return each(block.table, block.position_BxGxNx2, above)
