"""The whole network: sizes, gradients, padding, stochastic depth, and the effect of each setting."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import chex
import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax import config as c
from datar_jax.models.adaptor import InputAdaptor
from datar_jax.models.datar import DATAR
from datar_jax.models.flops import count_parameters
from datar_jax.models.layers import DropPath
from datar_jax.models.mixers import MIXERS
from datar_jax.models.parameter_shapes import parameter_shapes
from datar_jax.training.optimizer import decay_mask
from datar_jax.training.sharding import make_mesh, state_shardings
from tests.helpers import LONE

pytestmark = pytest.mark.usefixtures("quick_compiles")

CLASSES, MELS, FRAMES = 5, 32, 64


# Every letter and every branch, windows that do not divide every map, a sampling grid of stride two.
SMALL = c.ModelConfig(
    dims=(8, 16),
    spec=("LS", "D"),
    heads=(1, 2),
    window=c.WindowSettings(sizes=((3, 4), (2, 2))),
    deformable=c.DeformableSettings(groups=(1, 2), strides=(1, 2), kernels=(3, 3)),
    stem="conv",
    mlp="conv",
    mlp_ratio=2,
    local_perception=True,
    adaptor="both",
    adaptor_at="both",
)

WINDOWS = c.ModelConfig(dims=(8,), spec=("L",), heads=(2,), window=c.WindowSettings(sizes=((2, 2),)), adaptor="none")


def changed(config: c.ModelConfig, **changes: Any) -> c.ModelConfig:
    return msgspec.structs.replace(config, **changes)


def network(config: c.ModelConfig, **changes: Any) -> DATAR:
    return DATAR(**{"config": config, "classes": CLASSES, "mels": MELS, "frames": FRAMES, **changes})


def abstract(model: DATAR, *shape: int) -> Any:
    mel = jax.ShapeDtypeStruct(shape or (1, model.mels, model.frames), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), mel)["params"]


def noisy(model: DATAR, seed: int = 0, scale: float = 0.2) -> Any:
    """Parameters far from their start, so that no zero hides a path."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: rng.normal(path[-1].key == "scale", scale, x.shape).astype(np.float32), abstract(model)
    )


def clips(frames: int, b: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(b, MELS, frames)).astype(np.float32)


@cache
def scoring(model: DATAR) -> Any:
    """(params, mel, frames) to logits and intermediates, compiled once per shape."""
    return jax.jit(lambda params, mel, frames=None: model.apply({"params": params}, mel, frames))


@pytest.mark.parametrize(
    "position, names",
    [
        ("table", {"table"}),
        ("none", set()),
        ("dwc", {"position/bias", "position/kernel"}),
        ("log_cpb", {"position/bias", "position/heads", "position/kernel"}),
    ],
)
def test_a_position_term_has_parameters_a_place_and_no_decay(position: Any, names: set[str]) -> None:
    params = abstract(network(changed(LONE, deformable=msgspec.structs.replace(LONE.deformable, position=position))))
    mixer = {name.removeprefix("stage_0_0/mixer/") for name in tree.flatten_dict(params, sep="/") if "/mixer/" in name}
    known = {"offset", "query", "key", "value", "out"}
    assert {name for name in mixer if name.split("/")[0] not in known} == names
    state_shardings(params, make_mesh(c.MeshConfig()))  # a rule covers every leaf
    decayed = tree.flatten_dict(decay_mask(params)["stage_0_0"]["mixer"], sep="/")
    assert not any(decayed[name] for name in names) and decayed["query/kernel"]


def test_neighborhoods_fill_a_small_map_with_zeros_only_if_asked_to() -> None:
    def pair(window: tuple[int, int]) -> list[DATAR]:
        settings = (c.NeighborhoodSettings(sizes=(window,), fill=fill) for fill in (False, True))
        return [network(c.ModelConfig(dims=(8,), spec=("N",), heads=(2,), neighborhood=each)) for each in settings]

    ours, published = pair((9, 9))
    params, mel = noisy(ours), clips(16)
    state_shardings(abstract(ours), make_mesh(c.MeshConfig()))
    scores = [np.asarray(scoring(model)(params, mel)[0]) for model in (ours, published)]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    wide = clips(64)  # a map of 8 x 16, larger than the windows below
    ours, published = pair((7, 9))
    params = noisy(ours)
    np.testing.assert_array_equal(scoring(ours)(params, wide)[0], scoring(published)(params, wide)[0])


