"""Records a profiler trace of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax


class ProfilerWindow:
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
