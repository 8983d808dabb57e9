"""Decodes sound files to one channel at one rate, or raises the reason why a file cannot be used."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

# What libsndfile recognises by its content and people name so (raw formats without a header are left out).
_NAMES = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 voc sph nist svx avr pvf"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" "))
LOUDEST = 1e7  # a peak beyond this is a broken file: sound lies around -1 to 1, unscaled 24-bit integers reach 8.4e6
SLACK = 0.1  # seconds by which a listed end may pass the end of the file: lists round
MP3_SLACK = 2 * 1152  # frames by which MP3 headers overstate a whole file: encoder delay and padding
RATES = (1_000, 1_000_000)  # Hz, lowest and highest rate of a recording; a broken header says 1 Hz or 4 GHz
LONGEST = 3_600.0  # seconds of one clip: what is decoded is held in memory
NO_FRAME = 7  # libsndfile's code for a file that is not there, and for an .mp3 that holds something else
UNKNOWN = 2**62  # frames; libsndfile gives 2**63 - 1 for a FLAC stream whose writer could not go back to count
BLOCK = 2**20  # samples of all channels that are decoded at a time


class AudioError(ValueError):
    """A sound that cannot be used; the text is a short reason without the file name."""


def decode(path: str | Path, sample_rate: int, start: float = 0.0, end: float = 0.0) -> np.ndarray:
    """Reads a sound file, or a part of it, as one channel at `sample_rate`.

    Memory goes by what the file holds, not by what its header promises.

    Args:
      path: any format that libsndfile reads.
      sample_rate: Hz of the result.
      start: seconds into the file.
      end: seconds into the file; 0 means to its end.

    Returns:
      float32 (samples,), mean over the channels, not scaled: peaks may lie above 1.

    Raises:
      AudioError: as `stream`, and a part that is longer than `LONGEST`.
    """
    return np.concatenate(list(stream(path, sample_rate, start, end, limited=True)))


def stream(
    path: str | Path, sample_rate: int, start: float = 0.0, end: float = 0.0, limited: bool = False
) -> Iterator[np.ndarray]:
    """Yields the samples of a sound file, or of a part of it, in blocks: constant memory for any length.

    What only the whole file tells (that it is truncated, or silent) is raised after all but the last block. Blocks are
    the same on every reading.

    Args:
      path: any format that libsndfile reads.
      sample_rate: Hz of the result.
      start: seconds into the file.
      end: seconds into the file; 0 means to its end.
      limited: whether a part longer than `LONGEST` is refused.

    Yields:
      float32 (samples,), mean over the channels, not scaled; together at least one sample.

    Raises:
      AudioError: the file is missing, no file, empty, of no known format, truncated, shorter than `start` or `end`, of
        a rate outside `RATES`, silent (every sample has the same value), too long where that is `limited`, or holds
        NaN, infinity or values that cannot be sound.
    """
    _check_file(path)
    try:
        with _Forward(os.fsencode(path)) as file:  # as str, a name that is no UTF-8 is an error
            if reason := _shortfall(path, file):
                raise AudioError(reason)
            rate, total = file.samplerate, file.frames
            if not RATES[0] <= rate <= RATES[1]:
                raise AudioError(f"sample rate of {rate} Hz; a recording has {RATES[0]} to {RATES[1]}")
            first, last = _bounds(total, rate, start, end)
            if first:
                file.seek(first)
            if last >= UNKNOWN:  # counted first, so that a small file of many hours fills no memory
                last = first + sum(map(len, _blocks(file, int(LONGEST * rate) + 1 if limited else UNKNOWN)))
                file.seek(first)
            if limited and (seconds := (last - first) / rate) > LONGEST:
                raise AudioError(f"longer than an hour ({seconds / 3600:.3g} or more); list parts of it (start, end)")
            slack = MP3_SLACK if file.format == "MP3" else 0
            resampler = None
            if rate != sample_rate:
                resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
            low, high, read, made = math.inf, -math.inf, 0, 0
            for block_N in _blocks(file, last - first):
                low, high, read = min(low, block_N.min()), max(high, block_N.max()), read + len(block_N)
                samples_N = resampler.resample_chunk(block_N) if resampler else block_N
                made += samples_N.size
                yield samples_N
    except (soundfile.LibsndfileError, OSError) as error:
        if getattr(error, "code", None) == NO_FRAME:
            raise AudioError("cannot be decoded (no MPEG frame was found)") from None
        raise AudioError(f"cannot be decoded ({getattr(error, 'error_string', error)})") from None
    if read < last - first - slack:
        raise AudioError(f"truncated: {read} of {last - first} promised samples could be read")
    if not read:
        raise AudioError("holds no samples")
    if low == high:
        raise AudioError("silent: every sample has the same value")
    samples_N = resampler.resample_chunk(np.zeros(0, np.float32), last=True) if resampler else np.zeros(0, np.float32)
    if not made + samples_N.size:
        raise AudioError(f"too short: no sample is left at {sample_rate} Hz")
    yield samples_N


class _Forward(soundfile.SoundFile):
    """A sound file read from front to back, without the seeks that fail at the end of a FLAC stream."""

    def seekable(self) -> bool:
        return False


def _check_file(path: str | Path) -> None:
    """Refuses anything but a regular file, before opening it: opening a pipe would block."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in the name
        raise AudioError("a link to nothing" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "a pipe or device, not a file")
    if not status.st_size:
        raise AudioError("empty file")
    if Path(path).suffix.lower() == ".raw":
        raise AudioError("samples without a header; save them as wav")


