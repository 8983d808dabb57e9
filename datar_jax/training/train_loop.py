"""The training loop of one split: evaluate, save, draw, step, log, in this order.

The step just dispatched is never waited for: what is logged is the step before it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from datar_jax import metrics
from datar_jax.audio.recording import Batch
from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.data.loader import TrainBatches
from datar_jax.models.spec import Task
from datar_jax.training.eval_loop import Interrupted, TrainingError, score_clips
from datar_jax.training.input_pipeline import FoldData
from datar_jax.training.monitoring.metric_writer import MetricWriter
from datar_jax.training.monitoring.nan_debug import diagnose
from datar_jax.training.monitoring.profiler import ProfilerWindow
from datar_jax.training.monitoring.throughput import Throughput
from datar_jax.training.monitoring.watchdog import Watchdog
from datar_jax.training.sharding import batch_sharding
from datar_jax.training.train_step import TrainState, init_state, jit_train_step

FIRST = 30  # times longer may a first step last: it holds compilation
IN_FLIGHT = 2  # steps dispatched and not waited for; more would only queue batches in memory


class Stopped(Exception):
    """A signal asked the run to end; its checkpoint is written.

    Attributes:
      signal: its number.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.signal = number


@dataclass(frozen=True)
class Trained:
    """How a run went: its last state and what it took."""

    state: TrainState
    train_seconds: float
    clips_per_second: float


def fit(
    task: Task,
    mesh: Mesh,
    data: FoldData,
    checkpoints: CheckpointManager,
    report: MetricWriter,
    profile: Path | None = None,
    begin: Callable[[TrainState], TrainState] | None = None,
) -> Trained:
    """Trains to the last step, from the newest checkpoint if there is one.

    Args:
      task: what is trained.
      mesh: where.
      data: on what.
      checkpoints: where states are kept.
      report: what is told.
      profile: where a trace of steps shall go.
      begin: gives a fresh state the weights that it shall start from.

    What is written does not depend on where a run was stopped: rows of steps stand in the file before the checkpoint
    that follows them does, and no step is told only because a run was stopped there.

    Raises:
      Stopped: a signal came; the state is saved.
      TrainingError: the loss stays without a finite gradient.
      CheckpointError: there are checkpoints, and none can be read; or the last state cannot be stored.
    """
    config = task.config
    batches = data.train_batches(task)
    state = init_state(task, mesh, data.mean, data.std)
    clock = {"train_seconds": 0.0, "clips_per_second": 0.0}
    if checkpoints.latest_step() is not None:
        state, position, clock = checkpoints.restore(state)
        batches.set_state(position)
    elif begin:
        state = begin(state)
    first = step = int(state.step)
    began = time.monotonic() - clock["train_seconds"]
    report.begin(step, task.steps, checkpoints.has_score(step))
    if step:
        report.say("finished already; evaluating" if step >= task.steps else f"continues at step {step}")

    train = jit_train_step(task, mesh)
    sharding = batch_sharding(mesh)
    evaluate_steps = _every(task, len(data.split.train), config.train.evaluate_every_epochs)
    checkpoint_steps = _every(task, len(data.split.train), config.train.checkpoint_every_epochs)
    validate = len(data.split.validation) > 0
    speed = Throughput(task, mesh)
    trace = ProfilerWindow(profile, report.say)
    flying: deque[tuple[int, dict[str, jax.Array]]] = deque()
    saved = step

    def land(until: int) -> None:
        """Waits for steps until so many are under way, and tells what is due."""
        while len(flying) > until:
            at, numbers = flying.popleft()
            jax.block_until_ready(numbers)
            speed.count += 1
            clock["clips_per_second"] = speed.clips_per_second() or clock["clips_per_second"]
            if int(numbers["skipped"]) >= config.train.max_skipped:
                raise TrainingError(_why_not_finite(task, mesh, data, batches, state, at))
            _log(report, at, numbers, task, speed)

    try:
        with _signals() as asked, Watchdog(config.train.stall_seconds, report.say) as watch:
            while True:
                if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
                    asked.append(signal.SIGTERM)  # of whichever process; all of them come here at the same step
                last = step >= task.steps
                score = None
                due = validate and step > 0 and (last or step % evaluate_steps == 0)
                if last or due or step % checkpoint_steps == 0 or trace.before(step - first):
                    watch.stage("the devices", FIRST if step - first < 2 else 1)
                    land(0)
                if trace.before(step - first):
                    trace.turn(step - first)
                watch.stage("")  # scores and checkpoints may take their time
                if due and not checkpoints.has_score(step):
                    with suppress(Interrupted):  # then it is scored when the run continues
                        score = _validate(task, mesh, data, state, report, asked)
                stop = bool(asked)  # read once: a signal that comes from here on waits for the next step
                if stop:
                    land(0)
                if score is not None or (step > saved and (last or stop or step % checkpoint_steps == 0)):
                    if step > saved:
                        clock["train_seconds"] = time.monotonic() - began
                    report.sync()
                    checkpoints.save(state, batches.get_state(), clock, score)
                    saved = step
                if last or stop:
                    checkpoints.finish()
                if stop:
                    text = f"stopped at step {step} of {task.steps}; the same command continues there"
                    raise Stopped(text, asked[0])
                if last:
                    break

                drawn = time.monotonic()
                watch.stage(f"a batch, from {batches.source()}")
                batch = next(batches)
                speed.waited += time.monotonic() - drawn
                watch.stage("the devices", FIRST if step - first < 2 else 1)
                state, numbers = train(state, _place(batch, sharding))
                step += 1
                report.advance(step)

                flying.append((step, numbers))
                land(IN_FLIGHT)
    finally:
        trace.close()
        batches.close()
    return Trained(state, clock["train_seconds"], clock["clips_per_second"])


