"""The training loop of one split: evaluate, save, draw, step, log, in this order.

The step just dispatched is never waited for: what is logged is the step before it.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from datar_jax import metrics
from datar_jax.audio.recording import Batch
from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.compilation_cache import compiling
from datar_jax.data.loader import TrainBatches
from datar_jax.models.spec import ModelSpec
from datar_jax.training.eval_loop import Interrupted, TrainingError, score_clips
from datar_jax.training.input_pipeline import FoldPipeline
from datar_jax.training.monitoring.metric_writer import MetricWriter
from datar_jax.training.monitoring.nan_debug import diagnose
from datar_jax.training.monitoring.profiler import ProfilerWindow
from datar_jax.training.monitoring.throughput import Throughput
from datar_jax.training.monitoring.watchdog import Watchdog
from datar_jax.training.sharding import batch_sharding
from datar_jax.training.termination import stop_requests
from datar_jax.training.train_step import TrainState, init_state, jit_train_step, sharded_state

FIRST_STEP_PATIENCE = 30  # a first step may last so many times longer: it includes compilation
MAX_IN_FLIGHT = 2  # steps dispatched and not waited for; more would only queue batches in memory


class Stopped(Exception):
    """A signal asked the run to end; its checkpoint is written.

    Attributes:
      signal: its number.
    """

    def __init__(self, step: int, steps: int, number: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}; the same command continues there")
        self.signal = number


@dataclass(frozen=True)
class Trained:
    """The last state of a run, and its time and speed."""

    state: TrainState
    train_seconds: float
    clips_per_second: float


def fit(
    spec: ModelSpec,
    mesh: Mesh,
    pipeline: FoldPipeline,
    checkpoints: CheckpointManager,
    report: MetricWriter,
    profile: Path | None = None,
    initialize: Callable[[TrainState], TrainState] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains to the last step, from the newest checkpoint if there is one.

    Args:
      spec: settings and sizes.
      mesh: the devices.
      pipeline: the data.
      checkpoints: checkpoints of the run.
      report: where metrics and messages go.
      profile: folder for a profiler trace of a few steps.
      initialize: gives a new state its initial weights, for fine-tuning.
      begin: called before anything is written, when the state is there: nothing is refused from here on.

    What is written does not depend on where a run was stopped: rows of metrics are on disk before the checkpoint that
    follows them, and no step is logged only because a run was stopped there.

    Raises:
      Stopped: a signal came; the state is saved.
      TrainingError: the loss stays without a finite gradient.
      CheckpointError: there are checkpoints, and none can be read; or the last state cannot be stored.
    """
    batches = pipeline.train_batches(spec)
    state, clock = _initial_state(spec, mesh, pipeline, batches, checkpoints, initialize)
    begin()
    first = step = saved = int(state.step)
    began = time.monotonic() - clock["train_seconds"]
    report.begin(step, spec.steps, checkpoints.has_score(step), compiling(spec.config.model.spec, train=True))
    _say_where(report, step, spec.steps)
    train = jit_train_step(spec, mesh)
    schedule = _Schedule.of(spec, pipeline)
    in_flight = _StepsInFlight(spec, mesh, pipeline, batches, report, clock)
    profiler = ProfilerWindow(profile, report.say)
    try:
        alone = jax.process_count() == 1
        with stop_requests(alone) as signals, Watchdog(spec.config.train.stall_seconds, report.say) as watchdog:
            while True:
                if not alone and multihost_utils.reached_preemption_sync_point(step):
                    signals.numbers.append(signal.SIGTERM)  # of whichever process, at the same step on all
                last, due, score = step >= spec.steps, schedule.evaluates(step), None
                if last or due or schedule.saves(step) or profiler.before(step - first):
                    watchdog.stage("the devices", FIRST_STEP_PATIENCE if step - first < 2 else 1)
                    in_flight.wait(0, state)
                profiler.turn(step - first)
                watchdog.stage("")  # evaluation and checkpoints may take their time
                if due and not checkpoints.has_score(step):
                    with suppress(Interrupted):  # then it is evaluated when the run continues
                        score = _validate(spec, mesh, pipeline, state, report, signals.numbers)
                stop = bool(signals.numbers)  # read once: a signal that comes from here on waits for the next step
                if stop:
                    in_flight.wait(0, state)
                if score is not None or (step > saved and (stop or schedule.saves(step))):
                    clock["train_seconds"] = time.monotonic() - began if step > saved else clock["train_seconds"]
                    report.sync()
                    checkpoints.save(state, batches.get_state(), clock, score)
                    saved = step
                if last or stop:
                    checkpoints.finish()
                if stop:
                    raise Stopped(step, spec.steps, signals.numbers[0])
                if last:
                    break
                batch = in_flight.next_batch(watchdog)
                watchdog.stage("the devices", FIRST_STEP_PATIENCE if step - first < 2 else 1)
                state, numbers = train(state, _place(batch, batch_sharding(mesh)))
                signals.hold()
                step += 1
                in_flight.add(step, numbers, state)
    finally:
        profiler.close()
        batches.close()
    return Trained(state, clock["train_seconds"], clock["clips_per_second"])


def _say_where(report: MetricWriter, step: int, steps: int) -> None:
    """Logs where a run that has been started before goes on."""
    if step:
        report.say("finished already; evaluating" if step >= steps else f"continues at step {step}")


