"""Inside a model: recomputed attention is the module's own, its shares sum to one, and points lie where they read."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax import config as c
from datar_jax.inference.attention_maps import attention_weights, compute_attention_maps, first_center
from datar_jax.models.datar import DATAR
from datar_jax.models.mixers.deformable import DeformableAttention, clamp_to_valid, valid_keys
from datar_jax.models.stem import Downsample, Stem
from datar_jax.ops.masking import MASK_VALUE

pytestmark = pytest.mark.usefixtures("quick_compiles")

MELS, FRAMES, VALID, CLASSES = 32, 48, 35, 5
LONE = c.ModelConfig(
    dims=(16,),
    spec=("D",),
    heads=(4,),
    deformable=c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,)),
)


def noisy(abstract: Any, scale: float = 0.5) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: rng.normal(path[-1].key == "scale", scale, x.shape).astype(np.float32), abstract
    )


def parameters(config: c.ModelConfig, frames: int = FRAMES) -> Any:
    model = DATAR(config, CLASSES, MELS, frames)
    return noisy(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, MELS, frames), np.float32))["params"])


@pytest.fixture(scope="module")
def seen() -> tuple[Any, np.ndarray, Any]:
    """A model of one block at a padded sound, longer than the map that its table was made for."""
    params = parameters(LONE)
    mel = np.random.default_rng(1).normal(size=(MELS, FRAMES + 8)).astype(np.float32)
    return params, mel, compute_attention_maps(LONE, params, CLASSES, MELS, FRAMES, mel, VALID)


@pytest.mark.parametrize("grid, position", [("centre", "table"), ("centre", "none"), ("dat2022", "table")])
def test_recomputed_attention_times_the_values_is_the_output_of_the_module(grid: Any, position: str) -> None:
    groups, heads, size = 2, 4, (6, 9)
    module = DeformableAttention(heads, groups, stride=2, kernel=3, size=(5, 11), grid=grid, position=position)
    x = np.random.default_rng(2).normal(size=(2, *size, 16)).astype(np.float32)
    valid = np.arange(size[1]) < np.array([[size[1]], [5]])
    params = noisy(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    out, kept = jax.jit(
        lambda x: module.apply(
            {"params": params}, x, valid, capture_intermediates=lambda m, _: m.name in ("query", "key", "value"),
            mutable=["intermediates"],
        )
    )(x)  # fmt: skip
    made = kept["intermediates"]
    query, key, value = (made[name]["__call__"][0] for name in ("query", "key", "value"))
    point = made["positions"][0].reshape(2, groups, -1, 2)
    read = clamp_to_valid(point, jnp.asarray(valid)) if grid == "centre" else point
    mask = jnp.where(valid_keys(jnp.asarray(valid), made["positions"][0].shape[2:4], 2, 1), 0.0, MASK_VALUE)
    table = params.get("table")
    assert (table is None) == (position == "none")
    share = 1e-5 * float(jnp.abs(out).max())  # the table's sums are ordered otherwise
    for b in range(2):
        found = []
        for g in range(groups):
            of = slice(8 * g, 8 * g + 8)  # the channels of two heads
            q, k, v = (a[b, ..., of].reshape(*a.shape[1:-1], 2, 4) for a in (query, key, value))
            bias = None if table is None else table[2 * g : 2 * g + 2]
            weight = attention_weights(q, k, bias, read[b, g], mask[b], grid)
            found.append(jnp.einsum("hmn,nhd->mhd", weight, v).reshape(*size, 8))
        again = jnp.concatenate(found, -1) @ params["out"]["kernel"] + params["out"]["bias"][None, None]
        np.testing.assert_allclose(again, out[b], atol=share, rtol=0)


def test_logits_are_those_of_the_model(seen: Any) -> None:
    params, mel, inside = seen
    logits, _ = jax.jit(DATAR(LONE, CLASSES, MELS, FRAMES).apply)({"params": params}, mel[None], np.int32([VALID]))
    np.testing.assert_allclose(inside.logits_S, logits[0], rtol=1e-5, atol=1e-6)


def test_shares_of_the_attention_sum_to_one(seen: Any) -> None:
    (block,) = seen[2].blocks
    assert (block.name, block.size, block.grid, block.sound) == ("stage 0, block 0", (8, 14), (4, 7), 9)
    np.testing.assert_allclose(block.weight_GxN.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(block.heat_GxFxT.sum((1, 2)) + block.outside_G, 1, rtol=1e-5)
    assert (block.outside_G > 1e-3).all(), "noisy offsets leave the map"
    assert (block.heat_GxFxT >= 0).all() and not block.heat_GxFxT[..., block.sound :].any(), "padding is zero"
    counted = block.counted_N.reshape(block.grid)
    assert counted[:, :5].all() and not counted[:, 5:].any()  # of cells two wide, the fifth begins in column 8
    assert not block.weight_GxN[:, ~block.counted_N].any() and (block.weight_GxN[:, block.counted_N] > 0).all()


def test_padding_changes_nothing(seen: Any) -> None:
    params, mel, inside = seen
    other = mel.copy()
    other[:, VALID:] = 7.0
    again = compute_attention_maps(LONE, params, CLASSES, MELS, FRAMES, other, VALID)
    for name in ("position_GxNx2", "weight_GxN", "heat_GxFxT"):
        np.testing.assert_array_equal(getattr(again.blocks[0], name), getattr(inside.blocks[0], name))


def test_more_padding_changes_nothing() -> None:
    """Queries of the padding have no say; points that stay near the map, beyond which a bias ends with the map."""
    params = parameters(LONE)
    params["stage_0_0"]["mixer"]["offset"]["project"]["kernel"] *= 0.1
    mel = np.random.default_rng(1).normal(size=(MELS, FRAMES + 8)).astype(np.float32)
    longer, shorter = (
        compute_attention_maps(LONE, params, CLASSES, MELS, FRAMES, mel[:, :frames], VALID).blocks[0]
        for frames in (FRAMES + 8, 40)
    )
    assert shorter.counted_N.all() and longer.counted_N.sum() == shorter.counted_N.size
    np.testing.assert_allclose(longer.weight_GxN[:, longer.counted_N], shorter.weight_GxN, rtol=1e-4)  # of other sums
    np.testing.assert_allclose(longer.heat_GxFxT[..., :10], shorter.heat_GxFxT, atol=1e-6)


def test_without_offsets_every_point_stays_and_all_attention_lands_on_the_map() -> None:
    """And a query and a position table of zeros spread it evenly."""
    params = parameters(LONE)
    mixer = params["stage_0_0"]["mixer"]
    mixer["offset"]["project"]["kernel"] *= 0
    mixer["query"] = jax.tree.map(np.zeros_like, mixer["query"])
    mixer["table"] *= 0
    mel = np.random.default_rng(1).normal(size=(MELS, FRAMES + 8)).astype(np.float32)
    (block,) = compute_attention_maps(LONE, params, CLASSES, MELS, FRAMES, mel, MELS).blocks
    np.testing.assert_array_equal(block.position_GxNx2, np.stack([block.reference_Nx2] * 2))
    assert {*block.reference_Nx2[:, 0]} == {0.5, 2.5, 4.5, 6.5} and block.sound == 8
    np.testing.assert_allclose(block.weight_GxN[:, block.counted_N], 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(block.heat_GxFxT[..., :8], 1 / 64, rtol=1e-5)  # a point reads four pixels alike
    np.testing.assert_allclose(block.outside_G, 0, atol=1e-6)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_pixel_is_centred_on_what_it_sees(stem: Any) -> None:
    """The frames and bins that move a pixel of a stage's map lie evenly around its place on the spectrogram."""
    config = c.ModelConfig(stem=stem)

    class Pyramid(Stem):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return Downsample(8, stem, name="down")(Stem(4, stem, name="stem")(x))

    module, at = Pyramid(4, stem), (3, 2)
    x = np.random.default_rng(0).normal(size=(1, 64, 48, 1)).astype(np.float32)
    params = noisy(jax.eval_shape(module.init, jax.random.key(0), x))
    slope = jax.jit(jax.grad(lambda x: (module.apply(params, x)[0, at[0], at[1]] ** 2).sum()))(x)[0, ..., 0]
    bins, frames = np.nonzero(np.abs(slope) > 0)
    for reached, pixel in ((bins, at[0]), (frames, at[1])):
        assert (reached.min() + reached.max()) / 2 == pixel * 8 + first_center(config, 1)


@pytest.mark.parametrize(
    "changes", [{"position": "log_cpb"}, {"position": "fixed"}, {"position": "none", "offsets": False}]
)
def test_attention_that_cannot_be_shown_is_refused(changes: dict[str, Any]) -> None:
    settings = c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,), grid="dat2023", **changes)
    config = msgspec.structs.replace(LONE, deformable=settings)
    with pytest.raises(ValueError, match=f"^model.deformable.{list(changes)[-1]}="):
        compute_attention_maps(config, {}, CLASSES, MELS, FRAMES, np.zeros((MELS, FRAMES), np.float32), FRAMES)


def test_a_sound_without_columns_is_refused() -> None:
    for valid in (0, 49):
        with pytest.raises(ValueError, match=rf"{valid} columns of sound in a spectrogram \(32, 48\)"):
            compute_attention_maps(LONE, {}, CLASSES, MELS, FRAMES, np.zeros((MELS, FRAMES), np.float32), valid)
