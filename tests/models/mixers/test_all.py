"""Laws that every token mixer, every position term and every variant of the model keeps."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import chex
import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax import config as c
from datar_jax.config.mixers import LETTERS
from datar_jax.models.datar import DATAR
from datar_jax.models.mixers import MIXERS
from datar_jax.training.sharding import batch_sharding, make_mesh, state_shardings

pytestmark = pytest.mark.usefixtures("quick_compiles")

CLASSES, MELS, FRAMES, CLIPS = 6, 32, 64, 8
VALID = np.array([FRAMES, 32, FRAMES, 41, 20, FRAMES, 32, 57], np.int32)  # frames of each clip that are not padding


def small(letter: str, **changes: Any) -> c.ModelConfig:
    """One block on a map of 8 x 16, with windows that do not divide it."""
    settings = {
        "window": c.WindowSettings(sizes=((3, 5),)),
        "neighborhood": c.NeighborhoodSettings(sizes=((3, 5),)),
        "deformable": c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,), **changes),
    }
    field = LETTERS[letter].field
    return c.ModelConfig(dims=(8,), spec=(letter,), heads=(2,), adaptor="none", **{field: settings[field]})


def narrow(variant: str) -> c.ModelConfig:
    """A variant with all its blocks and heads, four channels a head."""
    config = c.MODELS[variant]()
    return msgspec.structs.replace(config, dims=tuple(4 * heads for heads in config.heads), drop_path=0.0)


CASES = {
    **{letter: small(letter) for letter in "LSN"},
    **{f"D-{position}": small("D", position=position) for position in ("table", "log_cpb", "dwc", "none")},
    **{variant: narrow(variant) for variant in c.MODELS},
}
SLOW = set(c.MODELS)
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]
)
every_mixer = pytest.mark.parametrize("case", [case for case in CASES if case not in c.MODELS])


class Result(NamedTuple):
    logits: Any
    gradient: Any


def model_of(case: str, dtype: Any = jnp.float32, **changes: Any) -> DATAR:
    config = msgspec.structs.replace(CASES[case], **changes)
    return DATAR(config, CLASSES, MELS, FRAMES, dtype=dtype)


@cache
def inputs(case: str) -> tuple[Any, np.ndarray]:
    """Parameters far from their start, so that no zero hides a path, and clips."""
    rng = np.random.default_rng(0)
    mel = rng.normal(size=(CLIPS, MELS, FRAMES)).astype(np.float32)
    shapes = jax.eval_shape(model_of(case).init, jax.random.key(0), mel)["params"]
    draw = lambda path, x: rng.normal(path[-1].key == "scale", 0.2, x.shape).astype(np.float32)  # noqa: E731
    return jax.tree_util.tree_map_with_path(draw, shapes), mel


def evaluate(model: DATAR, params: Any, mel: Any, frames: Any) -> Result:
    """Logits, and the gradient of a weighted sum of them."""
    weight = np.random.default_rng(7).normal(size=(len(mel), CLASSES)).astype(np.float32)

    def loss(params: Any) -> tuple[Any, Any]:
        logits, _ = model.apply({"params": params}, mel, frames)
        return jnp.sum(logits * weight), logits

    gradient, logits = jax.grad(loss, has_aux=True)(params)
    return Result(logits, gradient)


@cache
def program(case: str, **changes: Any) -> Any:
    model = model_of(case, **changes)
    return jax.jit(lambda params, mel, frames: evaluate(model, params, mel, frames))


@cache
def plain(case: str) -> Result:
    return jax.device_get(program(case)(*inputs(case), VALID))


def assert_close(result: Result, expected: Result, rtol: float) -> None:
    """All numbers agree to `rtol` of the largest logit, or of the largest gradient."""
    for part, wanted in zip(result, expected):
        largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(wanted))
        chex.assert_trees_all_close(part, wanted, rtol=0, atol=rtol * largest)


@every_case
def test_output_is_finite_and_differs_between_clips(case: str) -> None:
    result = plain(case)
    chex.assert_tree_all_finite(result)
    assert result.logits.shape == (CLIPS, CLASSES) and result.logits.dtype == np.float32
    assert np.ptp(result.logits, axis=0).min() > 1e-3


@every_case
def test_every_parameter_gets_a_gradient(case: str) -> None:
    """All but the bias of the keys, which adds the same to every score of a query: softmax removes it."""
    gradient = tree.flatten_dict(plain(case).gradient, sep="/")
    largest = max(float(np.abs(x).max()) for x in gradient.values())
    for name, leaf in gradient.items():
        if name.endswith("mixer/key/bias"):
            assert np.abs(leaf).max() < 1e-5 * largest, name
        elif name.endswith("qkv/bias"):
            query, key, value = np.split(leaf, 3)
            assert np.abs(key).max() < 1e-5 * largest, name
            assert min(np.abs(query).max(), np.abs(value).max()) > 0, name
        else:
            assert np.abs(leaf).max() > 0, name


@every_case
def test_the_content_of_padding_changes_nothing(case: str) -> None:
    params, mel = inputs(case)
    padding = np.arange(FRAMES) >= VALID[:, None, None]
    for content in (np.nan, 1e4):
        result = jax.device_get(program(case)(params, np.where(padding, np.float32(content), mel), VALID))
        chex.assert_trees_all_equal(result, plain(case))


@every_mixer
def test_a_padded_clip_is_the_clip_alone(case: str) -> None:
    """Also inside the model, where the columns of padding are no longer empty."""
    params, mel = inputs(case)
    model = model_of(case)
    alone = jax.jit(lambda params, mel: model.apply({"params": params}, mel)[0])(params, mel[:, :, :32])
    logits, short = plain(case).logits, VALID == 32
    np.testing.assert_allclose(logits[short], alone[short], atol=1e-4 * np.abs(logits).max())


@every_case
def test_recomputed_blocks_equal_stored_ones(case: str) -> None:
    params, mel = inputs(case)

    def recomputed(**changes: Any) -> int:
        model = model_of(case, **changes)
        return str(jax.make_jaxpr(lambda p: model.apply({"params": p}, mel, VALID)[0])(params)).count("prevent_cse")

    # A mixer may recompute parts of itself.
    assert recomputed(remat=True) - recomputed() == sum(map(len, CASES[case].spec)), "every block is recomputed"
    assert_close(jax.device_get(program(case, remat=True)(params, mel, VALID)), plain(case), 1e-5)


@every_mixer
def test_bfloat16_products_stay_near_float32(case: str) -> None:
    """Each rounds to 2**-9; the distances of logits and of gradients, in the root mean square, are a few of these.

    Deformable attention differs more: a point that rounding moves over the edge of a pixel has another slope there.
    """
    roundings = 32 if case.startswith("D") else 8
    result = jax.device_get(program(case, dtype=jnp.bfloat16)(*inputs(case), VALID))
    chex.assert_trees_all_equal_dtypes(result, plain(case))
    for part, wanted in zip(result, plain(case)):
        apart, whole = (
            np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
            for tree in (jax.tree.map(np.subtract, part, wanted), wanted)
        )
        assert 0 < np.linalg.norm(apart) < roundings * 2**-9 * np.linalg.norm(whole)


@every_mixer
@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_batch_on_eight_devices_gives_the_numbers_of_one(case: str, fsdp: int) -> None:
    params, mel = inputs(case)
    mesh = make_mesh(c.MeshConfig(fsdp=fsdp))
    data = jax.device_put((mel, VALID), batch_sharding(mesh))
    params = jax.device_put(params, state_shardings(params, mesh))
    result = program(case)(params, *data)
    assert len(result.logits.sharding.device_set) == jax.device_count() == CLIPS
    assert_close(jax.device_get(result), plain(case), 1e-5)


def test_every_letter_of_the_configuration_has_a_mixer() -> None:
    assert MIXERS.keys() == LETTERS.keys()
    assert {kind.field for kind in LETTERS.values()} <= set(c.ModelConfig.__struct_fields__)
