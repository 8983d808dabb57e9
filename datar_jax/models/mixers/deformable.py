"""Deformable attention (D): a small network chooses the points that all queries attend to.

Xia et al., "Vision Transformer with Deformable Attention" (CVPR 2022), which DATAR (arXiv 2312.16228) brings to
spectrograms. Shapes: B batch, F frequency rows, T time columns, C channels, H heads, D head width, G offset groups,
N keys. `valid_BxT` marks the columns that are sound; padding is never attended to. Coordinates are float32 or wider.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from datar_jax.config.mixers import DeformableSettings
from datar_jax.models.layers import Dense, DepthwiseConv, LayerNorm, linear_init, table_init, uniform_init
from datar_jax.models.mixers.base import MixerSite
from datar_jax.ops.activations import gelu
from datar_jax.ops.add_bias import add_bias
from datar_jax.ops.deformable_attention import deformable_attention
from datar_jax.ops.depthwise_conv import depthwise
from datar_jax.ops.masking import MASK_VALUE, mask_columns
from datar_jax.ops.position_bias import BiasNetwork, PairBias
from datar_jax.ops.sampling import Grid, Method, offset_padding, pool_cells, sample_features, sampling_positions

HIDDEN = 32  # units of the bias network, as published


class DeformableAttention(nn.Module):
    """Attention to points that an offset network chooses.

    The network, shared by all offset groups, reads the queries and moves a grid of reference points; the map is sampled
    there, keys and values are made from the samples, and every query attends to all of them, with a bias read from a
    learned table at (query - point). Keys mix the samples of all groups; only sampling and bias are per group.

    Attributes:
      heads: attention heads; must divide the channels.
      groups: offset groups; must divide the heads.
      stride: of the reference grid, in pixels.
      kernel: size of the offset network's depthwise convolution.
      size: (F, T) of the map that the position table is made for; the map at run time may be another.
      offset_range: see `sampling.sampling_positions`.
      grid: convention of reference points, offsets and bias.
      position: `table`; `fixed`, a bias of each pair of query and key, for maps of `size` only; `log_cpb`, a small
        network on log-spaced displacements, shared by all groups; `dwc`, no bias but a depthwise convolution of the
        queries, added to the output of attention; `none`.
      sampler: formulation of sampling and of the bias, see `sampling.sample_features`; all give the same numbers.
      offsets: false: no points are chosen; the map's means over stride x stride pixels stand in for the samples.

    Sows `positions` `(B, G, Fk, Tk, 2)` in pixels into `intermediates`, if there are offsets.

    Raises:
      ValueError: a map smaller than what one key is made from; with `fixed`, a map of another size than `size`.
    """

    heads: int
    groups: int
    stride: int
    kernel: int
    size: tuple[int, int]
    offset_range: float = 2.0
    grid: Grid = "centre"
    position: str = "table"
    sampler: Method = "auto"
    dtype: Any = jnp.float32
    offsets: bool = True

    @classmethod
    def from_settings(cls, settings: DeformableSettings, site: MixerSite, name: str) -> DeformableAttention:
        return cls(
            heads=site.heads,
            groups=settings.groups[site.stage],
            stride=settings.strides[site.stage],
            kernel=settings.kernels[site.stage],
            size=site.size,
            offset_range=settings.offset_range,
            grid=settings.grid,
            position=settings.position,
            sampler=site.method,
            dtype=site.dtype,
            offsets=settings.offsets,
            name=name,
        )

    @nn.compact
    def __call__(self, x_BxFxTxC: Array, valid_BxT: Array | None = None) -> Array:
        b, f, t, c = x_BxFxTxC.shape
        span = cell_span(self.kernel, self.stride, self.grid) if self.offsets else self.stride
        if min(f, t) < span:
            raise ValueError(
                f"model.deformable: a key is made from {span} x {span} pixels, this map has {f} x {t}; give smaller "
                "strides (and kernels), or longer clips"
            )
        x_BxFxTxC = mask_columns(x_BxFxTxC, valid_BxT).astype(self.dtype)
        q_BxFxTxC = Dense(c, self.dtype, name="query")(x_BxFxTxC)

        if self.offsets:
            position_BxGxFxTx2 = self._choose_points(q_BxFxTxC, valid_BxT)
            rows, times = position_BxGxFxTx2.shape[2:4]
            position_BxGxNx2 = position_BxGxFxTx2.reshape(b, self.groups, -1, 2)
            grouped_BxFxTxGxC = x_BxFxTxC.reshape(b, f, t, self.groups, -1)
            sampled_BxNxC = sample_features(grouped_BxFxTxGxC, position_BxGxNx2, self.sampler).reshape(b, -1, c)
        else:
            cells_BxFxTxC = pool_cells(x_BxFxTxC, self.stride)
            rows, times = cells_BxFxTxC.shape[1:3]
            sampled_BxNxC = cells_BxFxTxC.reshape(b, -1, c)
            position_BxGxNx2 = jnp.zeros((b, self.groups, rows * times, 2))  # without a bias nothing reads them
        k_BxNxC = Dense(c, self.dtype, name="key")(sampled_BxNxC)
        v_BxNxC = Dense(c, self.dtype, name="value")(sampled_BxNxC)

        mask_BxN = None
        if valid_BxT is not None:
            counted = jnp.broadcast_to(valid_keys(valid_BxT, (rows, times), self.stride, span), (b, rows * times))
            mask_BxN = jnp.where(counted, 0.0, MASK_VALUE)
            if self.position == "table" and self.grid == "centre":
                position_BxGxNx2 = clamp_to_valid(position_BxGxNx2, valid_BxT)
        k, v = (part.reshape(b, -1, self.heads, c // self.heads) for part in (k_BxNxC, v_BxNxC))
        bias = self._bias((f, t), (rows, times))
        out = deformable_attention(q_BxFxTxC, k, v, bias, position_BxGxNx2, mask_BxN, self.grid, self.sampler)
        if self.position == "dwc":
            out = out + DepthwiseConv(dtype=self.dtype, name="position")(mask_columns(q_BxFxTxC, valid_BxT))
        return Dense(c, self.dtype, name="out")(out)

    def _choose_points(self, q_BxFxTxC: Array, valid_BxT: Array | None) -> Array:
        """Moves the reference points by what the offset network predicts: positions in pixels, `(B, G, Fk, Tk, 2)`."""
        f, t = q_BxFxTxC.shape[1:3]
        padded = offset_padding(self.kernel, self.stride, self.grid) > 0
        network = OffsetNetwork(self.groups, self.kernel, self.stride, self.dtype, padded, name="offset")
        raw = network(mask_columns(q_BxFxTxC, valid_BxT)).astype(jnp.promote_types(self.dtype, jnp.float32))
        raw_BxGxFxTx2 = jnp.moveaxis(raw, 3, 1)
        rows, times = raw_BxGxFxTx2.shape[2:4]
        row = sampling_positions(raw_BxGxFxTx2[..., 0].swapaxes(-1, -2), f, rows, self.offset_range, self.grid)
        time = sampling_positions(raw_BxGxFxTx2[..., 1], t, times, self.offset_range, self.grid)
        position_BxGxFxTx2 = jnp.stack([row.swapaxes(-1, -2), time], -1)
        self.sow("intermediates", "positions", position_BxGxFxTx2)
        return position_BxGxFxTx2

    def _bias(self, size: tuple[int, int], keys: tuple[int, int]) -> Array | BiasNetwork | PairBias | None:
        """Parameters of the bias that scores get, on a map of `size` with so many rows and columns of keys."""
        if self.position == "table":
            return self.param("table", table_init, (self.heads, 2 * self.size[0] - 1, 2 * self.size[1] - 1))
        if self.position == "log_cpb":
            return LogSpacedBias(self.heads // self.groups, name="position")()
        if self.position == "fixed":
            cells = self.size[0] // self.stride, self.size[1] // self.stride
            if (size, keys) != (self.size, cells):
                raise ValueError(
                    f"model.deformable.position='fixed': its table is for maps of {self.size} with {cells} keys, this "
                    f"one is {size} with {keys}; give clips of that length and strides that divide the map, or 'table'"
                )
            pairs_HxMxN = self.param("table", table_init, (self.heads, math.prod(size), math.prod(keys)))
            return PairBias(pairs_HxMxN.reshape(self.heads, *size, -1))
        return None


def cell_span(kernel: int, stride: int, grid: Grid) -> int:
    """Pixels of the map, from the first of its cell on, that the convolution needs for a key."""
    return kernel - 2 * offset_padding(kernel, stride, grid)


def valid_keys(valid_BxT: Array, keys: tuple[int, int], stride: int, span: int) -> Array:
    """Which keys count, `(B, N)` bool: as many as there would be without padding.

    Args:
      valid_BxT: columns of the map that hold sound.
      keys: (rows, columns) of the reference grid.
      stride: of the reference grid, in pixels.
      span: of a cell's pixels so many have to hold sound, see `cell_span`.
    """
    last = np.maximum(np.arange(keys[1]) * stride + span - 1, 0)
    b = valid_BxT.shape[0]
    return jnp.broadcast_to(valid_BxT[:, None, last], (b, *keys)).reshape(b, -1)


def clamp_to_valid(position_BxGxNx2: Array, valid_BxT: Array) -> Array:
    """Positions for the table of our grid, clamped to at most one pixel behind the sound, whatever follows it.

    `table_bias_row` has that bound at the end of the map; without padding both are the same.
    """
    end_Bx1x1 = jnp.sum(valid_BxT, 1, dtype=position_BxGxNx2.dtype)[:, None, None]
    return jnp.stack([position_BxGxNx2[..., 0], jnp.minimum(position_BxGxNx2[..., 1], end_Bx1x1)], -1)


class LogSpacedBias(nn.Module):
    """Parameters of the network that gives the heads of a group their bias."""

    heads: int

    @nn.compact
    def __call__(self) -> BiasNetwork:
        return BiasNetwork(
            self.param("kernel", linear_init, (2, HIDDEN)),
            self.param("bias", uniform_init(2), (HIDDEN,)),
            self.param("heads", linear_init, (HIDDEN, self.heads)),
        )


class OffsetNetwork(nn.Module):
    """Depthwise convolution, LayerNorm, GELU, projection to (freq, time): `(B, F, T, C)` to `(B, Fk, Tk, G, 2)`.

    The weights are shared by all groups, each of which sees its own channels.
    """

    groups: int
    kernel: int
    stride: int
    dtype: Any = jnp.float32
    padded: bool = True

    @nn.compact
    def __call__(self, q_BxFxTxC: Array) -> Array:
        width = q_BxFxTxC.shape[-1] // self.groups
        kernel = self.param("kernel", uniform_init(self.kernel**2), (self.kernel, self.kernel, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        tiled = jnp.tile(kernel.astype(self.dtype), (1, 1, self.groups))
        moved = depthwise(q_BxFxTxC, tiled, self.stride, padded=self.padded)
        moved = add_bias(moved.reshape(*moved.shape[:3], self.groups, width), bias)
        moved = LayerNorm(self.dtype, name="norm")(moved)
        moved = gelu(moved)
        return Dense(2, self.dtype, use_bias=False, name="project")(moved)
