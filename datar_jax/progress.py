"""Progress of long work on standard error: a line redrawn on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from datar_jax.wording import count

ERASE = "\r\x1b[K"  # the line of a terminal
# Seconds without output after which a plain line comes where there is no terminal: first of a stage, and then.
FIRST_LINE, NEXT_LINE = 5.0, 30.0
FRAME, POLL = 0.125, 0.5  # seconds between two drawings on a terminal, and between two looks at the clock elsewhere


class Progress:
    """Shows what is being done, how far it is and how long it will still take, from a thread of its own.

    Other output goes through `aside`, so that it does not run into the line.
    """

    def __init__(self, shown: bool = True) -> None:
        """Args: shown: False shows nothing, for all processes but the first."""
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._shown, self._stream = shown, sys.stderr
        self._drawn = False
        self._wrote, self._announced = time.monotonic(), {""}  # the stages that had a plain line
        self.stage("")

    def __enter__(self) -> Progress:
        if self._shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._shown:
            self._thread.join()
        self._erase()

    def stage(self, what: str, unit: str = "", total: int = 0, done: float = 0.0) -> None:
        """Begins something: `what` is shown (empty: nothing), with `done` of `total` units if that is known."""
        with self._lock:
            self._what, self._unit, self._total = what, unit, total
            self._first = self._done = done
            self._note, self._since = "", time.monotonic()

    def count(self, done: float, total: int, note: str = "") -> None:
        """How much of the stage is done."""
        with self._lock:
            self._done, self._total, self._note = done, total, note

    def counter(self, what: str, unit: str, before: str = "") -> Callable[..., None]:
        """A stage as a callback with the arguments of `count`; `before` is shown until its first call."""
        self.stage(before or what)

        def count(done: float, total: int, note: str = "") -> None:
            if self._what != what or not self._total:
                self.stage(what, unit, total, done)
            self.count(done, total, note)

        return count

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the line away while other output is written."""
        with self._lock:
            self._erase()
            yield
            self._wrote = time.monotonic()

    def text(self, now: float) -> str:
        """The line: `scoring: 12 of 40 clips, 0:31 left`; without a number, the time since the stage began."""
        parts, spent, moved = [], now - self._since, self._done - self._first
        if self._total:
            parts.append(f"{int(self._done):,} of {count(self._total, self._unit)}")
        left = spent * (self._total - self._done) / moved if moved > 0 else None
        parts.append(_clock(spent) if left is None else f"{_clock(left)} left")
        return f"{self._what}: {', '.join(parts)}{f'  {self._note}' if self._note else ''}"

    def _show(self) -> None:
        terminal = self._stream.isatty()
        for sign in itertools.cycle("|/-\\"):
            if self._over.wait(FRAME if terminal else POLL):
                return
            with self._lock, contextlib.suppress(OSError, ValueError):  # a stream that was closed
                now = time.monotonic()
                if not self._what:
                    continue
                if terminal:
                    width = os.get_terminal_size(self._stream.fileno()).columns or 80
                    self._stream.write(f"{ERASE}{f'{sign} {self.text(now)}'[: width - 1]}")
                    self._drawn = True
                elif now - self._wrote >= (NEXT_LINE if self._what in self._announced else FIRST_LINE):
                    self._stream.write(f"{self.text(now)}\n")
                    self._wrote = now
                    self._announced.add(self._what)
                self._stream.flush()

    def _erase(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._drawn:
                self._stream.write(ERASE)
                self._stream.flush()
        self._drawn = False


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
