"""Looking at a loop from outside: what it waits for when it stands still, and a trace of some of its steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import jax


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
        self._running = False

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
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"{self._folder}: a profile of some steps; look at it with `tensorboard --logdir`")