def _bounds(total: int, rate: int, start: float, end: float) -> tuple[int, int]:
    """First and last (exclusive) frame of a part of a file of `total` frames."""
    if start < 0 or (end and end <= start):
        raise AudioError(f"part from {start:g} s to {end:g} s is empty")
    if total and start * rate >= total - 0.5:
        raise AudioError(f"starts at {start:g} s, but the file ends at {total / rate:g} s")
    if end > total / rate + SLACK:
        raise AudioError(f"ends at {end:g} s, but the file ends at {total / rate:g} s")
    return round(start * rate), min(total, round(end * rate)) if end else total


def _blocks(file: soundfile.SoundFile, count: int) -> Iterator[np.ndarray]:
    """Yields the next `count` frames or fewer, averaged over the channels: float32 (samples,)."""
    while count > 0:
        asked = min(count, max(1, BLOCK // file.channels))
        samples_NxC = file.read(asked, dtype="float32", always_2d=True)
        if not len(samples_NxC):
            return
        peak = float(np.abs(samples_NxC).max())
        if not math.isfinite(peak):
            raise AudioError("holds NaN or infinity")
        if peak > LOUDEST:
            raise AudioError(f"peak of {peak:.3g}: these numbers are no sound")
        yield samples_NxC.mean(axis=1, dtype=np.float32)
        count -= len(samples_NxC)


def _shortfall(path: str | Path, file: soundfile.SoundFile) -> str:
    """The reason why the file is truncated or no recording; an empty text if it is neither.

    libsndfile silently shortens what it reads to what is there, so that counting samples does not tell: containers of
    plain samples tell by the size of their data chunk, Ogg by a last page that does not end.
    """
    if file.format == "RAW":  # libsndfile's guess by the ending: any text named .au or .vox would be noise
        return "no known format, or samples without a header; save them as wav"
    if file.format == "OGG":
        return "truncated: the last Ogg page is incomplete" if _ogg_page_cut(path) else ""
    found = re.search(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if found and int(found[2]) < int(found[1]) and not _placeholder(int(found[1])):
        return f"truncated: {found[2]} of {found[1]} promised bytes are there"
    found = re.search(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)", file.extra_info)
    if found and int(found[1]) < int(found[2]):
        return f"truncated: {found[1]} of {found[2]} promised samples are there"
    return ""


def _placeholder(size: int) -> bool:
    """Whether a size is the placeholder of a streaming writer, which cannot seek back: about the largest number."""
    return 0x7FFF_0000 <= size <= 0x8000_0000 or size >= 0xFFFF_0000


def _ogg_page_cut(path: str | Path) -> bool:
    """Whether the last page of an Ogg file promises more bytes than follow."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * 65_536))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 0
    return len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments])
