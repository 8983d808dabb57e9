"""Atomic writes: a file gets its name when it is complete, and nothing is written through a link."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datar_jax.foreign_files import check_regular, open_regular
from datar_jax.locks import locked


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically and creates its folder."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def atomic_write(path: Path, content: bytes) -> None:
    """Writes a file so that its name never holds half of it, even after a power failure; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_writer(path: Path, keep: bool = False) -> Iterator[BinaryIO]:
    """A file that gets its name only when the block succeeds; as `atomic_writers`, for one file."""
    with atomic_writers(path, keep=keep) as (file,):
        yield file


@contextlib.contextmanager
def atomic_writers(*paths: Path, keep: bool = False) -> Iterator[list[BinaryIO]]:
    """Files of one result, which get their names only when the block succeeds; their folders must exist.

    Each writer has partial files of its own, so that two processes never write into one. The lock on them ends with
    the writer, however that ends: a partial file without a lock was left by one that was killed, and is removed. Of
    several files the old ones go before the first new one comes: files of two results never lie side by side. A link in
    place of a file is replaced, never written through.

    Args:
      paths: of the files.
      keep: if the block fails, what was written stays as `NAME.partial`, until the next success.

    Raises:
      OSError: they cannot be written, or a folder, a pipe or a device has one of the names.
    """
    for path in paths:
        if os.path.lexists(path) and not path.is_symlink():
            check_regular(path)
    partials = [_partial_name(path) for path in paths]
    replacing = False
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(locked(partial, fcntl.LOCK_EX)) for partial in partials]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            for path in paths if len(paths) > 1 else ():
                replacing = True
                path.unlink(missing_ok=True)
            for partial, path in zip(partials, paths):
                partial.replace(path)
                if keep:
                    _kept_name(path).unlink(missing_ok=True)
    except BaseException as error:
        for partial, path in zip(partials, paths):
            if isinstance(error, OSError) and error.filename == str(partial):
                error.filename = str(path)
            if not replacing:  # else they are complete, and some old ones are gone
                with contextlib.suppress(OSError):
                    partial.replace(_kept_name(path)) if keep and partial.stat().st_size else partial.unlink()
        raise


@contextlib.contextmanager
def output_writer(path: Path, keep: bool = False) -> Iterator[BinaryIO]:
    """As `atomic_writer`, for a file that a person names: a link is followed, a device or a pipe is written directly.

    Creates its folder.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(Path(os.path.realpath(path)), keep) as file:
        yield file


def write_output(path: Path, content: bytes) -> None:
    """As `atomic_write`, for a file that a person names: see `output_writer`."""
    with output_writer(path) as file:
        file.write(content)


def text_of(file: BinaryIO) -> io.TextIOWrapper:
    """The text of a binary file, in which file names that are not UTF-8 are kept byte for byte.

    Every write reaches the file at once; `detach` ends it and leaves the file open.
    """
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)


def _kept_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _partial_name(path: Path) -> Path:
    """A new hidden name beside a file; partial files that a killed writer left there are removed.

    The hash stands for the end of a long name: no name has more than 255 bytes.
    """
    prefix = f".{path.name}"
    if len(os.fsencode(prefix)) > 230:
        prefix = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}"
    for stale in path.parent.glob(f"{glob.escape(prefix)}.*.partial"):
        with contextlib.suppress(OSError), open_regular(stale) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()
    return path.with_name(f"{prefix}.{secrets.token_hex(4)}.partial")
