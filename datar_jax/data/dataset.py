"""A data set in memory: clips, their labels, folds and splits."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable

from datar_jax.data.prepared import DatasetInfo
from datar_jax.escaping import printable
from datar_jax.labels import Head

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One labelled sound: a file or a part of one."""

    path: str  # as it is opened
    name: str  # relative to the data's root, with forward slashes: the same on every machine
    labels: tuple[int, ...]  # class indices, ascending
    row: int = 0  # line of the list that names it; 0 when no list does
    fold: int | None = None
    split: str | None = None  # one of SPLITS
    start: float = 0.0  # seconds
    end: float = 0.0  # seconds; 0 means the end of the file
    group: str = ""  # clips of one group stay in one split; empty: the clip is a group by itself
    record: int = 0  # in a shard: the first one of this clip
    samples: int = 0  # number of samples, for clips in shards; 0 if unknown before decoding
    crc32: int | None = None  # of its samples, for clips in shards; None if they were written without


@dataclasses.dataclass(frozen=True)
class Dataset:
    """All clips of a data set in a fixed order."""

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]  # class names by index
    folds: tuple[int, ...] = ()  # the folds there are, ascending; empty without folds
    source: str = ""  # the folder or list that was read
    notes: tuple[str, ...] = ()  # what was left out or looks odd, one line each
    heads: tuple[Head, ...] = ()  # their classes follow one another in `labels`; empty: one head over all of them
    card: DatasetInfo | None = None  # of prepared data

    def __len__(self) -> int:
        return len(self.clips)

    def where(self, index: int) -> str:
        """The name of a clip for messages, on one line, with its row if it comes from a list."""
        clip = self.clips[index]
        name = printable(clip.name)
        return f"{name} (row {clip.row} of {self.source})" if clip.row else name


def similar_labels_note(labels: Iterable[str]) -> tuple[str, ...]:
    """One line on the first two class names that look alike; nothing if none do."""
    known: dict[str, str] = {}
    for label in labels:
        plain = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
        if (other := known.setdefault(plain, label)) != label:
            names = f"{printable(other)!r} and {printable(label)!r}"
            return (f"classes {names} differ only in case, spaces or width: give one name if they are one",)
    return ()