# Sizes.


@pytest.mark.parametrize(
    "variant, count",
    [("datar_nano", 1_698_885), ("datar_tiny", 27_615_132), ("datar_small", 49_039_020), ("datar_base", 87_000_106)],
)
def test_parameters_of_a_variant(variant: str, count: int) -> None:
    """128 mel bins, five seconds, fifty classes."""
    assert count_parameters(abstract(DATAR(c.MODELS[variant](), 50, 128, 500))) == count


@pytest.mark.parametrize(
    "variant, count", [("datar_tiny", 28_319_138), ("datar_small", 49_700_402), ("datar_base", 87_881_632)]
)
def test_parameters_of_the_published_image_models(variant: str, count: int) -> None:
    config = c.MODELS[variant]()
    deformable = msgspec.structs.replace(config.deformable, grid="dat2022")
    config = changed(config, window=c.WindowSettings(sizes=((7, 7),) * 4), deformable=deformable, adaptor="none")
    assert count_parameters(abstract(DATAR(config, 1000, 224, 224), 1, 224, 224, 3)) == count


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("mels, frames", [(32, 64), (33, 7), (32, 1), (32, 101)])
def test_maps_have_the_sizes_that_the_settings_say(stem: Any, mels: int, frames: int) -> None:
    model = network(changed(SMALL, stem=stem), mels=mels)
    shapes, outputs = jax.eval_shape(
        lambda key, mel: model.init_with_output(key, mel)[0],
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, mels, frames), jnp.float32),
    )
    assert shapes.shape == (2, CLASSES) and outputs["features"].shape == (2, SMALL.dims[-1])
    expected = [(2, *size, dim) for size, dim in zip(SMALL.maps(mels, frames), SMALL.dims)]
    assert [x.shape for x in outputs["stages"]] == expected


def test_another_number_of_mel_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="reads 32 mel bins, the spectrogram has 64"):
        abstract(network(LONE), 1, 64, 16)


# Values and gradients.


@pytest.mark.parametrize("frames", [3, 150])
def test_any_length_gives_finite_scores(frames: int) -> None:
    """Tables and signals are made for one length; a clip may have another."""
    model = network(SMALL)
    logits, outputs = scoring(model)(noisy(model), clips(frames))
    chex.assert_tree_all_finite((logits, outputs))
    assert logits.dtype == jnp.float32
    assert np.abs(logits[0] - logits[1]).max() > 1e-3, "two clips, two answers"


def loss_and_gradient(model: DATAR, params: Any, mel: Any) -> Any:
    weight = np.random.default_rng(7).normal(size=(len(mel), CLASSES)).astype(np.float32)
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.apply({"params": p}, mel)[0] * weight)))(params)


def test_recomputing_blocks_changes_nothing() -> None:
    plain, remat = network(LONE), network(changed(LONE, remat=True))
    params, mel = noisy(plain), clips(16)

    def recomputed(model: DATAR) -> int:
        return str(jax.make_jaxpr(lambda p: model.apply({"params": p}, mel)[0])(params)).count("prevent_cse")

    assert (recomputed(plain), recomputed(remat)) == (0, 1), "the block is rematerialised"
    value, gradient = loss_and_gradient(plain, params, mel)
    again, same = loss_and_gradient(remat, params, mel)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    chex.assert_trees_all_close(same, gradient, atol=1e-5 * max(float(np.abs(x).max()) for x in jax.tree.leaves(same)))


