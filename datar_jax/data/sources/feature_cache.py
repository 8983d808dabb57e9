"""Cache of decoded clips: spectrograms, or samples for a front end on the device.

A cache is two files. `KEY.frames` holds all clips one after another, memory-mapped, as time-major float32 decibels,
the very numbers that a trained model is later given of a file; `KEY.samples` holds them as int16 samples. `KEY.json`,
written last, says where each clip lies and what file it was decoded from. KEY is a hash of the audio settings and of
each clip's name, section, size and time of change, so that a changed file or setting makes another cache; a cache of
other times is used if the files have the content that it was decoded from, as after a move. Both files are written
under a temporary name: what is interrupted leaves no cache. Neither is a pickle, nor read as one: whatever lies there
in their place is numbers or damage.

Shapes: N samples, F mel bins, T frames.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datar_jax.atomic_files import atomic_write, atomic_writer
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import columns, to_int16
from datar_jax.audio.log_mel import log_mel
from datar_jax.config import AudioConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.identity import FileContent, changed_files, checksum, file_content, look_at_files, with_checksums
from datar_jax.data.sources.base import ClipSource, DataError, WaveformSource
from datar_jax.foreign_files import check_regular, open_regular
from datar_jax.locks import exclusive
from datar_jax.wording import count

FORMAT = 6  # of the cache files and of decoding and the front end; a change makes old caches unused
KINDS = {"host": "frames", "device": "samples"}  # what a front end reads
PROBES = 4096  # clips whose checksum is verified when a cache is opened


_Decoded = tuple[np.ndarray, float, str]  # the stored array of a clip, its scale and what is odd about it


@dataclasses.dataclass(frozen=True)
class SpectrogramCache(ClipSource):
    """Spectrograms of all clips in one file."""

    path: str
    audio: AudioConfig
    frames: np.ndarray
    bad: tuple[tuple[str, str], ...]
    checksums: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    content: FileContent | None = dataclasses.field(default=None, repr=False, compare=False)
    _flat: _Flat = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_flat", _Flat(self.path, self.frames, np.dtype(np.float32), (self.audio.n_mels,)))

    def __reduce__(self) -> tuple[Any, ...]:
        return SpectrogramCache, (self.path, self.audio, self.frames, self.bad)

    def get(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """As `ClipSource.get`, float32, a view of the file."""
        return self._flat.rows(index, start, None if length is None else start + length)


@dataclasses.dataclass(frozen=True)
class WaveformCache(WaveformSource):
    """Samples of all clips in one file."""

    path: str
    audio: AudioConfig
    lengths: np.ndarray
    scales: np.ndarray  # float32 (clips,), what each clip's samples are multiplied by
    bad: tuple[tuple[str, str], ...]
    checksums: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    content: FileContent | None = dataclasses.field(default=None, repr=False, compare=False)
    frames: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)
    _flat: _Flat = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", columns(self.lengths, self.audio))
        object.__setattr__(self, "_flat", _Flat(self.path, self.lengths, np.dtype("<i2"), ()))

    def __reduce__(self) -> tuple[Any, ...]:
        return WaveformCache, (self.path, self.audio, self.lengths, self.scales, self.bad)

    def read(self, index: int, first: int, last: int) -> tuple[np.ndarray, float]:
        """As `WaveformSource.read`, a view of the file."""
        return self._flat.rows(index, first, last), float(self.scales[index])


class _Flat:
    """Concatenated arrays in a memory-mapped file."""

    def __init__(self, path: str, counts: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        shape = (int(self._offsets[-1]), *shape)
        store = np.memmap(path, dtype, "r", shape=shape) if shape[0] else np.zeros(shape, dtype)
        self._store = np.asarray(store)  # a plain array: memmap's own slicing is slow

    def rows(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of one of the arrays, as far as it reaches."""
        first, last = int(self._offsets[index]), int(self._offsets[index + 1])
        return self._store[first + start : last if stop is None else min(last, first + stop)]


