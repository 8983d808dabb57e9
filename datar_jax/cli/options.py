"""Options that several commands share, and how a command's page looks."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path


def make_parser(name: str, usage: str, summary: str, example: str) -> argparse.ArgumentParser:
    """The parser of one command: its page has what it does, its options, and an example that works."""
    return argparse.ArgumentParser(
        prog=f"python -m datar_jax {name}",
        usage=usage,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def say_notes(notes: tuple[str, ...]) -> None:
    """Tells a person what should be known of how a model was read."""
    for note in notes:
        print(f"datar_jax: {note}", file=sys.stderr)


def folder(text: str) -> Path:
    """A path; a shell does not expand ~ after an equals sign."""
    return Path(text).expanduser()


def whole(text: str) -> int:
    """A positive number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to below 1."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give 0 to below 1")


def moment(text: str) -> float:
    """A time in a recording."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give seconds, 0 or more")


def seconds(text: str) -> float:
    """A length of time."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < 1e6:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give seconds, more than 0")
