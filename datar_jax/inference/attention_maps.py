"""Sampling points of the deformable blocks of a model for one sound, and the attention that each point receives.

Training never keeps the attention of all pairs (`ops.deformable_attention`); here it is computed by its definition,
from the queries, keys and positions that the blocks themselves made. Shapes: F x T the map of a block, G offset groups,
N points of a group, H heads of a group, M queries (all pixels of the map), S classes. Points are `(freq, time)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array
from numpy.typing import NDArray

from datar_jax.config import ModelConfig
from datar_jax.models.datar import DATAR, create_model
from datar_jax.models.mixers.deformable import cell_span, clamp_to_valid, valid_keys
from datar_jax.models.spec import weights_of_a_model
from datar_jax.ops.masking import MASK_VALUE, columns
from datar_jax.ops.position_bias import position_bias
from datar_jax.ops.sampling import Grid, bilinear_weights, exact, sampling_positions


@dataclass(frozen=True)
class BlockAttention:
    """One deformable block at one sound. Points are in pixels of its map; `on_spectrogram` says where that is.

    Attributes:
      stage: from 0, as in the name of its parameters, `stage_2_1`.
      block: from 0 within the stage.
      size: (F, T) of its map.
      sound: columns of the map that hold sound; the others are padding.
      grid: (rows, columns) of the reference points, N in all, row by row.
      scale: bins (and frames) of the spectrogram per pixel.
      first: bin (and frame) that the first pixel is centred on.
      reference_Nx2: where the points are before the offset network moves them.
      position_GxNx2: where they are sampled.
      counted_N: whether a point may be attended to; points of the padding may not.
      weight_GxN: share of the attention that each point receives, the mean over the queries that are sound and over the
        heads of its group; it sums to 1 over the points of a group.
      heat_GxFxT: where it lands on the map, each point's share divided among the four pixels that it read.
      outside_G: share that reads the zeros beyond the map's edge and in its padding; `heat` and it sum to 1.
    """

    stage: int
    block: int
    size: tuple[int, int]
    sound: int
    grid: tuple[int, int]
    scale: int
    first: float
    reference_Nx2: NDArray[np.float32]
    position_GxNx2: NDArray[np.float32]
    counted_N: NDArray[np.bool_]
    weight_GxN: NDArray[np.float32]
    heat_GxFxT: NDArray[np.float32]
    outside_G: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Such as `stage 2, block 1`."""
        return f"stage {self.stage}, block {self.block}"

    def on_spectrogram(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Coordinates in pixels of the map as (mel bin, frame), 0 at the centre of the first."""
        return pixels * self.scale + self.first


@dataclass(frozen=True)
class AttentionMaps:
    """Logits `(S,)`, deformable blocks in order, and number of valid frames of one sound."""

    logits_S: NDArray[np.float32]
    blocks: tuple[BlockAttention, ...]
    frames: int


def compute_attention_maps(
    config: ModelConfig,
    params: Any,
    classes: int,
    mels: int,
    frames: int,
    mel_FxT: NDArray[Any],
    valid: int,
) -> AttentionMaps:
    """Runs the model on one sound and keeps the sampling points and attention of every deformable block.

    The program is compiled once for a model and a T.

    Args:
      config: of the model.
      params: of the model.
      classes: width of the head.
      mels: mel bins that the model reads.
      frames: length that its position tables were made for.
      mel_FxT: normalized spectrogram, float; T may differ from `frames`.
      valid: its first columns that are sound; the rest is padding.

    Raises:
      ValueError: the spectrogram has another number of mel bins, or not so many columns; or a position bias that is not
        read from a table, of which nothing is drawn.
    """
    if (position := config.deformable.position) in ("log_cpb", "fixed"):
        raise ValueError(
            f"model.deformable.position={position!r}: its attention cannot be shown; that of 'table', 'dwc', 'none' can"
        )
    if not config.deformable.offsets:
        raise ValueError("model.deformable.offsets=False: a model without sampling points; there is nothing to show")
    if not 1 <= valid <= mel_FxT.shape[1]:
        raise ValueError(f"{valid} columns of sound in a spectrogram {mel_FxT.shape}: give 1 to {mel_FxT.shape[1]}")
    config = msgspec.structs.replace(config, remat=False)  # nothing is differentiated
    model = create_model(config, classes, mels, frames)
    logits_S, seen = _observe(model, params, jnp.asarray(mel_FxT), jnp.int32(valid))
    sizes = config.maps(mels, mel_FxT.shape[1])
    blocks = []
    for stage, block in deformable_blocks(config):
        kept = {name: np.asarray(value) for name, value in seen[f"stage_{stage}_{block}"].items()}
        position_GxFxTx2 = kept.pop("position_GxFxTx2")
        groups, rows, times, _ = position_GxFxTx2.shape
        blocks.append(
            BlockAttention(
                stage=stage,
                block=block,
                size=sizes[stage],
                sound=-(-valid // 2 ** (stage + 2)),
                grid=(rows, times),
                scale=2 ** (stage + 2),
                first=first_center(config, stage),
                reference_Nx2=_references(config, sizes[stage], (rows, times)),
                position_GxNx2=position_GxFxTx2.reshape(groups, -1, 2),
                **kept,
            )
        )
    return AttentionMaps(np.asarray(logits_S), tuple(blocks), valid)


def deformable_blocks(config: ModelConfig) -> list[tuple[int, int]]:
    """(stage, block) of each, from 0, in the order of the model."""
    return [(i, j) for i, letters in enumerate(config.spec) for j, letter in enumerate(letters) if letter == "D"]


def first_center(config: ModelConfig, stage: int) -> float:
    """Bin (and frame) on which the first pixel of a stage's map is centred.

    A patch is centred on its middle. A 3x3 convolution of stride 2 with a rim of one is centred on every other pixel
    from the first on, so that after any number of them the first pixel still is centred on the first bin.
    """
    return 0.0 if config.stem == "conv" else (2 ** (stage + 2) - 1) / 2


def attention_weights(
    q_FxTxHxD: Array,
    k_NxHxD: Array,
    table_HxRxS: Array | None,
    position_Nx2: Array,
    mask_N: Array,
    grid: Grid,
) -> Array:
    """softmax(q k / sqrt(D) + bias + mask) of one group's heads, `(H, M, N)`, float32 or wider: the definition."""
    size = (q_FxTxHxD.shape[0], q_FxTxHxD.shape[1])
    q_MxHxD = q_FxTxHxD.reshape(-1, *q_FxTxHxD.shape[2:]).astype(position_Nx2.dtype)
    score_HxMxN = exact("mhd,nhd->hmn", q_MxHxD, k_NxHxD.astype(position_Nx2.dtype)) * q_MxHxD.shape[-1] ** -0.5
    if table_HxRxS is not None:
        score_HxMxN += position_bias(table_HxRxS, position_Nx2, size, grid, "gather")
    return jax.nn.softmax(score_HxMxN + mask_N[None, None], axis=-1)


@partial(jax.jit, static_argnums=0)
def _observe(model: DATAR, params: Any, mel_FxT: Array, valid: Array) -> tuple[Array, dict[str, dict[str, Array]]]:
    """Logits, and of each deformable block what `BlockAttention` holds."""

    def projected(module: nn.Module, _: str) -> bool:
        return module.name in ("query", "key")

    with weights_of_a_model():
        (logits_BxS, _), kept = model.apply(
            {"params": params}, mel_FxT[None], valid[None], capture_intermediates=projected, mutable=["intermediates"]
        )
    seen = {}
    for stage, block in deformable_blocks(model.config):
        name = f"stage_{stage}_{block}"
        made = kept["intermediates"][name]["mixer"]
        query, key = (made[part]["__call__"][0] for part in ("query", "key"))
        table = params[name]["mixer"].get("table")
        seen[name] = _received(model.config, stage, query, key, table, made["positions"][0], valid)
    return logits_BxS[0], seen


def _received(
    config: ModelConfig,
    stage: int,
    q_BxFxTxC: Array,
    k_BxNxC: Array,
    table: Array | None,
    position_BxGxFxTx2: Array,
    valid: Array,
) -> dict[str, Array]:
    """The attention that the points of one block receive, and where it lands."""
    groups, (_, f, t, c), (_, _, rows, times, _) = (
        config.deformable.groups[stage],
        q_BxFxTxC.shape,
        position_BxGxFxTx2.shape,
    )
    heads = config.heads[stage] // groups
    position_GxNx2 = position_BxGxFxTx2[0].reshape(groups, -1, 2)
    sound_BxT = columns(valid[None], t, stage + 2)
    assert sound_BxT is not None
    kernel, stride = config.deformable.kernels[stage], config.deformable.strides[stage]
    span = cell_span(kernel, stride, config.deformable.grid)
    counted_N = valid_keys(sound_BxT, (rows, times), stride, span)[0]
    read_GxNx2 = position_GxNx2
    if config.deformable.grid == "centre":
        read_GxNx2 = clamp_to_valid(position_GxNx2[None], sound_BxT)[0]
    of_query_M = jnp.broadcast_to(sound_BxT, (f, t)).reshape(-1) / (f * sound_BxT.sum())

    def group(given: Any) -> tuple[Array, Array]:
        q_FxTxHxD, k_NxHxD, table_HxRxS, position_Nx2, read_Nx2 = given
        mask_N = jnp.where(counted_N, 0.0, MASK_VALUE)
        weight_HxMxN = attention_weights(q_FxTxHxD, k_NxHxD, table_HxRxS, read_Nx2, mask_N, config.deformable.grid)
        weight_N = exact("hmn,m->n", weight_HxMxN, of_query_M) / heads
        rows_NxF, times_NxT = bilinear_weights(position_Nx2[:, 0], f), bilinear_weights(position_Nx2[:, 1], t)
        return weight_N, exact("nf,nt->ft", weight_N[:, None] * rows_NxF, times_NxT * sound_BxT[:1])

    q_GxFxTxHxD = jnp.moveaxis(q_BxFxTxC[0].reshape(f, t, groups, heads, -1), 2, 0)
    k_GxNxHxD = jnp.moveaxis(k_BxNxC[0].reshape(-1, groups, heads, c // config.heads[stage]), 1, 0)
    table_GxHxRxS = None if table is None else table.reshape(groups, heads, *table.shape[1:])
    given = (q_GxFxTxHxD, k_GxNxHxD, table_GxHxRxS, position_GxNx2, read_GxNx2)
    weight_GxN, heat_GxFxT = jax.lax.map(group, given)  # one after another: of all groups at once it is large
    return {
        "position_GxFxTx2": position_BxGxFxTx2[0],
        "counted_N": counted_N,
        "weight_GxN": weight_GxN,
        "heat_GxFxT": heat_GxFxT,
        "outside_G": 1 - heat_GxFxT.sum((1, 2)),
    }


def _references(config: ModelConfig, size: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Reference points, where zero offsets leave the sampling points: `(N, 2)` in pixels."""
    row, time = (
        np.asarray(
            sampling_positions(jnp.zeros(keys), pixels, keys, config.deformable.offset_range, config.deformable.grid)
        )
        for pixels, keys in zip(size, grid)
    )
    return np.stack(np.meshgrid(row, time, indexing="ij"), -1).reshape(-1, 2)
