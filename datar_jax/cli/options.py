"""Option types, help format and output handling that the commands share."""

from __future__ import annotations

import _thread
import argparse
import codecs
import contextlib
import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from datar_jax.config import ConfigError
from datar_jax.config.base import did_you_mean
from datar_jax.escaping import printable


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        advice = did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        raise ConfigError(f"{message}; {advice}see {self.prog} --help")


def make_parser(name: str, usage: str, summary: str, example: str) -> argparse.ArgumentParser:
    """The parser of one command: summary, options and a working example."""
    return _Parser(
        prog=f"datar-jax {name}",
        usage=usage,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def print_line(text: str) -> None:
    """Prints one line to standard output, with control characters escaped."""
    print(printable(text))


def report(text: str, program: str = "datar-jax") -> None:
    """Prints one line to standard error, with control characters escaped."""
    print(printable(f"{program}: {text}"), file=sys.stderr)


def report_error(error: Exception, program: str = "datar-jax") -> None:
    """Prints an error to standard error: one line, or one for each argument of an error that lists something."""
    first, *more = error.args if len(error.args) > 1 and isinstance(error, ValueError) else (str(error),)
    report(f"error: {first}", program)
    for line in more:
        print(printable(line), file=sys.stderr)


def print_notes(notes: tuple[str, ...], sound: str = "") -> None:
    """Prints to standard error what is odd about a model, such as skipped checkpoints, or about a sound."""
    for note in notes:
        report(f"{sound}: note: {note}" if sound else note)


def escape_output() -> None:
    """Makes outputs that are not UTF-8 escape what they cannot write, where they would raise in the middle of a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not is_utf8(stream):
            stream.reconfigure(errors="backslashreplace")


def is_utf8(stream: io.TextIOWrapper) -> bool:
    """Whether a text stream is encoded in UTF-8."""
    return codecs.lookup(stream.encoding).name == "utf-8"


def discard_output() -> None:
    """Points standard output at nothing, so that the interpreter does not retry a failed write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences logs of orbax, tensorstore threads and XLA; the same errors are raised, and reported in one line.

    Ctrl-C in a callback of another library, which drops it, is raised again after the callback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA calls its own slow compilation an error, twice
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def unraisable(error: sys.UnraisableHookArgs) -> None:
        if isinstance(error.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, _thread.interrupt_main).start()  # this function would drop it too
        elif not any(part in str(error.exc_value) for part in ("Event loop is closed", "TensorStore")):
            show(error)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = show


def path(text: str) -> Path:
    """A path; expands ~, which a shell leaves alone after an equals sign."""
    return Path(text).expanduser()


def positive_int(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to below 1")


def probability(text: str) -> float:
    """A number above 0, at most 1."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give a number above 0, at most 1")


def seconds(text: str) -> float:
    """A time or length in seconds, 0 or more."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give seconds, 0 or more")


def duration(text: str) -> float:
    """A length in seconds, more than 0."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give seconds, more than 0")
