"""Random access to clips in ArrayRecord shards."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datar_jax.audio.framing import columns
from datar_jax.config import AudioConfig, ConfigError
from datar_jax.data.prepared import AGAIN, CARD, DatasetInfo, _mark, decode_record, pieces
from datar_jax.data.sources.base import DataError, WaveformSource
from datar_jax.filesystem import StoragePath
from datar_jax.foreign_files import check_regular

OPEN = 256  # shards whose files are kept open at a time


READING = "readahead_buffer_size:0,max_parallelism:0"


class ClipLocation(Protocol):
    """Position of a clip in a shard, as `dataset.Clip`."""

    @property
    def path(self) -> str: ...
    @property
    def labels(self) -> tuple[int, ...]: ...
    @property
    def record(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def crc32(self) -> int | None: ...


def open_shards(
    folder: StoragePath, card: DatasetInfo, clips: Sequence[ClipLocation], audio: AudioConfig, cache: Path
) -> ArrayRecordSource:
    """Opens the shards of a prepared folder; those of a bucket are copied into `cache` first.

    Raises:
      ConfigError: another rate than the front end's.
      DataError: a shard is missing or of another size.
    """
    if audio.sample_rate != card.sample_rate:
        raise ConfigError(
            f"audio.sample_rate={audio.sample_rate}: {folder.url} holds {card.sample_rate} Hz; give that, or prepare "
            "the data again"
        )
    content = hashlib.sha256(repr([(shard.name, shard.sha256) for shard in card.shards]).encode())
    home = folder.local or cache / "shards" / content.hexdigest()[:16]
    for shard in card.shards:
        path = home / shard.name  # `read_card` has checked the name
        if folder.local is None and _size(path) != shard.size:
            home.mkdir(parents=True, exist_ok=True)
            (folder / shard.name).copy_to(path)
        if _size(path) != shard.size:
            raise DataError(f"{path}: missing, or not of {shard.size:,} bytes; prepare the data again")
    checksums = [clip.crc32 for clip in clips]
    names = tuple(shard.name for shard in card.shards)
    number = {name: i for i, name in enumerate(names)}
    return ArrayRecordSource(
        str(home),
        audio,
        names,
        np.array([clip.samples for clip in clips], np.int64),
        np.array([number[clip.path] for clip in clips], np.int32),
        np.array([clip.record for clip in clips], np.int32),
        np.array([_mark(clip.labels) for clip in clips], np.uint32),
        checksums=None if None in checksums else np.array(checksums, np.uint32),
    )


def _size(path: Path) -> int:
    """Bytes of a regular file; -1 if there is none."""
    try:
        return check_regular(path).st_size
    except OSError:
        return -1


@dataclasses.dataclass(frozen=True)
class ArrayRecordSource(WaveformSource):
    """Clips in local shards."""

    path: str  # of the folder
    audio: AudioConfig
    names: tuple[str, ...]  # of the shards
    lengths: np.ndarray
    shard_C: np.ndarray  # int32 (clips,), which shard each clip lies in
    record_C: np.ndarray  # int32 (clips,), its first record there
    mark_C: np.ndarray  # uint32 (clips,), checksum of its labels: a shard of another preparation may fit in all else
    bad: tuple[tuple[str, str], ...] = ()  # what could not be used was left out when the shards were written
    checksums: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)  # not for workers
    frames: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)
    _files: _Files = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", columns(self.lengths, self.audio))
        object.__setattr__(self, "_files", _Files([f"{self.path}/{name}" for name in self.names]))

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecordSource, (
            self.path,
            self.audio,
            self.names,
            self.lengths,
            self.shard_C,
            self.record_C,
            self.mark_C,
        )

    def read(self, index: int, first: int, last: int) -> tuple[np.ndarray, float]:
        """As `WaveformSource.read`.

        Raises:
          DataError: the shard is damaged, or is another one than its card says.
        """
        bounds = pieces(int(self.lengths[index]), self.audio.sample_rate)
        start, stop = bisect.bisect_right(bounds, first) - 1, bisect.bisect_left(bounds, last)
        parts, scale, name = [], 1.0, self.names[self.shard_C[index]]
        for i in range(start, stop):
            try:
                content = self._files.read(int(self.shard_C[index]), int(self.record_C[index]) + i)
                record, samples_N = decode_record(content, bounds[i + 1] - bounds[i])
            except (OSError, RuntimeError, ValueError, IndexError) as error:
                raise DataError(f"{self.path}/{name}: clip {index} cannot be read ({error}); {AGAIN}") from None
            found = (len(samples_N), record.piece, _mark(record.labels))
            if found != (bounds[i + 1] - bounds[i], i, self.mark_C[index]):
                raise DataError(f"{self.path}/{name}: holds other clips than {CARD} says; {AGAIN}")
            scale = record.scale
            parts.append(samples_N[max(0, first - bounds[i]) : last - bounds[i]])
        return np.concatenate(parts) if len(parts) > 1 else parts[0], scale


class _Files:
    """A least-recently-used pool of open shards."""

    def __init__(self, paths: list[str]) -> None:
        self._open = functools.lru_cache(maxsize=OPEN)(lambda shard: _reader(paths[shard]))
        self._lock = threading.Lock()

    def read(self, shard: int, record: int) -> bytes:
        with self._lock:
            reader = self._open(shard)
        return bytes(reader.read([record])[0])


def _reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, READING)
