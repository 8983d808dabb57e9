"""One step of training and of evaluation: pure functions of (state, batch), jitted over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.sharding import Mesh

from datar_jax.audio.framing import num_samples
from datar_jax.models.spec import Batch, ModelSpec, predict, spectrograms
from datar_jax.training.augment import augment
from datar_jax.training.optimizer import optimizer, rate_scales, schedule
from datar_jax.training.sharding import batch_sharding, replicated, state_shardings
from datar_jax.training.tasks import classification as objective


@struct.dataclass
class TrainState:
    """The complete state of training.

    `skipped` counts steps in a row whose gradient was not finite. `statistics` is the (mean, deviation) of the training
    spectrograms in decibels; it never changes, and lies here so that no checkpoint is without it.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    skipped: Array
    statistics: Array


def batch_shapes(spec: ModelSpec, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch: decibels or, with a front end on the device, samples."""
    audio = spec.config.audio
    shapes = {"frames": ((rows,), jnp.int32), "target": ((rows, spec.classes), jnp.float32)}
    if audio.frontend == "host":
        shapes |= {"mel": ((rows, audio.n_mels, spec.frames), jnp.float32)}
    else:
        shapes |= {"samples": ((rows, num_samples(audio, spec.frames)), jnp.int16), "scale": ((rows,), jnp.float32)}
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def _make_state(spec: ModelSpec, statistics: Array) -> TrainState:
    mel = jnp.zeros((1, spec.config.audio.n_mels, spec.frames))
    params = spec.model(train=False).init(jax.random.key(spec.config.train.seed), mel)["params"]
    opt_state = optimizer(spec.config.optim, spec.steps).init(params)
    ema = jax.tree.map(jnp.copy, params) if spec.config.optim.ema else {}
    return TrainState(jnp.int32(0), params, ema, opt_state, jnp.int32(0), statistics)


def abstract_state(spec: ModelSpec) -> TrainState:
    """Shapes and dtypes of the state, nothing allocated."""
    return jax.eval_shape(partial(_make_state, spec), jax.ShapeDtypeStruct((2,), jnp.float32))


def sharded_state(spec: ModelSpec, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing allocated."""
    shapes = abstract_state(spec)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def init_state(spec: ModelSpec, mesh: Mesh, mean: float = 0.0, std: float = 1.0) -> TrainState:
    """Initializes parameters and optimizer state in place on their devices.

    Args:
      spec: settings and sizes.
      mesh: where the state shall lie.
      mean: of the training spectrograms, decibels.
      std: their deviation, decibels.
    """
    shardings = state_shardings(abstract_state(spec), mesh)
    # Run once: on a CPU, LLVM's optimisation of all the draws takes ten seconds and saves none.
    hasty = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    make = jax.jit(partial(_make_state, spec), out_shardings=shardings, compiler_options=hasty)
    return make(jnp.array([mean, std], jnp.float32))


def train_step(spec: ModelSpec, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    """Augments, differentiates, updates.

    Every random draw follows from (seed, step), so a resumed run repeats what an uninterrupted one does. A step whose
    gradient is not finite changes nothing but its counters.

    Args:
      spec: static.
      state: before the step.
      batch: as `batch_shapes`.

    Returns:
      The state after it, and scalars: `loss`, `grad_norm`, `learning_rate` (of a step that is not skipped), `skipped`.
    """
    import optax  # as in optim.py

    batch, drop_key = draw(spec, state, batch)
    loss, grads = loss_and_gradient(spec, state.params, batch, drop_key)

    optim = spec.config.optim
    with jax.named_scope("optimizer"):
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        updates, opt_state = optimizer(optim, spec.steps).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on, the average forgets its start faster than `ema` alone would let it.
        decay = jnp.minimum(optim.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1 - decay) if optim.ema else {}
    moved = TrainState(state.step + 1, params, ema, opt_state, jnp.int32(0), state.statistics)
    kept = TrainState(state.step + 1, state.params, state.ema, state.opt_state, state.skipped + 1, state.statistics)
    after = jax.tree.map(partial(jnp.where, finite), moved, kept)
    rate = schedule(optim, spec.steps)(state.step)
    return after, {"loss": loss, "grad_norm": norm, "learning_rate": rate, "skipped": after.skipped}


def draw(spec: ModelSpec, state: TrainState, batch: Batch) -> tuple[Batch, Array]:
    """The normalized, augmented batch of a step, and the key for dropout."""
    config = spec.config
    batch = {**spectrograms(spec, batch), "target": batch["target"]}
    key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    augment_key, drop_key = jax.random.split(key)
    with jax.named_scope("augment"):
        return augment(augment_key, batch, config.augment, config.audio.floor_db, *state.statistics), drop_key


def loss_and_gradient(spec: ModelSpec, params: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
    """Mean loss over the batch and its gradient, in `grad_accum_steps` micro-batches."""
    config = spec.config

    # What is frozen has no gradient, and is the network that it was: nothing in it is dropped at random.
    frozen = config.optim.freeze == "backbone"

    def mean_loss(params: Any, part: Batch, key: Array) -> Array:
        model = spec.model(train=not frozen)
        if frozen:
            learns = rate_scales(config.optim, params)
            params = jax.tree.map(lambda x, rate: x if rate else jax.lax.stop_gradient(x), params, learns)
        logits, _ = model.apply({"params": params}, part["mel"], part["frames"], rngs={"dropout": key})
        loss = objective.loss(config.data.labels, spec.head_sizes)
        return loss(logits, part["target"], config.optim.label_smoothing).mean()

    count = config.train.grad_accum_steps
    if count == 1:
        return jax.value_and_grad(mean_loss)(params, batch, key)
    # Every count-th example goes together, so that each device keeps its share of every micro-batch.
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(mean_loss)(params, *part)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, (parts, jax.random.split(key, count)))
    return jax.tree.map(lambda x: x / count, total)


def eval_step(spec: ModelSpec, params: Any, statistics: Array, batch: Batch) -> Array:
    """Scores `(B, S)` of a batch (as `batch_shapes`, no target): probabilities, over each head's classes or of each."""
    sound = spectrograms(spec, batch)
    return predict(spec, params, sound["mel"], sound["frames"], *statistics)[0]


@cache
def jit_train_step(spec: ModelSpec, mesh: Mesh) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The train step over a mesh: the batch is shared along its data axis, the state is donated."""
    shardings = state_shardings(abstract_state(spec), mesh)
    return jax.jit(
        partial(train_step, spec),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


@cache
def jit_eval_step(spec: ModelSpec, mesh: Mesh) -> Callable[[Any, Array, Batch], Array]:
    """The evaluation step over a mesh; scores come back on every device."""
    data = batch_sharding(mesh)
    return jax.jit(
        partial(eval_step, spec),
        in_shardings=(state_shardings(abstract_state(spec).params, mesh), replicated(mesh), data),
        out_shardings=replicated(mesh),
    )
