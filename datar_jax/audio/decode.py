"""Decodes sound files to one channel at one rate, or raises the reason why a file cannot be used."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from datar_jax.audio.containers import Section, SectionFile, find_sections, is_placeholder
from datar_jax.audio.errors import AudioError

# What libsndfile recognises by its content and people name so (raw formats without a header are left out).
_NAMES = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 voc sph nist svx avr pvf"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" "))
LOUDEST = 100.0  # a peak beyond this is no sound at full scale 1: samples of 16 bits reach 32,768
CANCELLED = 1e-3  # energy of the mean by that of the loudest channel, below which channels cancel each other out
SILENT = "silent: every sample has the same value"
SLACK = 0.1  # seconds by which a listed end may pass the end of the file: lists round
MP3_SLACK = 2 * 1152  # frames by which MP3 headers overstate a whole file: encoder delay and padding
RATES = (1_000, 1_000_000)  # Hz, lowest and highest rate of a recording; a broken header says 1 Hz or 4 GHz
LONGEST = 3_600.0  # seconds of one clip: what is decoded is held in memory
NO_FRAME = 7  # libsndfile's code for a file that is not there, and for an .mp3 that holds something else
UNKNOWN = 2**62  # frames; libsndfile gives 2**63 - 1 for a FLAC stream whose writer could not go back to count
BLOCK = 2**20  # samples of all channels that are decoded at a time


Note = Callable[[str], None]  # called with what is odd about a file that can be used, as a short text


def decode(
    path: str | Path, sample_rate: int, start: float = 0.0, end: float = 0.0, note: Note = lambda _: None
) -> np.ndarray:
    """Reads a sound file, or a part of it, as one channel at `sample_rate`.

    Memory goes by what the file holds, not by what its header promises.

    Args:
      path: any format that libsndfile reads.
      sample_rate: Hz of the result.
      start: seconds into the file.
      end: seconds into the file; 0 means to its end.
      note: called with what is odd about the file.

    Returns:
      float32 (samples,), mean over the channels, not scaled: peaks may lie above 1. Of channels that cancel each other
      the loudest.

    Raises:
      AudioError: as `stream`, and a part that is longer than `LONGEST`.
    """
    return np.concatenate(list(stream(path, sample_rate, start, end, limited=True, note=note)))


def duration(path: str | Path) -> float:
    """Length of a sound file in seconds, by its headers; a very large number where they leave it open.

    Raises:
      AudioError: the file cannot be opened.
    """
    _check_file(path)
    try:
        with contextlib.closing(_open(path, lambda _: None)) as file:
            return float(file.frames / file.samplerate)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _undecodable(error) from None


def stream(
    path: str | Path,
    sample_rate: int,
    start: float = 0.0,
    end: float = 0.0,
    limited: bool = False,
    note: Note = lambda _: None,
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
      note: called with what is odd about the file.

    Yields:
      float32 (samples,), as `decode` returns; together at least one sample.

    Raises:
      AudioError: the file is missing, no file, empty, of no known format, truncated, shorter than `start` or `end`, of
        a rate outside `RATES`, silent (every sample has the same value), too long where that is `limited`, or holds
        NaN, infinity or values that cannot be sound.
    """
    _check_file(path)
    low, high, read, made = math.inf, -math.inf, 0, 0
    try:
        with contextlib.closing(_open(path, note)) as file:
            rate = file.samplerate
            check_rate(rate)
            first, last = _part(file, start, end, limited)
            slack = MP3_SLACK if file.format == "MP3" else 0
            resampler = None
            if rate != sample_rate:
                resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
            for block_N in _blocks(file, last - first, note):
                low, high, read = min(low, block_N.min()), max(high, block_N.max()), read + len(block_N)
                samples_N = resampler.resample_chunk(block_N) if resampler else block_N
                made += samples_N.size
                yield samples_N
    except (soundfile.LibsndfileError, OSError) as error:
        raise _undecodable(error) from None
    if read < last - first - slack:
        raise AudioError(f"truncated: {read} of {last - first} promised samples could be read")
    if not read:
        raise AudioError("holds no samples")
    if low == high:
        raise AudioError(SILENT)
    samples_N = resampler.resample_chunk(np.zeros(0, np.float32), last=True) if resampler else np.zeros(0, np.float32)
    if not made + samples_N.size:
        raise AudioError(f"too short: no sample is left at {sample_rate} Hz")
    yield samples_N


def check_rate(rate: float) -> None:
    """Refuses a sample rate that no recording has."""
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"sample rate of {rate} Hz; a recording has {RATES[0]} to {RATES[1]}")


def check_peak(peak: float) -> None:
    """Refuses samples that are not finite, or far beyond full scale."""
    if not math.isfinite(peak):
        raise AudioError("holds NaN or infinity")
    if peak > LOUDEST:
        raise AudioError(
            f"peak of {peak:.3g}, but the full scale of floating-point samples is 1; divide 16-bit samples by 32768"
        )


