"""Fine-tuning: what a new model takes from another, what it makes anew, and which of its parameters learn."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax import config as c
from datar_jax.checkpoints.model_info import ModelInfo
from datar_jax.checkpoints.transfer import transfer
from datar_jax.models.spec import ModelSpec
from datar_jax.training.finetune import started
from datar_jax.training.optimizer import optimizer, rate_scales
from datar_jax.training.train_step import TrainState, abstract_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compiles")

MODEL = c.ModelConfig(
    dims=(8, 16),
    spec=("L", "D"),
    heads=(1, 2),
    window=c.WindowSettings(sizes=((4, 4), (2, 4))),
    deformable=c.DeformableSettings(groups=(1, 2), strides=(1, 1), kernels=(3, 3)),
    mlp_ratio=2,
    adaptor="signal",
    drop_path=0.5,
    dropout=0.5,
)
LABELS = ("bark", "rain", "siren")


def described(labels: tuple[str, ...] = LABELS, frames: int = 64, **changes: Any) -> ModelInfo:
    model = msgspec.structs.replace(MODEL, num_classes=len(labels), **changes.pop("model", {}))
    audio = c.AudioConfig(**{"n_mels": 32, **changes.pop("audio", {})})
    config = c.Config(audio=audio, model=model, init=c.InitConfig(source="runs/old", **changes.pop("init", {})))
    return ModelInfo(config=config, labels=labels, frames=frames, mean_db=-30.0, std_db=10.0, **changes)


def state_of(model: ModelInfo, seed: int = 0, ema: float = 0.5, **optim: Any) -> TrainState:
    """A state of random numbers; nothing is compiled for it."""
    config = msgspec.structs.replace(model.config, optim=c.OptimConfig(ema=ema, warmup=0.0, **optim))
    spec = ModelSpec(config, len(model.labels), model.frames, 10, tuple(model.head_sizes.values()))
    rng = np.random.default_rng(seed)
    shapes = abstract_state(spec)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes.params)
    return zeros.replace(params=params, statistics=jnp.array([-30.0, 10.0]))


def flat(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in tree.flatten_dict(params, sep="/").items()}


def test_the_same_model_takes_everything() -> None:
    source, state = described(), state_of(described(), seed=1)
    given = transfer(state.params, source, state.params, source)
    new = started(state_of(source, seed=2), state.params, given)
    for params in (new.params, new.ema):
        for name, leaf in flat(params).items():
            np.testing.assert_array_equal(leaf, flat(state.params)[name], err_msg=name)
    assert not given.left and not given.new and not given.resized
    assert given.account(LABELS)[1] == "head: 3 of 3 classes taken over by name"
    assert all(a is not b for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(new.ema)))  # donated apart


def test_classes_are_known_by_name_and_head() -> None:
    source, target = described(), described(("rain", "bell", "bark"))
    old, fresh = state_of(source, seed=1), state_of(target, seed=2)
    given = transfer(old.params, source, fresh.params, target)
    assert given.classes.tolist() == [1, -1, 0]
    new = started(fresh, old.params, given)
    kernel, bias = new.params["head"]["kernel"], new.params["head"]["bias"]
    np.testing.assert_array_equal(kernel[:, [0, 2]], old.params["head"]["kernel"][:, [1, 0]])
    np.testing.assert_array_equal(kernel[:, 1], fresh.params["head"]["kernel"][:, 1])
    np.testing.assert_array_equal(bias[jnp.array([0, 2])], old.params["head"]["bias"][jnp.array([1, 0])])
    assert "new: bell" in given.account(target.labels)[1]

    both = described(("bark", "rain", "bark"), head_sizes={"verb": 1, "noun": 2})
    other = described(("bark", "bark", "rain"), head_sizes={"verb": 1, "noun": 2})
    params = state_of(both).params
    assert transfer(params, both, params, other).classes.tolist() == [0, 2, 1]
    assert transfer(params, both, params, source).classes.tolist() == [-1, -1, -1]


def test_a_parameter_of_one_side_only_stops_unless_it_is_named() -> None:
    source, plain = described(), {"model": {"adaptor": "none"}}
    params, without = state_of(source).params, state_of(described(**plain)).params
    with pytest.raises(c.ConfigError, match=r"init\.allow_unexpected=''.*stage_1_0/adaptor/signal.*this model has not"):
        transfer(params, source, without, described(**plain))
    with pytest.raises(c.ConfigError, match=r"init\.allow_missing=''.*stage_1_0/adaptor/signal.*runs/old has not"):
        transfer(without, described(**plain), params, source)
    given = transfer(params, source, without, described(**plain, init={"allow_unexpected": "adaptor"}))
    assert given.left == ("stage_1_0/adaptor/signal",)
    given = transfer(without, described(**plain), params, described(init={"allow_missing": "adaptor"}))
    assert given.new == ("stage_1_0/adaptor/signal",)
    assert given.account(LABELS)[2] == "left out: nothing; newly made: stage_1_0/adaptor/signal"

    wide = described(model={"dims": (8, 24)})
    with pytest.raises(c.ConfigError, match="other sizes than this model's"):
        transfer(params, source, state_of(wide).params, wide)


def test_a_bias_of_each_pair_fits_one_size_only() -> None:
    settings = c.DeformableSettings(groups=(1, 2), strides=(1, 1), kernels=(3, 3), grid="dat2023", position="fixed")
    source, longer = (described(frames=n, model={"deformable": settings}) for n in (64, 128))
    params = state_of(source).params
    assert "stage_1_0/mixer/table" in transfer(params, source, params, source).values
    with pytest.raises(c.ConfigError, match="stage_1_0/mixer/table 2x32x32, here 2x64x64"):
        transfer(params, source, state_of(longer).params, longer)


@pytest.mark.parametrize("change", [{"frames": 128}, {"frames": 32}, {"audio": {"hop_ms": 5.0}, "frames": 128}])
def test_a_table_says_the_same_of_the_same_seconds(change: dict[str, Any]) -> None:
    source, target = described(), described(**change)
    params = jax.tree.map(np.asarray, state_of(source, seed=1).params)
    given = transfer(params, source, state_of(target).params, target)
    old, new = params["stage_1_0"]["mixer"]["table"], given.values["stage_1_0/mixer/table"]
    seconds = 10.0 / target.config.audio.hop_ms  # new columns for each old one
    for distance in range(-3, 4):
        middle = np.array(new.shape) // 2
        there = new[:, middle[1], middle[2] + round(distance * seconds)]
        np.testing.assert_allclose(there, old[:, old.shape[1] // 2, old.shape[2] // 2 + distance], atol=1e-6)
    assert given.values["stage_1_0/adaptor/signal"].shape[1] == target.frames // 8


def test_other_mels_keep_their_share_of_the_axis() -> None:
    source, target = described(), described(audio={"n_mels": 64})
    params = state_of(source, seed=1).params
    given = transfer(params, source, state_of(target).params, target)
    old, new = np.asarray(params["stage_1_0"]["mixer"]["table"]), given.values["stage_1_0/mixer/table"]
    for distance in range(-3, 4):  # four rows before, eight now
        np.testing.assert_allclose(new[:, 7 + 2 * distance, 7], old[:, 3 + distance, 7], atol=1e-6)
    assert "stage_1_0/mixer/table 2x7x15 to 2x15x15" in given.account(LABELS)[0]


def test_rates_fall_from_the_head_to_the_stem() -> None:
    params = state_of(described()).params
    found = {
        name.split("/")[0]: rate
        for name, rate in tree.flatten_dict(rate_scales(c.OptimConfig(layer_decay=0.5), params), sep="/").items()
    }
    assert found == {"head": 1.0, "norm": 1.0, "stage_1_0": 0.5, "down_1": 0.5, "stage_0_0": 0.25, "stem": 0.125}
    frozen = tree.flatten_dict(rate_scales(c.OptimConfig(freeze="backbone"), params), sep="/")
    assert {name for name, rate in frozen.items() if rate} == {"head/kernel", "head/bias"}


def test_an_update_is_scaled_after_everything_else() -> None:
    params = state_of(described()).params
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
    updates = []
    for decay in (1.0, 0.5):
        transform = optimizer(c.OptimConfig(layer_decay=decay, warmup=0.0), 10)
        updates.append(flat(jax.jit(transform.update)(grads, transform.init(params), params)[0]))
    share = flat(
        jax.tree.map(lambda x, rate: jnp.float32(rate), params, rate_scales(c.OptimConfig(layer_decay=0.5), params))
    )
    for name in updates[0]:
        np.testing.assert_allclose(updates[1][name], updates[0][name] * share[name], rtol=1e-6, err_msg=name)


def test_a_frozen_backbone_stays_and_drops_nothing() -> None:
    model = described()
    optim = {"freeze": "backbone", "learning_rate": 0.1}
    config = msgspec.structs.replace(model.config, optim=c.OptimConfig(warmup=0.0, **optim))
    spec = ModelSpec(config, 3, model.frames, 10)
    state = state_of(model, ema=0.0, **optim)
    step = jax.jit(partial(train_step, spec))
    rng = np.random.default_rng(0)
    batch = {
        "mel": rng.normal(-30, 10, (4, 32, 64)).astype(np.float32),
        "frames": np.full(4, 64, np.int32),
        "target": np.eye(3, dtype=np.float32)[[0, 1, 2, 0]],
    }
    after, said = step(state, batch)
    for name, leaf in flat(after.params).items():
        changed = not np.array_equal(leaf, flat(state.params)[name])
        assert changed == name.startswith("head/"), name
    again = step(state.replace(step=jnp.int32(5)), batch)[1]  # another step draws other numbers, if any
    assert said["loss"] == again["loss"]
