"""Reports what a run waits for when it stalls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Logs when a stage of a loop takes longer than a limit; then again at twice the time, and so on.

    A first step holds compilation: a stage may be given a longer time.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds, self._say = seconds, say
        self._lock = threading.Lock()
        self._stage, self._since, self._limit = "", time.monotonic(), seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def stage(self, name: str, times: float = 1.0) -> None:
        """Sets the current stage (empty: none that could hang), which may last `times` the limit."""
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