def open_cache(
    dataset: Dataset,
    audio: AudioConfig,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
    log: Callable[[str], None] | None = None,
    content: FileContent | None = None,
) -> SpectrogramCache | WaveformCache:
    """Opens the cache of a data set; computes it if it is missing or damaged.

    Args:
      dataset: what to decode.
      audio: the front end.
      cache_dir: made when missing. Of several processes that need the same cache, one computes it and the others wait.
      progress: called in this thread with (clips done, clips) while computing.
      log: called with one line when there is a cache that cannot be used, before it is computed again, and with one
        on sounds that are used although they are odd.
      content: of the clips' files, as `look_at_files` returns it, where that is known.

    Raises:
      DataError: the cache cannot be written.
    """
    content = content or look_at_files(dataset)
    key = _key(dataset, audio, content)
    found = _find(Path(cache_dir), key, dataset, audio, content)
    if isinstance(found, ClipSource):
        return found
    try:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        with exclusive(Path(cache_dir, f".{key}.lock"), wait=log or (lambda _: None)):
            found = _find(Path(cache_dir), key, dataset, audio, content)  # perhaps written meanwhile
            if isinstance(found, ClipSource):
                return found
            if found and log:
                log(f"{cache_dir}: the feature cache is damaged ({found}) and is computed again")
            index_path, store_path = _paths(Path(cache_dir), key, content, audio)
            index_path.unlink(missing_ok=True)  # a kill between two writes leaves no index of another store
            with atomic_writer(store_path) as store:
                index = _compute(dataset, audio, content, store, progress)
            atomic_write(index_path, json.dumps(index).encode())
    except OSError as error:
        raise DataError(
            f"{cache_dir}: cannot write the feature cache ({error.strerror or error}); "
            "make room, or point data.cache at another folder"
        ) from error
    if index["notes"] and log:
        first, note = next(iter(index["notes"].items()))
        many = count(len(index["notes"]), "odd sound is used", "odd sounds are used")
        log(f"{many}; the first, {dataset.where(first)}: {note}")
    return _store(index, store_path, dataset, audio)


# The cache files


def _key(dataset: Dataset, audio: AudioConfig, content: FileContent) -> str:
    """Key of the caches of a data set: audio settings, and name, size and section of every clip, in order."""
    digest = hashlib.blake2b(repr((FORMAT, audio)).encode(), digest_size=16)
    for clip, size in zip(dataset.clips, content.sizes.tolist(), strict=True):
        digest.update(repr((clip.name, size, clip.start, clip.end)).encode())
    return digest.hexdigest()


def _paths(folder: Path, key: str, content: FileContent, audio: AudioConfig) -> tuple[Path, Path]:
    """The index and the store of a cache that is made of files of these times."""
    name = f"{key}-{zlib.crc32(content.times.tobytes()):08x}"
    return folder / f"{name}.json", folder / f"{name}.{KINDS[audio.frontend]}"


def _find(
    folder: Path, key: str, dataset: Dataset, audio: AudioConfig, content: FileContent
) -> SpectrogramCache | WaveformCache | str:
    """The cache that was computed from files of this content, or what is wrong with the one there is, or nothing."""
    wrong = ""
    likeliest = _paths(folder, key, content, audio)[0]
    for index_path in sorted(folder.glob(f"{key}-*.json"), key=lambda path: path != likeliest):
        found = _open(index_path, index_path.with_suffix(f".{KINDS[audio.frontend]}"), dataset, audio)
        if isinstance(found, str):
            wrong = found
            continue
        assert found.content
        content = with_checksums(dataset, content, found.content)
        if not changed_files(content, found.content).any():
            if (content.times != found.content.times).any():
                _note_times(index_path, content)
            return dataclasses.replace(found, content=content)
    return wrong


def _note_times(index_path: Path, content: FileContent) -> None:
    """Writes new times into an index, so that files which were moved are not read again at the next start."""
    with contextlib.suppress(OSError):  # a cache that only others may write
        with open_regular(index_path) as file:
            index = json.load(file) | {"times": content.times.tolist()}
        atomic_write(index_path, json.dumps(index).encode())


