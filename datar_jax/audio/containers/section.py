"""Parts of a file that are read one after another, and a part as a file of its own."""

from __future__ import annotations

import io
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Bytes = mmap.mmap
TOLERANCE = 4096  # bytes by which a size in a header may be off: a header counted as sound, a last block


@dataclass(frozen=True)
class Section:
    """Bytes of a file that are one sound: `prefix`, then `first` to `last` (exclusive) of the file."""

    first: int
    last: int
    prefix: bytes = b""
    raw: dict[str, Any] = field(default_factory=dict)  # how soundfile opens samples without a header; empty: by header


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
        self._file, self._section, self._at = open(path, "rb"), section, 0  # noqa: SIM115 (closed in `close`)
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
