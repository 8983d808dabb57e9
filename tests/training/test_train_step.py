"""Optimizer, sharding and the train step: what one step changes, and that devices do not change it."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import chex
import flax.traverse_util as tree
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from datar_jax import config as c
from datar_jax.audio.log_mel_jax import normalize
from datar_jax.config import ConfigError, OptimConfig
from datar_jax.models.spec import ModelSpec
from datar_jax.training import sharding
from datar_jax.training.optimizer import decay_mask, optimizer, schedule
from datar_jax.training.sharding import make_mesh, replicated, state_shardings
from datar_jax.training.train_step import TrainState, abstract_state, init_state, jit_eval_step, jit_train_step

pytestmark = pytest.mark.usefixtures("quick_compiles")

CLASSES, MELS, FRAMES, B, STEPS = 4, 32, 32, 8, 100
MEAN, STD = -40.0, 15.0


# One deformable block: cheap to compile.
SMALL = c.Config(
    audio=c.AudioConfig(n_mels=MELS),
    model=c.ModelConfig(
        dims=(8,),
        spec=("D",),
        heads=(2,),
        deformable=c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,)),
        mlp_ratio=2,
        adaptor="none",
    ),
    optim=OptimConfig(learning_rate=1e-2, warmup=0.1),
    train=c.TrainConfig(batch_size=B),
)


def with_model(config: c.Config, **changes: Any) -> c.Config:
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, **changes))


# A window too, every random draw of a step, and averaged weights.
RANDOM = msgspec.structs.replace(
    with_model(SMALL, spec=("SD",), window=c.WindowSettings(sizes=((4, 4),)), dropout=0.2, drop_path=0.3),
    augment=c.AugmentConfig(roll=True, gain_db=6.0, time_masks=1, time_width=8, mixup=0.4, background=0.5),
    optim=msgspec.structs.replace(SMALL.optim, ema=0.9),
)
# Every kind of parameter.
RICH = msgspec.structs.replace(
    with_model(
        SMALL,
        spec=("SD",),
        window=c.WindowSettings(sizes=((4, 4),)),
        stem="conv",
        mlp="conv",
        adaptor="both",
        local_perception=True,
    ),
    optim=OptimConfig(ema=0.9),
)


def with_train(config: c.Config, **changes: Any) -> c.Config:
    return msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, **changes))


@cache
def mesh_of(data: int, fsdp: int = 1) -> Mesh:
    return make_mesh(c.MeshConfig(data, fsdp), jax.devices()[: data * fsdp])


@cache
def batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Clips in decibels whose class is a loud band, some of them padded."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(B) % CLASSES)
    mel = rng.uniform(-70, -40, (B, MELS, FRAMES))
    for clip, band in zip(mel, label):
        clip[8 * band : 8 * band + 8] += 30
    frames = np.full(B, FRAMES, np.int32)
    frames[::3] = 20
    mel = np.where(np.arange(FRAMES) < frames[:, None, None], mel, -80.0).astype(np.float32)
    return {"mel": mel, "frames": frames, "target": np.eye(CLASSES, dtype=np.float32)[label]}


@cache
def program(config: c.Config, mesh: Mesh) -> Any:
    """The compiled step: called and read by several tests."""
    spec = ModelSpec(config, CLASSES, FRAMES, STEPS)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch())
    return jit_train_step(spec, mesh).lower(abstract_state(spec), shapes).compile()


@cache
def start(config: c.Config) -> TrainState:
    """A first state on the host, without compiling the initialiser."""
    shapes, rng = abstract_state(ModelSpec(config, CLASSES, FRAMES, STEPS)), np.random.default_rng(0)

    def fill(path: tuple[Any, ...], x: Any) -> np.ndarray:
        fan_in = int(np.prod(x.shape[:-1])) if path[-1].key == "kernel" else 2500
        return rng.normal(path[-1].key == "scale", fan_in**-0.5, x.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(fill, shapes.params)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return zeros.replace(params=params, ema=params if shapes.ema else {}, statistics=np.float32([MEAN, STD]))


def put(state: TrainState, mesh: Mesh) -> TrainState:
    return jax.device_put(state, state_shardings(state, mesh))


def run(
    config: c.Config, mesh: Mesh, steps: int, state: TrainState | None = None
) -> tuple[TrainState, list[dict[str, float]]]:
    """So many steps, each on the batch of its number; state and numbers on the host."""
    state = put(start(config) if state is None else state, mesh)
    said = []
    for _ in range(steps):
        clips = jax.device_put(batch(int(state.step)), sharding.batch_sharding(mesh))
        state, numbers = program(config, mesh)(state, clips)
        said.append({name: float(x) for name, x in numbers.items()})
    return jax.device_get(state), said


def momentum(state: TrainState) -> Any:
    """The average of the (clipped) gradients: linear in them, unlike the update, which noise can turn around."""
    return optax.tree.get(state.opt_state, "mu")


def assert_same_run(one: tuple[TrainState, list], two: tuple[TrainState, list]) -> None:
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(momentum(one[0])))
    chex.assert_trees_all_close(momentum(two[0]), momentum(one[0]), atol=1e-3 * largest)
    for mine, other in zip(one[1], two[1], strict=True):
        for name in mine:
            np.testing.assert_allclose(other[name], mine[name], rtol=2e-3, err_msg=name)


# Optimizer.


def test_the_schedule_warms_up_and_comes_down() -> None:
    rate = schedule(OptimConfig(learning_rate=2e-3, warmup=0.1, final_lr_ratio=0.05), 1000)
    got = [float(rate(s)) for s in (0, 1, 50, 100, 550, 1000, 5000)]
    middle = 2e-3 * (0.05 + 0.95 * 0.5)
    np.testing.assert_allclose(got, [0, 2e-5, 1e-3, 2e-3, middle, 1e-4, 1e-4], rtol=1e-5, atol=1e-12)
    falling = np.array([float(rate(s)) for s in range(100, 1001, 50)])
    assert (np.diff(falling) < 0).all()
    at_once = schedule(OptimConfig(learning_rate=2e-3, warmup=0.0), 10)
    np.testing.assert_allclose([float(at_once(0)), float(at_once(10))], [2e-3, 2e-5], rtol=1e-5)
    for steps in (1, 2):
        assert float(schedule(OptimConfig(warmup=0.9), steps)(steps - 1)) == pytest.approx(1e-3)


def test_only_kernels_decay() -> None:
    params = abstract_state(ModelSpec(RICH, CLASSES, FRAMES, STEPS)).params
    decayed = tree.flatten_dict(decay_mask(params), sep="/")
    kinds = {name: {p.rsplit("/", 1)[1] for p, on in decayed.items() if on == name} for name in (True, False)}
    assert kinds == {True: {"kernel"}, False: {"bias", "scale", "table", "signal"}}

    config = OptimConfig(learning_rate=0.1, warmup=0.0, weight_decay=0.5, clip_norm=0.0)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    adamw = optimizer(config, 10)
    change = jax.jit(lambda p: adamw.update(jax.tree.map(jnp.zeros_like, p), adamw.init(p), p)[0])(ones)
    for name, leaf in tree.flatten_dict(change, sep="/").items():
        np.testing.assert_allclose(leaf, -0.1 * 0.5 if decayed[name] else 0.0, rtol=1e-6, err_msg=name)


def test_gradients_are_clipped_by_their_common_norm() -> None:
    params, grads = {"kernel": jnp.zeros(2)}, {"kernel": jnp.array([3.0, 4.0])}
    for bound, share in ((1.0, 0.2), (10.0, 1.0), (0.0, 1.0)):
        config = OptimConfig(clip_norm=bound)
        _, state = optimizer(config, 10).update(grads, optimizer(config, 10).init(params), params)
        np.testing.assert_allclose(optax.tree.get(state, "mu")["kernel"], 0.1 * share * grads["kernel"], rtol=1e-5)
        assert float(optax.tree.get(state, "nu")["kernel"][0]) == pytest.approx(
            (1 - config.beta2) * (3 * share) ** 2, 1e-3
        )


# Sharding.


def test_a_mesh_divides_the_devices() -> None:
    assert make_mesh(c.MeshConfig(fsdp=2)).shape == {"data": 4, "fsdp": 2}
    assert make_mesh(c.MeshConfig(data=2, fsdp=4)).shape == {"data": 2, "fsdp": 4}
    assert make_mesh(c.MeshConfig(), jax.devices()[:1]).shape == {"data": 1, "fsdp": 1}
    with pytest.raises(ConfigError, match=r"mesh.fsdp=3: does not divide the 8 devices"):
        make_mesh(c.MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match=r"mesh.data=2: with mesh.fsdp=2 that is 4 devices, and there are 8; give 4"):
        make_mesh(c.MeshConfig(data=2, fsdp=2))


def test_the_table_places_every_leaf_and_names_what_it_misses() -> None:
    state = abstract_state(ModelSpec(RICH, CLASSES, FRAMES, STEPS))
    placed = state_shardings(state, mesh_of(4, 2))
    block = placed.params["stage_0_1"]
    assert block["mlp"]["up"]["kernel"].spec == block["mixer"]["key"]["kernel"].spec == P(None, "fsdp")
    assert block["mlp"]["down"]["kernel"].spec == block["mixer"]["out"]["kernel"].spec == P("fsdp", None)
    assert block["adaptor"]["signal"].spec == P(None, None, "fsdp")
    assert block["mixer"]["table"].spec == block["mlp"]["up"]["bias"].spec == P()
    specs = jax.tree.map(lambda s: s.spec, placed.params)
    for moments in (placed.ema, momentum(placed), optax.tree.get(placed.opt_state, "nu")):
        assert jax.tree.map(lambda s: s.spec, moments) == specs, "what follows a parameter lies beside it"
    divided = [n for n, spec in tree.flatten_dict(specs, sep="/").items() if spec != P()]
    assert len(divided) == 2 + 4 + 7, "head and stem, a window's and a deformable block's, and nothing else"
    assert placed.step.spec == placed.statistics.spec == placed.skipped.spec == P()
    with pytest.raises(KeyError, match=r"no sharding rule covers odd/gamma \(3,\)"):
        state_shardings({"odd": {"gamma": jnp.zeros(3)}}, mesh_of(1))
    with pytest.raises(ConfigError, match=r"mesh.fsdp=8: does not divide axis C=12 of head/kernel \(12, 4\)"):
        state_shardings({"head": {"kernel": jnp.zeros((12, 4))}}, mesh_of(1, 8))


def test_a_rule_knows_the_axes_of_what_it_places() -> None:
    """A kernel of another rank is another kernel."""
    with pytest.raises(KeyError, match="head/kernel"):
        state_shardings({"head": {"kernel": jnp.zeros((1, 4, 4))}}, mesh_of(1))


@pytest.mark.parametrize("name, whole_part", [("datar_nano", 0.035), ("datar_base", 0.007)])
def test_a_share_of_the_state_is_a_share_of_its_bytes(name: str, whole_part: float) -> None:
    """And of what every device keeps whole (position tables, most of all)."""
    config = c.Config(model=c.MODELS[name](), optim=OptimConfig(ema=0.9))
    state = jax.tree.leaves(abstract := abstract_state(ModelSpec(config, 50, 1000, STEPS)))
    whole = sum(leaf.size for leaf in state)
    for n in (1, 2, 8):
        placed = jax.tree.leaves(state_shardings(abstract, mesh_of(1, n)))
        share = sum(math.prod(s.shard_shape(x.shape)) for x, s in zip(state, placed))
        assert whole / n <= share <= whole * (whole_part + (1 - whole_part) / n)


def test_the_state_is_made_where_it_belongs() -> None:
    spec, mesh = ModelSpec(SMALL, CLASSES, FRAMES, STEPS), mesh_of(4, 2)
    state = init_state(spec, mesh, MEAN, STD)
    assert jax.tree.map(lambda x: x.sharding, state) == state_shardings(state, mesh)
    for params in (state.params, momentum(state)):
        up = params["stage_0_0"]["mlp"]["up"]["kernel"]
        assert up.shape == (8, 16) and {s.data.shape for s in up.addressable_shards} == {(8, 8)}
    np.testing.assert_array_equal(state.statistics, [MEAN, STD])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, abstract_state(spec))
    host = jax.device_get(state)
    assert not any(leaf.any() for leaf in jax.tree.leaves((host.opt_state, host.step, host.skipped)))
    same, other = (
        jax.device_get(init_state(ModelSpec(with_train(SMALL, seed=n), CLASSES, FRAMES, STEPS), mesh_of(1)).params)
        for n in (0, 1)
    )
    chex.assert_trees_all_close(same, host.params, rtol=1e-6)  # one device draws what eight do
    assert (same["head"]["kernel"] != other["head"]["kernel"]).all(), "the seed says which"


# The step.


def test_eight_devices_do_what_one_does() -> None:
    """With every random draw of a step: draws follow the clip, not the device that holds it."""
    alone, shared = run(RANDOM, mesh_of(1), 3), run(RANDOM, mesh_of(8), 3)
    assert_same_run(alone, shared)
    ema = [np.concatenate([x.ravel() for x in jax.tree.leaves(s.ema)]) for s in (alone[0], shared[0])]
    assert np.abs(ema[0] - ema[1]).mean() < 1e-4 * np.abs(ema[0]).mean()


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [(8, 1), (1, 8), (4, 2)])
def test_twenty_steps_are_the_same_on_any_mesh(data: int, fsdp: int) -> None:
    """Losses apart by sums in another order, which twenty updates carry on."""
    alone, shared = (
        np.array([numbers["loss"] for numbers in run(RANDOM, mesh, 20)[1]])
        for mesh in (mesh_of(1), mesh_of(data, fsdp))
    )
    print(np.abs(shared - alone).max())
    np.testing.assert_allclose(shared, alone, rtol=1e-4)  # measured: 5e-6
    assert len(set(alone)) == 20


def test_no_activation_is_gathered_from_other_devices() -> None:
    text = program(RANDOM, mesh_of(8)).as_text()
    assert re.search(r"num_partitions=8", text) and "all-reduce" in text, "the program is divided"
    assert "all-gather" not in text and "all-to-all" not in text


def test_a_step_repeats_itself_and_a_resumed_run_is_the_run() -> None:
    mesh = mesh_of(8)
    whole, said = run(RANDOM, mesh, 4)
    again, same = run(RANDOM, mesh, 4)
    assert same == said
    chex.assert_trees_all_equal(again, whole)
    half, first = run(RANDOM, mesh, 2)
    resumed, second = run(RANDOM, mesh, 2, half)
    assert first + second == said
    chex.assert_trees_all_equal(resumed, whole)
    assert int(whole.step) == 4 and len({x["loss"] for x in said}) == 4
    rates = [float(schedule(RANDOM.optim, STEPS)(s)) for s in range(4)]
    np.testing.assert_allclose([x["learning_rate"] for x in said], rates, rtol=1e-6)


def test_the_draws_of_a_step_follow_its_number() -> None:
    mesh, state = mesh_of(1), start(RANDOM)

    def loss(step: int) -> float:
        return float(program(RANDOM, mesh)(put(state.replace(step=np.int32(step)), mesh), batch())[1]["loss"])

    assert loss(0) == loss(0) != loss(1)


def test_the_state_is_donated() -> None:
    mesh = mesh_of(8)
    state = put(start(RANDOM), mesh)
    after, _ = program(RANDOM, mesh)(state, jax.device_put(batch(), sharding.batch_sharding(mesh)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_the_average_follows_its_law() -> None:
    state, mesh = start(RANDOM), mesh_of(1)
    for step in (0, 1, 200):
        after, _ = run(RANDOM, mesh, 1, state.replace(step=np.int32(step)))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, state.ema, after.params)
        chex.assert_trees_all_close(after.ema, expected, atol=1e-6)
        state = after
    assert start(SMALL).ema == {}, "and costs nothing when it is off"


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(poison: float) -> None:
    mesh = mesh_of(8)
    bad = {**batch(), "mel": batch()["mel"].copy()}
    bad["mel"][0, 3, 3] = poison
    before, _ = run(RANDOM, mesh, 1)
    state = put(before, mesh)
    for count in (1, 2):
        state, numbers = program(RANDOM, mesh)(state, jax.device_put(bad, sharding.batch_sharding(mesh)))
        assert not np.isfinite(numbers["grad_norm"]) and int(numbers["skipped"]) == count
        after = jax.device_get(state)
        chex.assert_trees_all_equal(after, before.replace(step=before.step + count, skipped=np.int32(count)))
    well, said = run(RANDOM, mesh, 1, after)
    assert well.skipped == 0 == said[0]["skipped"] and int(well.step) == 4, "the count is of steps in a row"
    assert any((x != y).any() for x, y in zip(*(jax.tree.leaves(s.params) for s in (well, before))))


def test_micro_batches_add_up_to_the_batch() -> None:
    assert_same_run(run(SMALL, mesh_of(1), 2), run(with_train(SMALL, grad_accum_steps=2), mesh_of(1), 2))


def sound(clips: Any) -> Any:
    """What is heard of a batch."""
    return {"mel": clips["mel"], "frames": clips["frames"]}


def test_eight_clips_are_learned_by_heart() -> None:
    mesh = mesh_of(1)
    state, losses = put(start(SMALL), mesh), []
    for _ in range(STEPS):
        state, numbers = program(SMALL, mesh)(state, batch())
        losses.append(float(numbers["loss"]))
    assert abs(losses[0] - np.log(CLASSES)) < 0.6, "it starts without an opinion"
    assert losses[-1] < 0.1 * losses[0]

    spec = ModelSpec(SMALL, CLASSES, FRAMES, STEPS)
    clips = batch()
    scores = jit_eval_step(spec, mesh)(state.params, state.statistics, sound(clips))
    np.testing.assert_array_equal(scores.argmax(1), clips["target"].argmax(1))
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    apply = jax.jit(spec.model(train=False).apply)
    logits, _ = apply({"params": state.params}, normalize(clips["mel"], MEAN, STD), clips["frames"])
    np.testing.assert_allclose(scores, jax.nn.softmax(logits), atol=1e-5)


def test_two_heads_are_learned_by_heart() -> None:
    """The last layer is one; which of its columns compete with which, the spec says."""
    mesh, spec = mesh_of(1), ModelSpec(SMALL, CLASSES, FRAMES, STEPS, head_sizes=(2, 2))
    clips = batch()
    label = clips["target"].argmax(1)
    half = np.eye(2, dtype=np.float32)
    clips = {**clips, "target": np.concatenate([half[label // 2], half[label % 2]], axis=1)}
    state, losses = put(start(SMALL), mesh), []
    for _ in range(STEPS):
        state, numbers = jit_train_step(spec, mesh)(state, clips)
        losses.append(float(numbers["loss"]))
    assert abs(losses[0] - 2 * np.log(2)) < 0.6, "the losses of two heads without an opinion"
    assert losses[-1] < 0.1 * losses[0]
    scores = jit_eval_step(spec, mesh)(state.params, state.statistics, sound(clips))
    np.testing.assert_allclose(scores.reshape(B, 2, 2).sum(2), 1, rtol=1e-5)
    np.testing.assert_array_equal(scores > 0.5, clips["target"] > 0.5)


def test_scores_come_back_on_every_device() -> None:
    several = msgspec.structs.replace(SMALL, data=c.DataConfig(labels="multi"))
    mesh, spec, clips = mesh_of(8), ModelSpec(several, CLASSES, FRAMES, STEPS), batch()
    state = put(start(SMALL), mesh)
    data = jax.device_put(sound(clips), sharding.batch_sharding(mesh))
    scores = jit_eval_step(spec, mesh)(state.params, state.statistics, data)
    assert scores.sharding.is_equivalent_to(replicated(mesh), 2) and scores.dtype == jnp.float32
    single = jit_eval_step(ModelSpec(SMALL, CLASSES, FRAMES, STEPS), mesh_of(1))
    odds = np.asarray(scores) / (1 - np.asarray(scores))  # exp of a logit
    host = start(SMALL)
    shares = single(host.params, host.statistics, sound(clips))
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), shares, atol=1e-5)


def test_a_step_in_bfloat16_keeps_the_state_in_float32() -> None:
    narrow = with_model(SMALL, dtype="bfloat16")
    mesh = mesh_of(1)
    state, said = run(narrow, mesh, 1, start(SMALL))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start(SMALL))
    exact, exactly = run(SMALL, mesh, 1)
    assert said[0]["loss"] == pytest.approx(exactly[0]["loss"], rel=0.02)
    assert said[0]["loss"] != exactly[0]["loss"], "the products were rounded"
    mine, other = (np.concatenate([x.ravel() for x in jax.tree.leaves(momentum(s))]) for s in (state, exact))
    assert mine @ other > 0.98 * np.linalg.norm(mine) * np.linalg.norm(other), "the gradients point the same way"
