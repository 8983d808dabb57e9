"""What a published data set is to us: its official lists, read into segments. No sound is touched here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datar_jax.fetch import Download


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of a list: a stretch of sound and what is said of it.

    `cut` and `whole` are names of files as people keep them, without ending, best first; a name may hold folders
    (`dog/1-100032-A`), which then count from anywhere below the audio folder. A file under `cut` is the segment; one
    under `whole` is the recording that it is a part of, or the segment itself if it lasts no longer than that.
    """

    id: str  # unique in the data set; what an official scorer calls it, where there is one
    labels: tuple[int, ...]  # indices into the classes of all heads, one after another; ascending
    side: str | None  # train, validation or test; None where folds divide
    fold: int | None
    cut: tuple[str, ...]
    whole: tuple[str, ...] = ()
    start: float = 0.0  # in the recording, seconds
    end: float = 0.0  # 0: to its end
    source: str = ""  # name of the list
    row: int = 0  # its line


@dataclass(frozen=True, slots=True)
class Head:
    """A question that is answered of every clip."""

    name: str  # "class", or "verb" and "noun"
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """All that the official lists say."""

    segments: tuple[Segment, ...]  # in the order of the lists
    heads: tuple[Head, ...]
    labels: Literal["single", "multi"]  # one class of each head, or any number of them
    lists: tuple[Path, ...]  # the files that were read
    notes: tuple[str, ...] = ()  # what was left out or looks odd, one line each


@dataclass(frozen=True)
class Corpus:
    """A data set that can be prepared by name."""

    title: str  # as its authors write it
    read: Callable[[Path], Listing]  # the folder of its lists; raises ConfigError with file, row and column
    lists: str  # which files that folder must hold, and where they come from, one line
    terms: str  # under which licence the lists and the sounds are published, one line
    sample_rate: int = 16_000  # Hz that it is prepared at unless told otherwise
    downloads: tuple[Download, ...] = ()  # what `--fetch` gets; empty where there is no one place
