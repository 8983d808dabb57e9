"""Decodes sound files to one channel at one rate, or raises the reason why a file cannot be used."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from datar_jax.audio.errors import AudioError
from datar_jax.audio.media import UNKNOWN, MediaFile
from datar_jax.audio.sound_file import Note, SoundReader, open_sound, undecodable

LOUDEST = 100.0  # a peak beyond this is no sound at full scale 1: samples of 16 bits reach 32,768
LOUD, FAINT = 8.0, 1e-4  # peaks beyond which samples are perhaps at another scale: 18 dB above full scale, 80 dB below
CANCELLED = 1e-3  # energy of the mean by that of the loudest channel, below which channels cancel each other out
SILENT = "silent: every sample has the same value"
SLACK = 0.1  # seconds by which a listed end may pass the end of the file: lists round
MP3_SLACK = 2 * 1152  # frames by which MP3 headers overstate a whole file: encoder delay and padding
RATES = (1_000, 1_000_000)  # Hz, lowest and highest rate of a recording; a broken header says 1 Hz or 4 GHz
LONGEST = 3_600.0  # seconds of one clip: what is decoded is held in memory
BLOCK = 2**20  # samples of all channels that are decoded at a time


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
    """Length of a sound file in seconds: by its headers, or counted where they leave it open.

    Raises:
      AudioError: the file cannot be opened.
    """
    try:
        with contextlib.closing(open_sound(path, lambda _: None)) as file:
            if isinstance(file, MediaFile) and file.seconds:
                return file.seconds
            frames = file.frames if file.frames < UNKNOWN else sum(map(len, _blocks(file, UNKNOWN)))
            return float(frames / file.samplerate)
    except (soundfile.LibsndfileError, OSError) as error:
        raise undecodable(error) from None


def stream(
    path: str | Path,
    sample_rate: int,
    start: float = 0.0,
    end: float = 0.0,
    limited: bool = False,
    note: Note = lambda _: None,
) -> Iterator[np.ndarray]:
    """Yields the samples of a sound file, or of a part of it, in blocks: constant memory for any length.

    What only the whole file shows (that it is truncated, or silent) is raised after all but the last block. Blocks are
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
    low, high, read, made = math.inf, -math.inf, 0, 0
    try:
        with contextlib.closing(open_sound(path, note)) as file:
            rate = file.samplerate
            check_rate(rate)
            first, last = _part(file, start, end, limited)
            slack = {"MP3": MP3_SLACK, MediaFile.format: SLACK * rate}.get(file.format, 0)
            resampler = None
            if rate != sample_rate:
                resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
            for block_N in _blocks(file, last - first, note):
                low, high, read = min(low, block_N.min()), max(high, block_N.max()), read + len(block_N)
                if limited:
                    check_length(read / rate)
                samples_N = resampler.resample_chunk(block_N) if resampler else block_N
                made += samples_N.size
                yield samples_N
    except (soundfile.LibsndfileError, OSError) as error:
        raise undecodable(error) from None
    if last < UNKNOWN and read < last - first - slack:
        raise AudioError(f"truncated: {read} of {last - first} promised samples could be read")
    if not read:
        raise AudioError("holds no samples")
    if low == high:
        raise AudioError(SILENT)
    for each in peak_notes(float(max(high, -low))):
        note(each)
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


def peak_notes(peak: float) -> list[str]:
    """A note on samples that are perhaps at another scale."""
    if FAINT <= peak <= LOUD:
        return []
    return [f"peak of {peak:.3g}, where the full scale is 1: perhaps {'not scaled' if peak > LOUD else 'silence'}"]


def cancelling(samples_NxC: np.ndarray, mix_N: np.ndarray, peak: float) -> int | None:
    """The loudest channel where the mean of the channels cancels them out; None where it does not.

    Stereo of opposite phase, as from a balanced line taken for two channels, leaves nothing but rounding in its mean.
    """
    if np.abs(mix_N[:: 1 + len(mix_N) // 4096]).max() > 0.1 * peak:  # nearly always
        return None
    energy_C = np.einsum("nc,nc->c", samples_NxC, samples_NxC, dtype=np.float64)
    return int(energy_C.argmax()) if np.dot(mix_N, mix_N) < CANCELLED * energy_C.max() else None


def _part(file: SoundReader, start: float, end: float, limited: bool) -> tuple[int, int]:
    """First and last (exclusive) frame of a part of a file, which is left at the first."""
    rate = file.samplerate
    first, last = _bounds(file.frames, rate, start, end)
    if first:
        file.seek(first)
    if (
        last >= UNKNOWN and file.format != MediaFile.format
    ):  # counted first, so that a small file of many hours fills no memory
        last = first + sum(map(len, _blocks(file, int(LONGEST * rate) + 1 if limited else UNKNOWN)))
        file.seek(first)
    if limited and last < UNKNOWN:
        check_length((last - first) / rate)
    return first, last


def check_length(seconds: float) -> None:
    """Refuses what is too long to be held in memory."""
    if seconds > LONGEST:
        raise AudioError(f"longer than an hour ({seconds / 3600:.3g} or more); list parts of it (start, end)")


def _bounds(total: int, rate: int, start: float, end: float) -> tuple[int, int]:
    """First and last (exclusive) frame of a part of a file of `total` frames."""
    if start < 0 or (end and end <= start):
        raise AudioError(f"part from {start:g} s to {end:g} s is empty")
    if total and start * rate >= total - 0.5:
        raise AudioError(f"starts at {start:g} s, but the file ends at {total / rate:g} s")
    if end > total / rate + SLACK:
        raise AudioError(f"ends at {end:g} s, but the file ends at {total / rate:g} s")
    return round(start * rate), min(total, round(end * rate)) if end else total


def _blocks(file: SoundReader, count: int, note: Note = lambda _: None) -> Iterator[np.ndarray]:
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
