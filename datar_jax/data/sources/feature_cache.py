"""Cache of decoded clips: spectrograms, or samples for a front end on the device.

A cache is two files. `KEY.frames` holds all clips one after another, memory-mapped, as time-major float32 decibels, the
very numbers that a trained model is later given of a file; `KEY.samples` holds them as int16 samples. `KEY.json`,
written last, says where each clip lies. KEY is a hash of the audio settings and of each file's path, size and time of
change, so that a changed file or setting makes another cache. Both files are written under a temporary name: what is
interrupted leaves no cache. Neither is a pickle, nor read as one: whatever lies there in their place is numbers or
damage.

Shapes: N samples, F mel bins, T frames.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import columns, to_int16
from datar_jax.audio.log_mel import log_mel
from datar_jax.config import AudioConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.sources.base import ClipSource, DataError, WaveformSource
from datar_jax.filesystem import atomic_writer
from datar_jax.foreign_files import check_regular, open_regular
from datar_jax.wording import count

FORMAT = 5  # of the cache files and of decoding and the front end; a change makes old caches unused
KINDS = {"host": "frames", "device": "samples"}  # what a front end reads
PROBES = 4096  # clips whose checksum is verified when a cache is opened


@dataclasses.dataclass(frozen=True)
class SpectrogramCache(ClipSource):
    """Spectrograms of all clips in one file."""

    path: str
    audio: AudioConfig
    frames: np.ndarray
    bad: tuple[tuple[str, str], ...]
    checksums: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
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
) -> SpectrogramCache | WaveformCache:
    """Opens the cache of a data set; computes it if it is missing or damaged.

    Args:
      dataset: what to decode.
      audio: the front end.
      cache_dir: made when missing. Several processes may prepare the same cache there at once.
      progress: called in this thread with (clips done, clips) while computing.
      log: called with one line when there is a cache that cannot be used, before it is computed again, and with one
        on sounds that are used although they are odd.

    Raises:
      DataError: the cache cannot be written.
    """
    key = _key(dataset, audio)
    index_path, store_path = Path(cache_dir, f"{key}.json"), Path(cache_dir, f"{key}.{KINDS[audio.frontend]}")
    found = _open(index_path, store_path, dataset, audio)
    if isinstance(found, ClipSource):
        return found
    if found and log:
        log(f"{cache_dir}: the feature cache is damaged ({found}) and is computed again")
    try:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        for path in (index_path, store_path):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                path.unlink()  # a link would be followed, a pipe be written to
        with atomic_writer(store_path) as store:
            index = _compute(dataset, audio, store, progress)
        with atomic_writer(index_path) as file:
            file.write(json.dumps(index).encode())
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


def _key(dataset: Dataset, audio: AudioConfig) -> str:
    """Key of the cache: audio settings, and path, size, modification time and section of every clip, in order."""
    digest = hashlib.blake2b(repr((FORMAT, audio)).encode(), digest_size=16)
    for clip in dataset.clips:
        try:
            status = os.stat(clip.path)
            size, changed = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # ValueError: a null character in the name
            size, changed = -1, 0
        digest.update(repr((os.path.abspath(clip.path), size, changed, clip.start, clip.end)).encode())
    return digest.hexdigest()


def _compute(
    dataset: Dataset, audio: AudioConfig, store: BinaryIO, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Writes all clips in order; returns what the index file holds."""
    counts, scales, checksums, bad, notes = [], [], [], {}, {}
    with contextlib.closing(_in_order(dataset, audio)) as results:
        for i, result in enumerate(results):
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
    return {"format": FORMAT, "counts": counts, "scales": scales, "checksums": checksums, "bad": bad, "notes": notes}


def _in_order(dataset: Dataset, audio: AudioConfig) -> Generator[tuple[np.ndarray, float, str] | str, None, None]:
    """`_content` of each clip from a pool of threads that runs only a little ahead of the reader."""
    workers = os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending: collections.deque[concurrent.futures.Future[tuple[np.ndarray, float, str] | str]] = collections.deque()
    clips = iter(dataset.clips)
    try:
        while True:
            for clip in itertools.islice(clips, 4 * workers - len(pending)):
                pending.append(pool.submit(_content, clip, audio))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _content(clip: Clip, audio: AudioConfig) -> tuple[np.ndarray, float, str] | str:
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
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"{index_path.name} is no index"
    if not (
        counts.shape == scales.shape == (len(dataset),)
        and len(checksums) == len(dataset)
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
    if audio.frontend == "device":
        return WaveformCache(str(path), audio, counts, np.array(index["scales"], np.float32), bad, checksums)
    return SpectrogramCache(str(path), audio, counts, bad, checksums)
