"""Files and folders that are still incomplete: names, locks and errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from datar_jax.locks import LockHeld, exclusive

BLOCK = 1 << 18  # bytes held at once
SHOWN = 200  # characters of a text of others in an error


class FetchError(ValueError):
    """A file that cannot be fetched or unpacked; its text says what to do."""


def beside(path: Path, ending: str) -> Path:
    """A hidden name next to a file or a folder."""
    return path.with_name(f".{path.name}.{ending}")


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Holds the lock on a path that is to be written.

    Raises:
      FetchError: another process is writing it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(beside(path, "lock")))
        except LockHeld as held:
            raise FetchError(f"{path}: {held.strerror}; wait for it, then run the same command") from held
        yield


def discard(*paths: Path) -> None:
    """Removes files that exist."""
    for path in paths:
        path.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> FetchError:
    """The error for a file that cannot be written."""
    return FetchError(f"{path}: cannot be written ({error.strerror or error}); make room, or choose another folder")