def test_every_parameter_learns() -> None:
    model = network(SMALL)
    _, gradient = loss_and_gradient(model, noisy(model), clips(FRAMES))
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(gradient))
    for name, leaf in tree.flatten_dict(gradient, sep="/").items():
        size = float(np.abs(leaf).max())
        if name.endswith("mixer/key/bias"):
            assert size < 1e-5 * largest, "softmax does not see what all keys share"
        elif name.endswith("qkv/bias"):
            query, key, value = np.split(np.asarray(leaf), 3)
            assert np.abs(key).max() < 1e-5 * largest and np.abs(query).max() > 0 and np.abs(value).max() > 0
        else:
            assert size > 1e-5 * largest, f"{name} has no gradient"


def test_evaluation_repeats_itself_and_training_follows_its_key() -> None:
    config = changed(WINDOWS, spec=("LL",))
    model = network(config)
    params, mel = noisy(model), clips(16, b=4)
    evaluate = np.asarray(scoring(model)(params, mel)[0])
    np.testing.assert_array_equal(evaluate, scoring(model)(params, mel)[0])
    for rates in ({"dropout": 0.5}, {"drop_path": 0.9}):
        train = network(changed(config, **rates), train=True)
        draw = jax.jit(lambda p, key, t=train: t.apply({"params": p}, mel, rngs={"dropout": key})[0])
        one, again, two = (np.asarray(draw(params, jax.random.key(seed))) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert (np.abs(one - two).max(1) > 1e-4).any() and (np.abs(one - evaluate).max(1) > 1e-4).any()
        np.testing.assert_array_equal(scoring(network(changed(config, **rates)))(params, mel)[0], evaluate)
        with pytest.raises(Exception, match="dropout"):
            jax.eval_shape(train.apply, {"params": params}, mel)


def test_drop_path_grows_linearly_from_nothing() -> None:
    """Of three blocks with a last rate of 0.9, the first never drops and the last nearly always."""
    config = changed(WINDOWS, spec=("LLL",), drop_path=0.9)
    train = network(config, train=True)
    mel, params = clips(8, b=64), noisy(train)
    _, kept = jax.jit(partial(train.apply, capture_intermediates=lambda m, _: isinstance(m, DropPath)))(
        {"params": params}, mel, rngs={"dropout": jax.random.key(0)}
    )
    kept = kept["intermediates"]
    for j, rate in enumerate((0.0, 0.45, 0.9)):
        for name in ("drop_mixer", "drop_mlp"):
            dropped = (np.asarray(kept[f"stage_0_{j}"][name]["__call__"][0]) == 0).all((1, 2, 3)).mean()
            assert abs(dropped - rate) <= 3.5 * np.sqrt(rate * (1 - rate) / 64)


# The adaptor.


PLACES = {"spectrogram": {""}, "block": {"stage_0_0/"}, "both": {"", "stage_0_0/"}}
PARTS = {"signal": {"signal"}, "conv": {"conv/kernel", "conv/bias"}, "both": {"signal", "conv/kernel", "conv/bias"}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PARTS)
def test_the_adaptor_starts_as_the_identity(kind: Any, place: Any) -> None:
    plain, adapted = network(LONE), network(changed(LONE, adaptor=kind, adaptor_at=place))
    shared, own = (tree.flatten_dict(abstract(model), sep="/") for model in (plain, adapted))
    extra = {f"{where}adaptor/{part}" for where in PLACES[place] for part in PARTS[kind]}
    assert own.keys() - shared.keys() == extra and shared.keys() <= own.keys(), "nothing but the adaptor differs"

    x = np.random.default_rng(0).normal(size=(1, 4, 6, 2)).astype(np.float32)
    adaptor = InputAdaptor(kind, (4, 6))
    out, variables = adaptor.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables))

    if (kind, place) == ("both", "both"):
        params = noisy(plain)
        still = {name: np.zeros(own[name].shape, np.float32) for name in extra}
        full = tree.unflatten_dict({**tree.flatten_dict(params, sep="/"), **still}, sep="/")
        logits = scoring(adapted)(full, clips(16))[0]
        np.testing.assert_array_equal(logits, scoring(plain)(params, clips(16))[0])
        for name in extra:
            full = tree.unflatten_dict({**tree.flatten_dict(params, sep="/"), **still, name: still[name] + 1}, sep="/")
            assert np.abs(scoring(adapted)(full, clips(16))[0] - logits).max() > 1e-4, f"{name} has no effect"


