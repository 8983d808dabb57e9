"""Runs a function over the windows of sound files, in batches."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from datar_jax.audio.errors import AudioError
from datar_jax.audio.recording import Batch, InputKind, Recording, Row, measure, plan_windows
from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.config import AudioConfig
from datar_jax.filesystem import walk_folders
from datar_jax.wording import count

Output = Any  # of a function of batches: an array, or a dict of arrays, whose first axis is the batch


MAX_PENDING_FAILURES = 1024  # failed files buffered before a flush


class Reader(Protocol):
    """What a model has to declare to be fed with windows."""

    @property
    def audio(self) -> AudioConfig:
        """The front end."""

    @property
    def frames(self) -> int:
        """Columns of a window."""

    @property
    def input_kind(self) -> InputKind:
        """What a batch holds."""


@dataclasses.dataclass(frozen=True)
class FailedFile:
    """A file or folder that cannot be used."""

    path: str
    reason: str  # short, without the path


class Window(NamedTuple):
    """One window of a recording, and its outputs."""

    recording: Recording
    number: int  # 0 and up
    windows: int  # of the recording
    start: int  # first column
    frames: int  # columns that are sound; the rest is padding
    is_view: bool  # whether evaluation has it too: scores of a clip are the mean over views
    output: Output


def map_windows(
    function: Callable[[Batch], Output],
    model: Reader,
    paths: Iterable[str | Path | FailedFile],
    overlap: float = 0.0,
    batch_size: int = 32,
    watch: Callable[[float], None] | None = None,
) -> Iterator[Window | FailedFile]:
    """Applies a function of batches, such as `model.score`, to all windows of files and folders.

    Every batch has the same number of rows, the last one filled up with copies, so that one compiled program serves;
    where there is but one, it has the next power of two.

    Args:
      function: of a batch as `ClipSource.batch` makes it (or as `Recording.windows`, where the model reads waveforms).
      model: how the function is to be fed.
      paths: files, and folders whose sounds are taken in order, as by `iter_audio_files`.
      overlap: as `plan_windows`; 0 gives the views that a run is evaluated on.
      batch_size: rows of a batch.
      watch: called with the number of files that are done, the present one by the share of its windows.

    Yields:
      All windows of a file in order, file after file; or the file that failed, even after windows of it have come.

    Raises:
      ValueError: an overlap or a batch size that cannot be.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    plan_windows(1, 1, overlap)  # a wrong overlap is reported before anything is read
    files = 0
    for items, batch in _ahead(_batches(_rows(model, paths, overlap), batch_size)):
        output = function(batch) if batch else None
        rows = itertools.count()
        for item in items:
            share = 1.0 if isinstance(item, FailedFile) else (item.number + 1) / item.windows
            files += share == 1
            if watch:
                watch(files + share % 1)
            yield item if isinstance(item, FailedFile) else item._replace(output=_row(output, next(rows)))


def iter_audio_files(paths: Iterable[str | Path | FailedFile]) -> Iterator[str | FailedFile]:
    """Sound files: given files with any name, and files in folders, at any depth, with a sound file's extension.

    What is hidden is left out, folders are entered once, and each comes in the order of its names. What it yields can
    be given to it again.
    """
    for path in paths:
        if isinstance(path, FailedFile) or not os.path.isdir(path):
            yield path if isinstance(path, FailedFile) else str(path)
            continue
        wrong: list[OSError] = []
        found = others = 0
        for folder, _, files in walk_folders(Path(path), wrong.append):
            sounds = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
            found, others = found + len(sounds), others + len(files) - len(sounds)
            yield from (str(folder / name) for name in sounds)
        for error in wrong:
            yield FailedFile(str(error.filename), f"cannot be read ({error.strerror})")
        if not found and not wrong:
            yield FailedFile(
                str(path), f"holds no sound ({count(others, 'file is none', 'files are none')}, by their ending)"
            )


def _rows(
    model: Reader, paths: Iterable[str | Path | FailedFile], overlap: float
) -> Iterator[tuple[Window | FailedFile, Row]]:
    """Yields all windows with their rows of a batch; a failed file has none."""
    for path in iter_audio_files(paths):
        if isinstance(path, FailedFile):
            yield path, {}
            continue
        try:
            recording = measure(path, model.audio)
            starts_W, views_W = plan_windows(recording.frames, model.frames, overlap)
            rows = recording.windows(starts_W, model.frames, model.input_kind)
            for i, (start, is_view, row) in enumerate(zip(starts_W.tolist(), views_W.tolist(), rows)):
                frames = min(model.frames, recording.frames - start)
                yield Window(recording, i, len(starts_W), start, frames, is_view, None), row
        except AudioError as error:
            yield FailedFile(path, str(error)), {}


def _batches(
    rows: Iterable[tuple[Window | FailedFile, Row]], batch_size: int
) -> Iterator[tuple[list[Window | FailedFile], Batch]]:
    """Yields windows with their batch; the batch is empty if all of its files failed."""
    items: list[Window | FailedFile] = []
    waiting: list[Row] = []
    alone = True
    for item, row in rows:
        items.append(item)
        if row:
            waiting.append(row)
        if len(waiting) == batch_size or len(items) == batch_size + MAX_PENDING_FAILURES or not waiting:
            alone = alone and not waiting
            yield items, _stacked(waiting, batch_size)
            items, waiting = [], []
    if items:
        yield items, _stacked(waiting, min(batch_size, 1 << (len(waiting) - 1).bit_length()) if alone else batch_size)


def _stacked(rows: list[Row], batch_size: int) -> Batch:
    filled = rows + rows[:1] * (batch_size - len(rows))
    return {name: np.stack([row[name] for row in filled]) for name in (rows[0] if rows else ())}


def _row(output: Output, row: int) -> Output:
    if isinstance(output, dict):
        return {name: np.asarray(values)[row] for name, values in output.items()}
    return np.asarray(output)[row]


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Prefetches each item in another thread while the previous one is used."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1, "read") as pool:
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield item