@dataclass(frozen=True)
class _Schedule:
    """At which steps a run evaluates its validation split and saves; both at the last step."""

    steps: int
    evaluate_every: int
    checkpoint_every: int
    validates: bool

    @classmethod
    def of(cls, spec: ModelSpec, pipeline: FoldPipeline) -> _Schedule:
        """The schedule that `train.evaluate_every_epochs` and `train.checkpoint_every_epochs` ask for."""
        train, clips = spec.config.train, len(pipeline.split.train)

        def every(epochs: int) -> int:
            return max(1, round(epochs * clips / train.batch_size)) if epochs else spec.steps

        evaluate, checkpoint = every(train.evaluate_every_epochs), every(train.checkpoint_every_epochs)
        return cls(spec.steps, evaluate, checkpoint, len(pipeline.split.validation) > 0)

    def evaluates(self, step: int) -> bool:
        """Whether the validation split is evaluated after this step."""
        return self.validates and step > 0 and (step >= self.steps or step % self.evaluate_every == 0)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved after this step."""
        return step >= self.steps or step % self.checkpoint_every == 0


def _initial_state(
    spec: ModelSpec,
    mesh: Mesh,
    pipeline: FoldPipeline,
    batches: TrainBatches,
    checkpoints: CheckpointManager,
    initialize: Callable[[TrainState], TrainState] | None,
) -> tuple[TrainState, dict[str, float]]:
    """The state and clock of the newest checkpoint, with `batches` at its position; or a new state."""
    if checkpoints.latest_step() is not None:
        state, position, clock = checkpoints.restore(sharded_state(spec, mesh))
        batches.set_state(position)
        return state, clock
    state = init_state(spec, mesh, pipeline.mean, pipeline.std)
    return initialize(state) if initialize else state, {"train_seconds": 0.0, "clips_per_second": 0.0}


class _StepsInFlight:
    """Steps that are dispatched but not finished; logs each as it finishes."""

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Mesh,
        pipeline: FoldPipeline,
        batches: TrainBatches,
        report: MetricWriter,
        clock: dict[str, float],
    ) -> None:
        self._spec, self._mesh, self._pipeline, self._batches = spec, mesh, pipeline, batches
        self._report, self._clock = report, clock
        self._throughput = Throughput(spec, mesh)
        self._steps: deque[tuple[int, dict[str, jax.Array]]] = deque()

    def next_batch(self, watchdog: Watchdog) -> Batch:
        """The next batch; the time that it took counts as waiting for data."""
        start = time.monotonic()
        watchdog.stage(f"a batch, from {self._batches.source()}")
        batch = next(self._batches)
        self._throughput.waited += time.monotonic() - start
        return batch

    def add(self, step: int, numbers: dict[str, jax.Array], state: TrainState) -> None:
        """Adds a step that was just dispatched, and its metrics; waits for those that are too many in flight."""
        self._report.advance(step)
        self._steps.append((step, numbers))
        self.wait(MAX_IN_FLIGHT, state)

    def wait(self, until: int, state: TrainState) -> None:
        """Waits until so many steps are left in flight.

        Raises:
          TrainingError: too many steps in a row had no finite gradient.
        """
        while len(self._steps) > until:
            step, numbers = self._steps.popleft()
            jax.block_until_ready(numbers)
            self._throughput.count += 1
            self._clock["clips_per_second"] = self._throughput.clips_per_second() or self._clock["clips_per_second"]
            if int(numbers["skipped"]) >= self._spec.config.train.max_skipped:
                raise TrainingError(_why_not_finite(self._spec, self._mesh, self._pipeline, self._batches, state, step))
            _log(self._report, step, numbers, self._spec, self._throughput)


def _why_not_finite(
    spec: ModelSpec, mesh: Mesh, pipeline: FoldPipeline, batches: TrainBatches, state: TrainState, at: int
) -> str:
    """Why the step `at` has no finite gradient. All since the last good one have left the weights as they are."""
    batch = _place(batches.read(at - 1), batch_sharding(mesh))
    names = [pipeline.dataset.where(int(clip)) for clip in batches.clips(at - 1)]
    why = diagnose(spec, mesh, replace(state, step=jnp.int32(at - 1)), batch, names)
    return (
        f"no finite gradient for {spec.config.train.max_skipped} steps in a row (train.max_skipped), up to step {at}: "
        f"{why}; clips of that batch: {', '.join(names)}"
    )


def _place(batch: Batch, sharding: NamedSharding) -> Any:
    """A global batch from what each process has read of it."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _log(report: MetricWriter, step: int, numbers: dict[str, jax.Array], spec: ModelSpec, speed: Throughput) -> None:
    """The row of a step, if one is due; the last step always has one."""
    if step % spec.config.train.log_every_steps and step < spec.steps:
        return
    # A row of JSON holds finite numbers only.
    row = {name: value for name in numbers if np.isfinite(value := float(numbers[name]))}
    report.row({"step": step, **row, **speed.row()})


def _validate(
    spec: ModelSpec, mesh: Mesh, pipeline: FoldPipeline, state: TrainState, report: MetricWriter, asked: Sequence[int]
) -> float:
    weights, indices = state.ema or state.params, pipeline.split.validation
    progress = report.scoring("validation", compiling(spec.config.model.spec))
    score, target = score_clips(
        spec, mesh, pipeline.source, pipeline.dataset, weights, state.statistics, indices, asked, progress
    )
    labels, heads = spec.config.data.labels, pipeline.dataset.heads
    numbers = metrics.evaluate(score, target, labels, heads)
    report.row({"step": int(state.step), "split": "validation", **numbers})
    return numbers[metrics.primary_metric(labels, heads)] or 0.0  # undefined where no clip has a label