def _why_not_finite(task: Task, mesh: Mesh, data: FoldData, batches: TrainBatches, state: TrainState, at: int) -> str:
    """Why the step `at` has no finite gradient. All since the last good one have left the weights as they are."""
    batch = _place(batches.read(at - 1), batch_sharding(mesh))
    names = [data.dataset.where(int(clip)) for clip in batches.clips(at - 1)]
    why = diagnose(task, mesh, replace(state, step=jnp.int32(at - 1)), batch, names)
    return (
        f"no finite gradient for {task.config.train.max_skipped} steps in a row (train.max_skipped), up to step {at}: "
        f"{why}; clips of that batch: {', '.join(names)}"
    )


def _place(batch: Batch, sharding: NamedSharding) -> Any:
    """A global batch from what each process has read of it."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _every(task: Task, clips: int, epochs: int) -> int:
    """Steps of so many epochs; 0 epochs means only the last step."""
    return max(1, round(epochs * clips / task.config.train.batch_size)) if epochs else task.steps


def _log(report: MetricWriter, step: int, numbers: dict[str, jax.Array], task: Task, speed: Throughput) -> None:
    """The row of a step, if one is due; the last step always has one."""
    if step % task.config.train.log_every_steps and step < task.steps:
        return
    # A row of JSON holds finite numbers only.
    row = {name: value for name in numbers if np.isfinite(value := float(numbers[name]))}
    report.row({"step": step, **row, **speed.row()})


def _validate(
    task: Task, mesh: Mesh, data: FoldData, state: TrainState, report: MetricWriter, asked: Sequence[int]
) -> float:
    weights, indices = state.ema or state.params, data.split.validation
    score, target = score_clips(task, mesh, data.source, data.dataset, weights, state.statistics, indices, asked)
    labels, heads = task.config.data.labels, data.dataset.heads
    numbers = metrics.evaluate(score, target, labels, heads)
    report.row({"step": int(state.step), "split": "validation", **numbers})
    return numbers[metrics.primary_metric(labels, heads)]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is never cut in two; a second one does what it did before."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        asked.append(number)
        os.write(2, b"stopping after this step; once more stops at once\n")  # `print` may be what was interrupted

    # Of many processes, jax listens for SIGTERM, and tells all of them; Ctrl-C ends each where it stands.
    numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
