"""Every clip is decoded once: the cache of whole-clip spectrograms and what is read off it.

A cache is two files: `KEY.frames` holds all spectrograms one after another, time-major float16 decibels (steps of at
most 0.06 dB), memory-mapped; `KEY.json`, written last, says where each clip lies. KEY is a hash of the audio settings
and of each file's path, size and time of change, so that a changed file or setting makes another cache. Both files
are written under a temporary name: what is interrupted leaves no cache. Neither is a pickle, nor read as one: whatever
lies there in their place is numbers or damage.

Shapes: F mel bins, T frames.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datar_jax.audio import AudioError, decode
from datar_jax.config import AudioConfig
from datar_jax.datasets import Clip, Dataset
from datar_jax.logmel import log_mel

FORMAT = 2  # of the cache files and of the front end's arithmetic; a change makes old caches unused
PROBES = 4096  # clips whose checksum is verified when a cache is opened
LONGEST = 10.0  # seconds, upper bound of the window that the data ask for


class DataError(ValueError):
    """Sounds that cannot be trained on; its text says what to do."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Spectrograms of all clips of a data set, by clip index; pickles as a path, not as the numbers."""

    path: str  # of the flat file
    audio: AudioConfig
    frames: np.ndarray  # int64 (clips,), columns of each clip; 0 for an unusable one
    bad: tuple[tuple[str, str], ...]  # (name, reason) of the unusable ones
    _offsets: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)
    _store: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        offsets = np.concatenate([[0], np.cumsum(self.frames)])
        shape = (int(offsets[-1]), self.audio.mels)
        store = np.memmap(self.path, np.float16, "r", shape=shape) if shape[0] else np.zeros(shape, np.float16)
        object.__setattr__(self, "_offsets", offsets)
        object.__setattr__(self, "_store", np.asarray(store))  # a plain array: memmap's own slicing is slow

    def __reduce__(self) -> tuple[Any, ...]:
        return Features, (self.path, self.audio, self.frames, self.bad)

    @property
    def seconds(self) -> np.ndarray:
        """float64 (clips,), length of each clip."""
        return self.frames * (self.audio.hop / self.audio.sample_rate)

    def get(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Columns `start` to `start + length` of a clip, as far as it reaches.

        Returns:
          float16 (T, F) decibels, a view of the file.
        """
        first, last = int(self._offsets[index]), int(self._offsets[index + 1])
        stop = last if length is None else min(last, first + start + length)
        return self._store[first + start : stop]


def prepare(
    dataset: Dataset,
    audio: AudioConfig,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Features:
    """Opens the cache of a data set; computes it when there is none or when it is damaged.

    Args:
      dataset: what to decode.
      audio: the front end.
      cache_dir: made when missing. Several processes may prepare the same cache there at once.
      progress: called in this thread with (clips done, clips) while computing.
      tell: called with one line when there is a cache that cannot be used, before it is computed again.

    Raises:
      DataError: the cache cannot be written.
    """
    key = _key(dataset, audio)
    index_path, store_path = Path(cache_dir, f"{key}.json"), Path(cache_dir, f"{key}.frames")
    found = _open(index_path, store_path, dataset, audio)
    if isinstance(found, Features):
        return found
    if found and tell:
        tell(f"{cache_dir}: the feature cache is damaged ({found}) and is computed again")
    try:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        with _whole(store_path) as store:
            index = _compute(dataset, audio, store, progress)
        with _whole(index_path) as file:
            file.write(json.dumps(index).encode())
    except OSError as error:
        raise DataError(
            f"{cache_dir}: cannot write the feature cache ({error.strerror or error}); "
            "make room, or point data.cache at another folder"
        ) from error
    return _features(index, store_path, dataset, audio)


def usable(features: Features, indices: np.ndarray) -> tuple[np.ndarray, int]:
    """Takes unusable clips out of an index array: (the rest, how many were taken out)."""
    kept = indices[features.frames[indices] > 0]
    return kept, len(indices) - len(kept)


def report_bad(features: Features, max_bad_fraction: float) -> str:
    """One text that lists every unusable sound by name and reason; empty when there is none.

    Raises:
      DataError: more than `max_bad_fraction` of the clips are unusable, or all of them.
    """
    bad, total = len(features.bad), len(features.frames)
    if not bad:
        return ""
    head = f"{bad} of {total} sounds cannot be used"
    lines = [f"  {name}: {reason}" for name, reason in features.bad]
    if bad == total or bad > max_bad_fraction * total:
        more = [f"  and {bad - 20} more"] if bad > 20 else []
        advice = f"more than data.max_bad_fraction={max_bad_fraction:g}; repair or remove them, or raise that share"
        raise DataError("\n".join([f"{head}, {advice}:", *lines[:20], *more]))
    return "\n".join([f"{head} and are left out:", *lines])


def statistics(features: Features, indices: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in decibels over all columns of `indices`, accumulated in float64.

    Raises:
      DataError: there is no column, or all values are equal.
    """
    count, total, squares = 0, 0.0, 0.0
    for i in indices:
        mel_TxF = features.get(int(i)).astype(np.float64)
        count += mel_TxF.size
        total += float(mel_TxF.sum())
        squares += float(np.square(mel_TxF).sum())
    mean = total / max(count, 1)
    variance = squares / max(count, 1) - mean**2
    if variance <= 1e-9:
        raise DataError(f"{len(indices)} training sounds hold no variation to normalise by; check data.root")
    return mean, variance**0.5


def default_window(features: Features, indices: np.ndarray, audio: AudioConfig) -> int:
    """The frames of the window that the data ask for: it holds 95 % of the clips whole, but not over 10 s.

    The length is that of a real clip, not rounded to a multiple, so that equally long clips fill it exactly.

    Raises:
      DataError: none of the clips is usable.
    """
    frames = features.frames[indices]
    if not (frames > 0).any():
        raise DataError("no usable sound to take a window length from; give data.window_seconds")
    return min(int(np.quantile(frames[frames > 0], 0.95, method="higher")), audio.frames(LONGEST))


# The cache files


def _key(dataset: Dataset, audio: AudioConfig) -> str:
    """Names the cache: audio settings, and path, size, time of change and part of every clip, in order."""
    digest = hashlib.blake2b(repr((FORMAT, audio)).encode(), digest_size=16)
    for clip in dataset.clips:
        try:
            status = os.stat(clip.path)
            size, changed = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # ValueError: a null character in the name
            size, changed = -1, 0
        digest.update(repr((os.path.abspath(clip.path), size, changed, clip.start, clip.end)).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when the block ends well.

    The lock on the temporary file ends with its writer, however that ends: what has none was left by one that was
    killed, and goes.
    """
    for stale in path.parent.glob(f".{path.name}.*.partial"):
        with contextlib.suppress(OSError), stale.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()
    number, name = _locked(path)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _locked(path: Path) -> tuple[int, str]:
    """A new temporary file beside `path` and the lock on it."""
    while True:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks: there nothing is ever removed
            fcntl.flock(number, fcntl.LOCK_EX)
        if os.path.exists(name):
            return number, name
        os.close(number)  # another process took it for a stale one before it was locked


def _compute(
    dataset: Dataset, audio: AudioConfig, store: BinaryIO, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Writes all spectrograms in the order of the clips; returns what the index file holds."""
    frames, checksums, bad = [], [], {}
    with contextlib.closing(_in_order(dataset, audio)) as results:
        for i, result in enumerate(results):
            if isinstance(result, str):
                bad[i], result = result, np.zeros((0, audio.mels), np.float16)
            store.write(result.data)
            frames.append(len(result))
            checksums.append(zlib.crc32(result.data))
            if progress:
                progress(i + 1, len(dataset))
    return {"format": FORMAT, "frames": frames, "checksums": checksums, "bad": bad}


def _in_order(dataset: Dataset, audio: AudioConfig) -> Generator[np.ndarray | str, None, None]:
    """`_spectrogram` of each clip from a pool of threads that runs only a little ahead of the reader."""
    workers = os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending: collections.deque[concurrent.futures.Future[np.ndarray | str]] = collections.deque()
    clips = iter(dataset.clips)
    try:
        while True:
            for clip in itertools.islice(clips, 4 * workers - len(pending)):
                pending.append(pool.submit(_spectrogram, clip, audio))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _spectrogram(clip: Clip, audio: AudioConfig) -> np.ndarray | str:
    """float16 (T, F) of one clip, or the reason why it is unusable."""
    try:
        samples_N = decode(clip.path, audio.sample_rate, clip.start, clip.end)
    except AudioError as error:
        return str(error)
    return np.ascontiguousarray(log_mel(samples_N, audio).T, np.float16)


def _open(index_path: Path, store_path: Path, dataset: Dataset, audio: AudioConfig) -> Features | str:
    """The cache that lies there, or what is wrong with it; an empty text where there is none."""
    try:
        index = json.loads(index_path.read_bytes())
        bad = {int(i): str(reason) for i, reason in index["bad"].items()}
        frames, checksums = np.array(index["frames"], np.int64), list(index["checksums"])
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"{index_path.name} is no index"
    if not (
        frames.ndim == 1
        and len(frames) == len(checksums) == len(dataset)
        and (frames >= 0).all()
        and set(np.flatnonzero(frames == 0)) == set(bad)
    ):
        return f"{index_path.name} is the index of something else"
    try:
        size = store_path.stat().st_size
        if size != (expected := sum(frames.tolist()) * audio.mels * 2):
            return f"{store_path.name} has {size} bytes, not {expected}"
        features = _features(index, store_path, dataset, audio)
        for i in np.unique(np.linspace(0, len(frames) - 1, min(len(frames), PROBES)).astype(int)):
            if zlib.crc32(features.get(i).data) != checksums[i]:
                return f"{store_path.name} holds other numbers for {dataset.where(int(i))} than were written"
    except OSError as error:
        return f"{store_path.name}: {error.strerror}"
    return features


def _features(index: dict[str, Any], store_path: Path, dataset: Dataset, audio: AudioConfig) -> Features:
    bad = tuple((dataset.where(int(i)), str(reason)) for i, reason in index["bad"].items())
    return Features(str(store_path), audio, np.array(index["frames"], np.int64), bad)
