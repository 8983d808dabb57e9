"""Embeddings of sounds, one per clip and one per frame of the model's last map, and files of them.

A clip's vector is what the model's head reads, averaged over views. A column's is the part of it that comes from
2^(stages + 1) frames of sound, at the sound's own times.

Shapes: C channels, T columns.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from datar_jax.atomic_files import atomic_writers, text_of
from datar_jax.escaping import CsvWriter
from datar_jax.inference.classifier import AudioClassifier
from datar_jax.inference.windows import FailedFile, Window, map_windows
from datar_jax.locks import locked_folder

Vectors = NDArray[np.float32]


class Embedded(NamedTuple):
    """The embeddings of one sound."""

    path: str
    seconds: float
    clip_C: Vectors
    times_Tx2: NDArray[np.float64]  # onset and offset of each column, seconds
    columns_TxC: Vectors
    notes: tuple[str, ...] = ()  # what is odd about the file


def embed_files(
    model: AudioClassifier,
    paths: Iterable[str | Path | FailedFile],
    batch_size: int = 32,
    watch: Callable[[float], None] | None = None,
) -> Iterator[Embedded | FailedFile]:
    """Yields the embeddings of files and of the sounds in folders, in order; `watch` as of `map_windows`.

    Raises:
      ModelError: the model is an exported program, which gives probabilities only.
    """
    wide = 2 ** (len(model.description.config.model.dims) + 1)  # frames of a column
    clips: list[Vectors] = []
    parts: list[Vectors] = []
    starts: list[int] = []
    for item in map_windows(model.embed, model, paths, batch_size=batch_size, watch=watch):
        if isinstance(item, FailedFile):
            clips, parts, starts = [], [], []
            yield item
            continue
        clips.append(item.output["clip"])
        for start, column_C in _new_columns(item, wide, starts[-1] + wide if starts else 0):
            starts.append(start)
            parts.append(column_C)
        if item.number == item.windows - 1:
            recording = item.recording
            onset_T = np.array(starts) * model.audio.hop_length / model.audio.sample_rate
            end = np.minimum(onset_T + wide * model.audio.hop_length / model.audio.sample_rate, recording.seconds)
            times = np.stack([onset_T, end], axis=1)
            yield Embedded(
                recording.path, recording.seconds, np.mean(clips, axis=0), times, np.stack(parts), recording.notes
            )
            clips, parts, starts = [], [], []


def _new_columns(window: Window, wide: int, end: int) -> Iterator[tuple[int, Vectors]]:
    """First frame and vector of the columns of a window that hold sound and that no earlier window reached into."""
    for j, column_C in enumerate(window.output["columns"]):
        start = window.start + j * wide
        if j * wide < window.frames and start >= end:
            yield start, column_C


class Writer(Protocol):
    """Writes the embeddings of one sound after another."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its files."""

    def write(self, sound: Embedded) -> None:
        """Adds a sound."""

    def close(self) -> None:
        """Completes the files, which stay open."""


@contextlib.contextmanager
def embedding_files(kind: type[NumpyFiles] | type[ParquetFiles], folder: Path) -> Iterator[Writer]:
    """The writer of a folder's files, which get their names together when the block succeeds.

    Those of a block that failed stay as `NAME.partial`, with the sounds that were embedded.

    Raises:
      OSError: the folder cannot be written, or another process writes there (`LockHeld`).
    """
    with (
        locked_folder(folder),
        atomic_writers(*(folder / name for name in kind.names), keep=True) as files,
        contextlib.closing(kind(*files)) as writer,
    ):
        yield writer


class NumpyFiles:
    """`clips.npy` (N, C) and `columns.npy` (M, C), float32, and what their rows are of: `clips.csv`, `columns.csv`."""

    names = ("clips.npy", "columns.npy", "clips.csv", "columns.csv")

    def __init__(self, *files: BinaryIO) -> None:
        self._clips, self._columns = map(_Rows, files[:2])
        self._texts = [text_of(file) for file in files[2:]]
        self._of_clips = CsvWriter(self._texts[0], ["path", "seconds"])
        self._of_columns = CsvWriter(self._texts[1], ["path", "onset", "offset"])

    def write(self, sound: Embedded) -> None:
        """As `Writer.write`."""
        self._clips.add(sound.clip_C[None])
        self._columns.add(sound.columns_TxC)
        self._of_clips.row([sound.path, sound.seconds])
        for times in sound.times_Tx2.tolist():
            self._of_columns.row([sound.path, *times])

    def close(self) -> None:
        """As `Writer.close`."""
        self._clips.close()
        self._columns.close()
        for text in self._texts:
            text.detach()


class _Rows:
    """A .npy file that grows row by row: its head is written anew at the end, in the room that numpy leaves for it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows, self._width = 0, 0

    def add(self, rows: Vectors) -> None:
        """Adds rows, float32 (n, C)."""
        if not self._width:
            self._width = rows.shape[1]
            self._head()
        self._file.write(np.ascontiguousarray(rows, "<f4").data)
        self._rows += len(rows)

    def close(self) -> None:
        """Says in the head how many rows there are."""
        self._file.seek(0)
        self._head()

    def _head(self) -> None:
        shape = (self._rows, self._width)
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, head)


class ParquetFiles:
    """`clips.parquet` (path, seconds, embedding) and `columns.parquet` (path, onset, offset, embedding)."""

    names = ("clips.parquet", "columns.parquet")

    def __init__(self, *files: BinaryIO) -> None:
        self._files = dict(zip(("clips", "columns"), files))
        self._open: dict[str, Any] = {}

    def write(self, sound: Embedded) -> None:
        """As `Writer.write`."""
        path = os.fsencode(sound.path).decode(errors="backslashreplace")  # parquet has no other texts than UTF-8
        self._add("clips", {"path": [path], "seconds": [sound.seconds]}, sound.clip_C[None])
        times = {"onset": sound.times_Tx2[:, 0], "offset": sound.times_Tx2[:, 1]}
        self._add("columns", {"path": [path] * len(sound.columns_TxC), **times}, sound.columns_TxC)

    def close(self) -> None:
        """As `Writer.close`."""
        for file in self._open.values():
            file.close()

    def _add(self, name: str, fields: dict[str, Any], vectors: Vectors) -> None:
        import pyarrow
        import pyarrow.parquet

        flat = pyarrow.array(np.ascontiguousarray(vectors, np.float32).ravel())
        embedding = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pyarrow.table({**fields, "embedding": embedding})
        if name not in self._open:
            self._open[name] = pyarrow.parquet.ParquetWriter(self._files[name], table.schema)
        self._open[name].write_table(table)