# Padding.


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_a_padded_clip_is_the_clip(stem: Any) -> None:
    """Padding with any content, NaN too, gives the scores of the clips alone.

    25 frames make 13 columns inside the stem and 7 after it: odd numbers, the last column partly sound.
    """
    model = network(changed(SMALL, stem=stem, adaptor="conv"))
    params, mel = noisy(model), clips(FRAMES)
    sound, other = np.array([25, FRAMES], np.int32), np.array([FRAMES, 25], np.int32)
    padded, loud = mel.copy(), mel.copy()
    padded[0, :, 25:], loud[0, :, 25:] = np.nan, 1e4
    logits = np.asarray(scoring(model)(params, padded, sound)[0])
    np.testing.assert_array_equal(scoring(model)(params, loud, sound)[0], logits)
    atol = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(logits[:1], scoring(model)(params, mel[:1, :, :25])[0], atol=atol)
    np.testing.assert_allclose(logits[1], scoring(model)(params, mel[::-1], other)[0][0], atol=atol)
    assert np.abs(logits[0] - scoring(model)(params, mel, other)[0][0]).max() > 10 * atol, "and length matters"


def test_an_odd_number_of_frames_is_padded_alike() -> None:
    """A clip whose last column is partly sound reads the same in any window."""
    model = network(LONE)
    params, mel, sound = noisy(model), clips(40, b=1), np.array([21], np.int32)
    alone = scoring(model)(params, mel[:, :, :24], sound)[0]
    atol = 1e-4 * np.abs(alone).max()
    np.testing.assert_allclose(scoring(model)(params, mel, sound)[0], alone, atol=atol)
    np.testing.assert_allclose(scoring(model)(params, mel[:, :, :21])[0], alone, atol=atol)


def test_bfloat16_products_give_float32_logits() -> None:
    wide, narrow = network(SMALL), network(SMALL, dtype=jnp.bfloat16)
    params, mel = noisy(wide), clips(FRAMES)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract(wide), abstract(narrow))
    logits, outputs = scoring(narrow)(params, mel)
    assert {x.dtype for x in jax.tree.leaves((logits, outputs))} == {jnp.dtype(jnp.float32)}
    exact = scoring(wide)(params, mel)[0]
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max(), "the products were rounded, and not more"


@pytest.mark.parametrize(
    "deformable",
    [
        *({"position": position} for position in ("table", "log_cpb", "dwc", "none")),
        {"position": "table", "grid": "dat2022", "kernels": (4, 2)},
        {"position": "fixed", "grid": "dat2023", "offset_range": -1.0},
        {"position": "none", "grid": "dat2023", "offsets": False},
    ],
    ids=str,
)
def test_shapes_of_parameters_are_those_of_the_whole_model(deformable):
    """Of any mixer and setting, though they are traced with few blocks and a short clip."""
    every = changed(
        SMALL,
        spec=("LSNDLD", "NDD"),
        neighborhood=c.NeighborhoodSettings(sizes=((3, 5), (3, 3))),
        deformable=c.DeformableSettings(**{"groups": (1, 2), "strides": (2, 1), "kernels": (5, 3), **deformable}),
    )
    assert set("".join(every.spec)) == set(MIXERS), "a mixer that this does not try"
    plain = changed(
        every,
        spec=("LD", "D"),
        neighborhood=SMALL.neighborhood,
        stem="patch",
        mlp="plain",
        local_perception=False,
        adaptor="none",
        adaptor_at="block",
    )
    for config, channels in ((every, 3), (plain, 1)):
        model = DATAR(config, CLASSES, 32, 320)
        flat = tree.flatten_dict(abstract(model, 1, 32, 320, channels), sep="/")
        assert parameter_shapes(config, CLASSES, 32, 320, channels) == {path: x.shape for path, x in flat.items()}
