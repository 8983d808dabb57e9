"""Files and folders that are still incomplete: names, locks and errors."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 18  # bytes held at once


class FetchError(ValueError):
    """A file that cannot be fetched or unpacked; its text says what to do."""


def beside(path: Path, ending: str) -> Path:
    """A hidden name next to a file or a folder."""
    return path.with_name(f".{path.name}.{ending}")


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds an exclusive lock for a path, on file systems that have locks."""
    lock = beside(path, "lock")
    number = _locked(lock, path)
    try:
        yield
    finally:
        discard(lock)  # before it is released, so that the next holder sees that it was removed
        os.close(number)


def _locked(lock: Path, path: Path) -> int:
    while True:
        number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(number)
            raise FetchError(
                f"{path}: another process is writing it; wait for it, then run the same command"
            ) from error
        except OSError:  # a file system without locks
            return number
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(lock)):
                return number
        os.close(number)  # it was released and removed in between


def discard(*paths: Path) -> None:
    """Removes files that exist."""
    for path in paths:
        path.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> FetchError:
    """The error for a file that cannot be written."""
    return FetchError(f"{path}: cannot be written ({error.strerror or error}); make room, or choose another folder")


def plain(text: object) -> str:
    """Untrusted text as one safe line for a terminal."""
    return ascii(str(text))[1:-1][:200]
