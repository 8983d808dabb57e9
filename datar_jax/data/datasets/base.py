"""Types of published data sets: official lists are read into segments. Reads no sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datar_jax.labels import Head


@dataclass(frozen=True)
class FilePatterns:
    """Common file names of a data set's clips: patterns without extension, best first.

    A pattern may hold `{id}` and `{recording}` of a segment, `{start}` and `{end}` in whole seconds (`{start:06d}`:
    six digits), `{start_ms}` and `{end_ms}` in milliseconds, and `{start_text}` and `{end_text}` in seconds with the
    decimals that they need (`30`, `0.5`); `30.0` and `30.000` in the name of a file are `30`.
    """

    cut: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of a list: a section of a recording and its labels.

    There are millions of them, so that what all rows of a list share (the naming, a set of labels) is one object, and
    names of files are made when they are asked for.
    """

    id: str  # unique in the data set; what an official scorer calls it, where there is one
    labels: tuple[int, ...]  # indices into the classes of all heads, one after another; ascending
    split: str | None  # train, validation or test; None where folds divide
    fold: int | None
    naming: FilePatterns
    recording: str = ""  # that it is a part of
    start: float = 0.0  # in the recording, seconds
    end: float = 0.0  # 0: to its end
    source: str = ""  # name of the list
    row: int = 0  # its line; 0 where no list names it

    @property
    def cut(self) -> tuple[str, ...]:
        """Names of a file that holds the segment, without extension, best first.

        A name may hold folders (`dog/1-100032-A`), which then count from anywhere below the audio folder.
        """
        return self._named(self.naming.cut)

    @property
    def whole(self) -> tuple[str, ...]:
        """Names of a file that holds the whole recording, or just the segment."""
        return self._named(self.naming.whole)

    def _named(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        values = {
            "id": self.id,
            "recording": self.recording,
            "start": int(self.start),
            "end": int(self.end),
            "start_ms": round(1000 * self.start),
            "end_ms": round(1000 * self.end),
            "start_text": f"{self.start:.3f}".rstrip("0").rstrip("."),
            "end_text": f"{self.end:.3f}".rstrip("0").rstrip("."),
        }
        return tuple(dict.fromkeys(pattern.format_map(values) for pattern in patterns))


@dataclass(frozen=True)
class Annotations:
    """The content of the official lists."""

    segments: tuple[Segment, ...]  # in the order of the lists
    heads: tuple[Head, ...]
    labels: Literal["single", "multi"]  # one class of each head, or any number of them
    lists: tuple[Path, ...]  # the files that were read
    notes: tuple[str, ...] = ()  # what was left out or looks odd, one line each


@dataclass(frozen=True)
class DatasetSpec:
    """A data set that `datar-jax prepare` knows."""

    title: str  # as its authors write it
    read: Callable[[Path], Annotations]  # the folder of its lists; raises ConfigError with file, row and column
    lists: str  # which files that folder must hold, and where they come from, one line
    terms: str  # under which licence the lists and the sounds are published, one line
    sample_rate: int = 16_000  # Hz; default of prepared shards
    downloads: tuple[Download, ...] = ()  # files that `--fetch` downloads; empty if there is no single source


@dataclass(frozen=True)
class Download:
    """A file to download, with its size and checksum."""

    url: str
    name: str  # of the file that it is kept as
    sha256: str  # of its bytes; empty where its publisher packs it anew for everybody
    size: int  # bytes, about, for a person who waits; 0 if unknown
