"""Answers SIGTERM and Ctrl-C: at once while there is nothing to save, otherwise after the step that runs.

Python calls a handler between two of its own instructions only, and a compiler keeps the main thread for minutes. So
signals are also read by a thread, from the pipe into which the interpreter writes their numbers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from datar_jax.progress import ERASE

RESTART, INTERRUPTED = os.EX_TEMPFAIL, 130  # exit statuses: start the same command again; ended by Ctrl-C

_holds = threading.Event()  # there are steps that no checkpoint has: a signal waits until they are saved


@contextmanager
def terminable(program: str) -> Iterator[None]:
    """Ends the process at SIGTERM (75) and Ctrl-C (130), also inside a compiler; `StopRequests.hold` defers that.

    Args:
      program: stands before the line on standard error.
    """
    once = threading.RLock()

    def end(number: int, _frame: object = None) -> None:
        what, status = ("terminated", RESTART) if number == signal.SIGTERM else ("stopped at once", INTERRUPTED)
        with once:  # the handler and the listener may both be here
            _write(f"{program}: {what}; the same command continues at the newest checkpoint\n")
            # An exception would be lost in a destructor or a callback, and jax may crash where it ends amid its work.
            os._exit(status)

    def listen() -> None:
        while number := os.read(signals, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not _holds.is_set():
                end(number[0])

    _holds.clear()
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for which, handler in before.items():
            signal.signal(which, handler)
        os.close(wakeup)
        listener.join()
        os.close(signals)


class StopRequests:
    """Collects SIGINT and SIGTERM inside a loop, so that a step is never cut in two.

    A second signal does what it did before.

    Attributes:
      numbers: of the signals that came.
    """

    def __init__(self, listens: bool) -> None:
        self.numbers: list[int] = []
        self._listens = listens

    def hold(self) -> None:
        """From here on a signal waits for the step: it would be lost. Until then it ends the process at once."""
        if self._listens:  # else nobody would answer it
            _holds.set()


@contextmanager
def stop_requests(listens: bool = True) -> Iterator[StopRequests]:
    """The requests that come within the block.

    Not in one of many processes, where jax listens for SIGTERM and informs all; Ctrl-C ends each where it stands.
    """
    asked = StopRequests(listens)

    def note(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if callable(handler) and (asked.numbers or not _holds.is_set()):
            handler(number, frame)
        if asked.numbers:
            raise KeyboardInterrupt
        asked.numbers.append(number)
        _write("stopping after this step; once more stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if listens}
    try:
        yield asked
    finally:
        if not asked.numbers:  # else the listener may still read the signal that was answered
            _holds.clear()
        for which, handler in before.items():
            signal.signal(which, handler)


def _write(line: str) -> None:
    """Writes a line past Python's own streams: `print` may be what was interrupted."""
    os.write(2, (ERASE * os.isatty(2) + line).encode())
