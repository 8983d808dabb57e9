"""Records a profiler trace of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax


class ProfilerWindow:
    """A trace of a few steps for TensorBoard or XProf; without a folder it does nothing.

    The first steps of a call are left out: they include compilation and the filling of queues.
    """

    STEPS = range(5, 10)  # of this call

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._running = self._done = False

    def before(self, step: int) -> bool:
        """Whether the trace starts or stops before this step of the call; steps in flight must finish first."""
        return self._folder is not None and step in (self.STEPS.start, self.STEPS.stop)

    def turn(self, step: int) -> None:
        """Starts or stops the trace if this is the step for it."""
        if not self.before(step):
            return
        if step == self.STEPS.start:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        else:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            self._running, self._done = False, True
            jax.profiler.stop_trace()
            self._say(f"{self._folder}: a profile of some steps; view it with `tensorboard --logdir`")
        elif self._folder and not self._done:
            self._say(f"no profile: fewer than {self.STEPS.start + 1} steps were left to do")
