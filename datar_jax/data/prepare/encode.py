"""Worker processes that decode clips and encode ArrayRecords.

Workers only read; the main process alone writes, and it alone receives Ctrl-C.
"""

from __future__ import annotations

import collections
import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from datar_jax.audio.decode import decode, duration
from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import to_int16
from datar_jax.audio.log_mel import log_mel
from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.config import AudioConfig
from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import Segment
from datar_jax.data.prepare.match_files import File
from datar_jax.data.prepared import Coding, Moments
from datar_jax.data.sources.base import DataError
from datar_jax.filesystem import StoragePath
from datar_jax.foreign_files import UnsafeName

WHOLE = 1.0  # seconds that a file may be longer than a segment and still count as cut to it
CHUNK = 8  # clips per task


@dataclass(frozen=True)
class EncodeOptions:
    """Encoding of clips: rate, coding, shard size, processes."""

    audio: AudioConfig  # sample rate of the shards; the other fields define the statistics
    coding: Coding = "pcm"
    shard_clips: int = 2048
    workers: int = 1


@dataclass(frozen=True)
class EncodedClip:
    """The records of one clip, its length and its statistics."""

    records: list[bytes]
    samples: int
    sums: Moments
    crc32: int  # of its samples
    note: str = ""  # what is odd about its file


def encode_clips(
    audio: StoragePath, options: EncodeOptions, clips: list[tuple[Segment, File]]
) -> list[EncodedClip | str]:
    """Encodes some clips; a clip that cannot be used gives the reason instead."""
    return [_encode_clip(audio, options, segment, file) for segment, file in clips]


def _encode_clip(audio: StoragePath, options: EncodeOptions, segment: Segment, file: File) -> EncodedClip | str:
    ending = PurePosixPath(file.name).suffix.lower()
    if ending not in SUFFIXES:
        return f"no decoder for {ending or 'a file without an ending'}; extract its sound, as .wav or .flac"
    notes: list[str] = []
    try:
        with audio.below(file.name).as_local() as path:
            start, end = (0.0, 0.0) if file.cut else _bounds(path, segment)
            samples_N = decode(path, options.audio.sample_rate, start, end, notes.append)
    except (AudioError, UnsafeName) as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    kept_N, scale = to_int16(samples_N)
    mel_FxT = log_mel(kept_N * np.float32(scale), options.audio).astype(np.float64)
    sums = Moments(mel_FxT.size, float(mel_FxT.sum()), float(np.square(mel_FxT).sum()))
    records = shards.encode(segment.id, segment.labels, kept_N, scale, options.audio.sample_rate, options.coding)
    return EncodedClip(records, len(kept_N), sums, zlib.crc32(kept_N.astype("<i2").data), "; ".join(notes))


def _bounds(path: Path, segment: Segment) -> tuple[float, float]:
    """Start and end in seconds; (0, 0) if the file is already cut to the segment."""
    if not segment.end:
        return segment.start, 0.0
    seconds = duration(path)
    if seconds <= segment.end - segment.start + WHOLE:
        return 0.0, 0.0
    return segment.start, min(segment.end, seconds)


def encode_all(
    clips: list[tuple[Segment, File]],
    work: Callable[[list[tuple[Segment, File]]], list[EncodedClip | str]],
    workers: int,
) -> Generator[EncodedClip | str, None, None]:
    """Encodes clips in `workers` processes that run only a little ahead of the reader."""
    if not clips:
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, -(-len(clips) // CHUNK)), multiprocessing.get_context("spawn"), _end_with_parent
    )
    pending: collections.deque[concurrent.futures.Future[list[EncodedClip | str]]] = collections.deque()
    chunks = (clips[i : i + CHUNK] for i in range(0, len(clips), CHUNK))
    try:
        while True:
            for chunk in itertools.islice(chunks, 2 * workers + 2 - len(pending)):
                with _block_sigint():
                    pending.append(pool.submit(work, chunk))
            if not pending:
                return
            yield from pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise DataError(
            "a worker process died, perhaps out of memory; the same command continues, and fewer --workers "
            "need less memory"
        ) from None
    finally:
        with (
            _block_sigint()
        ):  # a second Ctrl-C in here would leave the pool half shut down, and this process waiting for it
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _block_sigint() -> Iterator[None]:
    """Blocks Ctrl-C for processes started in the block: the main process ends them.

    In the main process it is only delayed until the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed; its queue would block forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
