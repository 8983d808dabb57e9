"""Parts of a file that are read one after another, and a part as a file of its own."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datar_jax.foreign_files import open_regular

TOLERANCE = 4096  # bytes by which a size in a header may be off, at most: a header counted as sound, a last block
WINDOW = 1 << 16  # bytes read at a time around what is asked for
SMALLEST, BLOCK = 1 << 12, 1 << 20  # bytes read at a time in a search, which may end soon
OVERLAP = 64


class Bytes:
    """The bytes of an open file. Where another process cuts the file short meanwhile, slices end before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file.fileno()
        self._size = os.fstat(self._file).st_size
        self._first, self._held = 0, b""  # the part that was read last, and where it begins

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        first, last = part.start or 0, self._size if part.stop is None else min(part.stop, self._size)
        if first < self._first or last > self._first + len(self._held):
            if last <= first:
                return b""
            self._first, self._held = first, os.pread(self._file, max(WINDOW, last - first), first)
        return self._held[first - self._first : last - self._first]

    def find(self, what: bytes, first: int) -> int:
        """Where some bytes are next, as `bytes.find`."""
        while first < self._size and self[first : first + 1]:
            if (at := self._held.find(what, first - self._first)) >= 0:
                return self._first + at
            first = max(first + 1, self._first + len(self._held) - len(what) + 1)
        return -1

    def blocks(self, first: int, last: int | None = None) -> Iterator[tuple[int, int, bytes]]:
        """Yields the bytes from `first` to `last` in blocks that grow: where each begins, its size, and its bytes.

        The bytes reach `OVERLAP` into the next block.
        """
        last, most = self._size if last is None else min(last, self._size), SMALLEST
        while first < last:
            size = min(most, last - first)
            yield first, size, os.pread(self._file, size + OVERLAP, first)
            first, most = first + size, min(2 * most, BLOCK)

    def matches(self, pattern: bytes, first: int = 0, last: int | None = None) -> Iterator[int]:
        """Yields where an expression of at most `OVERLAP` bytes matches from `first` to `last` (exclusive)."""
        for begin, size, part in self.blocks(first, last):
            yield from (begin + found.start() for found in re.finditer(pattern, part) if found.start() < size)


@dataclass(frozen=True)
class Section:
    """Bytes of a file that are one sound: `prefix`, then `first` to `last` (exclusive) of the file."""

    first: int
    last: int
    prefix: bytes = b""


class Sections(NamedTuple):
    """The sections of a file in their order, and what was odd about it; no sections: libsndfile reads it right."""

    sections: tuple[Section, ...] = ()
    note: str = ""


def joined(starts: list[int], size: int) -> Sections:
    """Sections that begin at some bytes; none if there is one only."""
    if len(starts) < 2:
        return Sections()
    ends = [*starts[1:], size]
    return Sections(tuple(map(Section, starts, ends)), f"{len(starts)} files that were joined")


class SectionFile(io.RawIOBase):
    """A section of a file as a file of its own."""

    def __init__(self, path: str | Path, section: Section) -> None:
        self._file, self._section, self._at = open_regular(path), section, 0
        self._size = len(section.prefix) + section.last - section.first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        prefix = self._section.prefix
        if self._at < len(prefix):
            part = prefix[self._at : self._at + len(wanted)]
        else:
            self._file.seek(self._section.first + self._at - len(prefix))
            part = self._file.read(max(0, min(len(wanted), self._size - self._at)))
        wanted[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