def cancelling(samples_NxC: np.ndarray, mix_N: np.ndarray, peak: float) -> int | None:
    """The loudest channel where the mean of the channels cancels them out; None where it does not.

    Stereo of opposite phase, as from a balanced line taken for two channels, leaves nothing but rounding in its mean.
    """
    if np.abs(mix_N[:: 1 + len(mix_N) // 4096]).max() > 0.1 * peak:  # nearly always
        return None
    energy_C = np.einsum("nc,nc->c", samples_NxC, samples_NxC, dtype=np.float64)
    return int(energy_C.argmax()) if np.dot(mix_N, mix_N) < CANCELLED * energy_C.max() else None


def _undecodable(error: Exception) -> AudioError:
    if getattr(error, "code", None) == NO_FRAME:
        return AudioError("cannot be decoded (no MPEG frame was found)")
    return AudioError(f"cannot be decoded ({getattr(error, 'error_string', error)})")


class _Forward(soundfile.SoundFile):
    """A sound file read from front to back, without the seeks that fail at the end of a FLAC stream."""

    def seekable(self) -> bool:
        return False


class _Joined:
    """Several sections of one file, read one after another as one sound."""

    def __init__(self, path: str | Path, sections: Sequence[Section]) -> None:
        self._under = [SectionFile(path, section) for section in sections]
        self._files = [_Forward(under, **section.raw) for under, section in zip(self._under, sections)]
        self._at = 0
        rates = sorted({file.samplerate for file in self._files})
        if len(rates) > 1:
            raise AudioError(f"joined files of {rates[0]} and {rates[1]} Hz; save them one by one")
        self.samplerate, self.format = rates[0], self._files[0].format
        self.channels = max(file.channels for file in self._files)
        self.frames = min(UNKNOWN, sum(file.frames for file in self._files))

    def seek(self, frame: int) -> None:
        """Moves to a frame of the whole sound."""
        self._at = 0
        while frame > self._files[self._at].frames and self._at + 1 < len(self._files):
            frame -= self._files[self._at].frames
            self._at += 1
        self._files[self._at].seek(frame)
        for file in self._files[self._at + 1 :]:
            file.seek(0)

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """The next samples of one section, (frames, its channels); none at the end of the last."""
        samples_NxC = self._files[self._at].read(frames, dtype=dtype, always_2d=always_2d)
        if not len(samples_NxC) and self._at + 1 < len(self._files):
            self._at += 1
            return self.read(frames, dtype, always_2d)
        return np.asarray(samples_NxC)

    def close(self) -> None:
        """Closes the sections and their files."""
        for file, under in zip(self._files, self._under):
            file.close()
            under.close()


def _open(path: str | Path, note: Note) -> soundfile.SoundFile | _Joined:
    """A sound file, with all its sections where libsndfile alone would not read them."""
    found = find_sections(path)
    if found.note:
        note(found.note)
    if found.sections:
        return _Joined(path, found.sections)
    file = _Forward(os.fsencode(path))  # as str, a name that is no UTF-8 is an error
    if reason := _shortfall(file):
        file.close()
        raise AudioError(reason)
    return file


def _part(file: soundfile.SoundFile | _Joined, start: float, end: float, limited: bool) -> tuple[int, int]:
    """First and last (exclusive) frame of a part of a file, which is left at the first."""
    rate = file.samplerate
    first, last = _bounds(file.frames, rate, start, end)
    if first:
        file.seek(first)
    if last >= UNKNOWN:  # counted first, so that a small file of many hours fills no memory
        last = first + sum(map(len, _blocks(file, int(LONGEST * rate) + 1 if limited else UNKNOWN)))
        file.seek(first)
    if limited and (seconds := (last - first) / rate) > LONGEST:
        raise AudioError(f"longer than an hour ({seconds / 3600:.3g} or more); list parts of it (start, end)")
    return first, last


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


def _blocks(file: soundfile.SoundFile | _Joined, count: int, note: Note = lambda _: None) -> Iterator[np.ndarray]:
    """Yields the next `count` frames or fewer, as one channel: float32 (samples,)."""
    chosen: int | None = None
    undecided = True  # until a block holds more than silence
    while count > 0:
        asked = min(count, max(1, BLOCK // file.channels))
        samples_NxC = file.read(asked, dtype="float32", always_2d=True)
        if not len(samples_NxC):
            return
        peak = float(np.abs(samples_NxC).max())
        check_peak(peak)
        mix_N = samples_NxC.mean(axis=1, dtype=np.float32)
        if undecided and peak and samples_NxC.shape[1] > 1:
            chosen, undecided = cancelling(samples_NxC, mix_N, peak), False
            if chosen is not None:
                note(f"its channels cancel each other out; channel {chosen + 1} is used")
        yield mix_N if chosen is None else samples_NxC[:, min(chosen, samples_NxC.shape[1] - 1)]
        count -= len(samples_NxC)


def _shortfall(file: soundfile.SoundFile) -> str:
    """The reason why the file is truncated or no recording; an empty text if it is neither.

    libsndfile silently shortens what it reads to what is there, so that counting samples does not tell; containers of
    plain samples tell by the size of their data chunk.
    """
    if file.format == "RAW":  # libsndfile's guess by the ending: any text named .au or .vox would be noise
        return "no known format, or samples without a header; save them as wav"
    found = re.search(r"^ *(?:SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if found and int(found[2]) < int(found[1]) and not is_placeholder(int(found[1])):
        return f"truncated: {found[2]} of {found[1]} promised bytes are there"
    found = re.search(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)", file.extra_info)
    if found and int(found[1]) < int(found[2]):
        return f"truncated: {found[1]} of {found[2]} promised samples are there"
    return ""
