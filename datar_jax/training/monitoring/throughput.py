"""Looking at a loop from outside: how fast it is, what it waits for when it stands still, a trace of some steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import jax
from jax.sharding import Mesh

from datar_jax.models.flops import macs_per_clip
from datar_jax.training.estimate.topology import peak_flops
from datar_jax.training.train_step import Task


class Watch:
    """Speaks when one stage of a loop lasts longer than so many seconds; then again at twice that, and so on.

    A first step holds compilation: a stage may be given a longer time.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds, self._say = seconds, say
        self._lock = threading.Lock()
        self._stage, self._since, self._limit = "", time.monotonic(), seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def stage(self, name: str, times: float = 1.0) -> None:
        """What the loop does from now on; empty: nothing that could hang. `times` as long as others may it last."""
        with self._lock:
            self._stage, self._since, self._limit = name, time.monotonic(), self._seconds * times

    def _look(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            with self._lock:
                waited = time.monotonic() - self._since
                line = ""
                if self._stage and waited >= self._limit:
                    line = f"no progress for {waited:.0f} s: waiting for {self._stage}"
                    self._limit *= 2
            if line:
                self._say(line)


class Trace:
    """A profile of a few steps, for TensorBoard or XProf; no folder: none.

    The first steps of a call hold compilation and filling, so they are left out.
    """

    STEPS = range(5, 10)  # of this call

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._running = self._done = False

    def before(self, step: int) -> bool:
        """To be asked before each step of this call, counted from 0; true where the steps under way must be awaited."""
        return self._folder is not None and step in (self.STEPS.start, self.STEPS.stop)

    def turn(self, step: int) -> None:
        """Begins or ends the trace, where `before` said so."""
        if step == self.STEPS.start:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        else:
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._running:
            self._running, self._done = False, True
            jax.profiler.stop_trace()
            self._say(f"{self._folder}: a profile of some steps; look at it with `tensorboard --logdir`")
        elif self._folder and not self._done:
            self._say(f"no profile: fewer than {self.STEPS.start + 1} steps were left to do")


@dataclass
class Speed:
    """Throughput from the end of the first step (which holds compilation) on, and waiting since the last row."""

    task: Task
    mesh: Mesh
    count: int = 0
    waited: float = 0.0
    started: float = 0.0
    logged: float = 0.0

    def clips_per_second(self) -> float:
        if self.count == 1:
            self.started = time.monotonic()
        seconds = time.monotonic() - self.started
        return (self.count - 1) * self.task.config.train.batch_size / seconds if self.count > 1 else 0.0

    def data_wait(self) -> float:
        """Share of the time since the last row that went by waiting for a batch."""
        now = time.monotonic()
        share = self.waited / max(now - self.logged, 1e-9) if self.logged else 0.0
        self.waited, self.logged = 0.0, now
        return min(share, 1.0)

    def row(self) -> dict[str, float]:
        """What a row of a step says of speed; what this machine does not tell is left out.

        `model_flop_utilisation` counts six operations per multiply-accumulate of the forward pass, none recomputed.
        """
        task, rate = self.task, self.clips_per_second()
        row = {
            "clips_per_second": rate,
            "steps_per_second": rate / task.config.train.batch_size,
            "data_wait": self.data_wait(),
        }
        statistics = [device.memory_stats() or {} for device in self.mesh.local_devices]
        if used := [each["peak_bytes_in_use"] for each in statistics if "peak_bytes_in_use" in each]:
            row["device_memory_gib"] = max(used) / 2**30
        if peak := peak_flops(self.mesh.local_devices[0].device_kind):
            macs = macs_per_clip(task.config.model, task.classes, task.config.audio.mels, task.frames)
            row["model_flop_utilisation"] = 6 * macs * rate / (peak * self.mesh.size)
        return row
