"""Clips made into records, by processes that only read.

What they are given and give back is small; the first process alone writes, and it alone hears Ctrl-C.
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
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile

from datar_jax.audio.decode import SUFFIXES, AudioError, decode
from datar_jax.audio.framing import to_int16
from datar_jax.audio.log_mel import log_mel
from datar_jax.config import AudioConfig
from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import Segment
from datar_jax.data.prepare.match_files import File
from datar_jax.data.prepared import Coding, Moments
from datar_jax.data.sources.base import DataError
from datar_jax.filesystem import Place

WHOLE = 1.0  # seconds by which a file may be longer than a segment and still be taken for the segment itself
CHUNK = 8  # clips that go to a worker at a time


@dataclass(frozen=True)
class EncodeOptions:
    """How sounds are kept."""

    audio: AudioConfig  # its rate is that of the samples; the rest is what the statistics are of
    coding: Coding = "pcm"
    shard_clips: int = 2048
    workers: int = 1


@dataclass(frozen=True)
class EncodedClip:
    """What is kept of a clip."""

    records: list[bytes]
    samples: int
    sums: Moments


def cook(audio: Place, recipe: EncodeOptions, clips: list[tuple[Segment, File]]) -> list[EncodedClip | str]:
    """Records of some clips, or why there are none."""
    return [_cook_one(audio, recipe, segment, file) for segment, file in clips]


def _cook_one(audio: Place, recipe: EncodeOptions, segment: Segment, file: File) -> EncodedClip | str:
    ending = PurePosixPath(file.name).suffix.lower()
    if ending not in SUFFIXES:
        return f"no decoder for {ending or 'a file without an ending'}; extract its sound, as .wav or .flac"
    try:
        with (audio / file.name).here() as path:
            start, end = (0.0, 0.0) if file.cut else _bounds(path, segment)
            samples_N = decode(path, recipe.audio.sample_rate, start, end)
    except AudioError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    kept_N, scale = to_int16(samples_N)
    mel_FxT = log_mel(kept_N * np.float32(scale), recipe.audio).astype(np.float64)
    sums = Moments(mel_FxT.size, float(mel_FxT.sum()), float(np.square(mel_FxT).sum()))
    records = shards.encode(segment.id, segment.labels, kept_N, scale, recipe.audio.sample_rate, recipe.coding)
    return EncodedClip(records, len(kept_N), sums)


def _bounds(path: Path, segment: Segment) -> tuple[float, float]:
    """Where in a recording the segment lies; nowhere special in a file that is no longer than the segment."""
    if not segment.end:
        return segment.start, 0.0
    try:
        about = soundfile.info(os.fsencode(path))
    except (soundfile.LibsndfileError, OSError):
        return segment.start, segment.end  # decoding says what is wrong
    seconds = about.frames / about.samplerate
    if seconds <= segment.end - segment.start + WHOLE:
        return 0.0, 0.0
    return segment.start, min(segment.end, seconds)


def cook_all(
    clips: list[tuple[Segment, File]],
    work: Callable[[list[tuple[Segment, File]]], list[EncodedClip | str]],
    workers: int,
) -> Generator[EncodedClip | str, None, None]:
    """Cooks clips in `workers` processes that run only a little ahead of the reader."""
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
                with _deaf():
                    pending.append(pool.submit(work, chunk))
            if not pending:
                return
            yield from pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise DataError(
            "a process that decodes died, perhaps for want of memory; the same command continues, and fewer --workers "
            "need less"
        ) from None
    finally:
        with _deaf():  # a second Ctrl-C in here would leave the pool half shut down, and this process waiting for it
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started in here never hear Ctrl-C, which goes to all of a terminal: the first ends the others.

    For this one it is only put off.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Lets this process end when the one that started it was killed: its queue would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