def _compute(
    dataset: Dataset,
    audio: AudioConfig,
    content: FileContent,
    store: BinaryIO,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Writes all clips in order; returns what the index file holds."""
    counts, scales, checksums, sums, bad, notes = [], [], [], [], {}, {}
    with contextlib.closing(_in_order(dataset, audio)) as results:
        for i, (total, result) in enumerate(results):
            sums.append(total)
            if isinstance(result, str):
                bad[i], result = result, (np.zeros((0, 1), np.int16), 1.0, "")
            rows, scale, note = result
            if note:
                notes[i] = note
            store.write(rows.data)
            counts.append(len(rows))
            scales.append(scale)
            checksums.append(zlib.crc32(rows.data))
            if progress:
                progress(i + 1, len(dataset))
    columns = {"counts": counts, "scales": scales, "checksums": checksums, "bad": bad, "notes": notes}
    return {"format": FORMAT, **columns, "sizes": content.sizes.tolist(), "times": content.times.tolist(), "sums": sums}


def _in_order(dataset: Dataset, audio: AudioConfig) -> Generator[tuple[int, _Decoded | str], None, None]:
    """Checksum of the file and `_content` of each clip, from threads that run only a little ahead of the reader."""
    workers = os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending: collections.deque[concurrent.futures.Future[tuple[int, _Decoded | str]]] = collections.deque()
    clips = iter(dataset.clips)
    file_sum = functools.cache(checksum)  # one file may hold many clips
    try:
        while True:
            for clip in itertools.islice(clips, 4 * workers - len(pending)):
                pending.append(pool.submit(lambda clip: (file_sum(clip.path), _content(clip, audio)), clip))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _content(clip: Clip, audio: AudioConfig) -> _Decoded | str:
    """The stored array of a clip, its scale and what is odd about it, or the reason why it is unusable."""
    notes: list[str] = []
    try:
        samples_N = decode(clip.path, audio.sample_rate, clip.start, clip.end, notes.append)
    except AudioError as error:
        return str(error)
    if audio.frontend == "device":
        return *to_int16(samples_N), "; ".join(notes)
    return np.ascontiguousarray(log_mel(samples_N, audio).T), 1.0, "; ".join(notes)


def _open(
    index_path: Path, store_path: Path, dataset: Dataset, audio: AudioConfig
) -> SpectrogramCache | WaveformCache | str:
    """The existing cache, or what is wrong with it; an empty text if there is none."""
    try:
        with open_regular(index_path) as file:
            index = json.load(file)
        bad = {int(i): str(reason) for i, reason in index["bad"].items()}
        counts, checksums = np.array(index["counts"], np.int64), list(index["checksums"])
        scales = np.array(index["scales"], np.float64)
        lengths = {len(column) for column in file_content(index)}
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"{index_path.name} is no index"
    if not (
        counts.shape == scales.shape == (len(dataset),)
        and len(checksums) == len(dataset)
        and lengths == {len(dataset)}
        and np.isfinite(scales).all()
        and (counts >= 0).all()
        and set(np.flatnonzero(counts == 0)) == set(bad)
    ):
        return f"{index_path.name} is the index of something else"
    try:
        size = check_regular(store_path).st_size
        if size != (expected := sum(counts.tolist()) * (4 * audio.n_mels if audio.frontend == "host" else 2)):
            return f"{store_path.name} has {size} bytes, not {expected}"
        store = _store(index, store_path, dataset, audio)
        for i in np.unique(np.linspace(0, len(counts) - 1, min(len(counts), PROBES)).astype(int)):
            rows = store.read(i, 0, int(counts[i]))[0] if isinstance(store, WaveformCache) else store.get(i)
            if zlib.crc32(rows.data) != checksums[i]:
                return f"{store_path.name} holds other numbers for {dataset.where(int(i))} than were written"
    except OSError as error:
        return f"{store_path.name}: {error.strerror}"
    return store


def _store(index: dict[str, Any], path: Path, dataset: Dataset, audio: AudioConfig) -> SpectrogramCache | WaveformCache:
    bad = tuple((dataset.where(int(i)), str(reason)) for i, reason in index["bad"].items())
    counts, checksums = np.array(index["counts"], np.int64), np.array(index["checksums"], np.uint32)
    files = file_content(index)
    if audio.frontend == "device":
        return WaveformCache(str(path), audio, counts, np.array(index["scales"], np.float32), bad, checksums, files)
    return SpectrogramCache(str(path), audio, counts, bad, checksums, files)
