"""Windows of one sound file, as spectrograms or samples: constant memory for any length.

A file is read once to be measured, with every check that `audio.decode` makes, and once more for its windows; a short
one is kept from the first reading. Windows hold the very numbers that a trained model was evaluated on: columns of the
whole recording's spectrogram, or samples in steps that follow from the whole recording's peak.

Shapes: N samples, F mel bins, T window columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
from numpy.typing import ArrayLike

from datar_jax.audio.decode import SILENT, cancelling, check_peak, check_rate, peak_notes, stream
from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import (
    eval_window_starts,
    frame_bounds,
    frame_samples,
    left_context,
    num_samples,
    to_int16,
    window_samples,
)
from datar_jax.audio.log_mel import log_mel_frames
from datar_jax.config import AudioConfig

MAX_CHANNELS = 32  # of samples; a shorter axis that is longer is none of channels
KEPT = 10_000_000  # samples of a file that is kept from its first reading: ten minutes at 16 kHz, 40 MB

NOT_FINITE = "the model's scores are not finite: the model diverged or its weights are damaged"
InputKind = Literal["mel", "samples", "waveform"]
Row = dict[str, Any]  # arrays and numpy scalars: what one window adds to each array of a batch


@dataclasses.dataclass(frozen=True)
class Recording:
    """A sound file that was read once to its end and can be used; created by `measure`."""

    path: str
    audio: AudioConfig
    length: int  # samples at the model's rate
    peak: float  # largest magnitude of a sample
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)  # what is odd about the file
    kept_N: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)  # of a short file: all

    @property
    def frames(self) -> int:
        """Number of frames of the whole spectrogram."""
        return self.audio.frames(self.length / self.audio.sample_rate)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.length / self.audio.sample_rate

    def windows(self, starts: Iterable[int], frames: int, input_kind: InputKind) -> Iterator[Row]:
        """Yields the windows that start at given frames; stacked, they form a batch.

        Args:
          starts: first column of each, ascending, less than `frames` of the recording.
          frames: columns of a window; where the recording ends before, the rest is padding.
          input_kind: what the model takes.

        Yields:
          For "mel" `mel` float32 (F, T) in decibels, padded with the floor, and `frames` int32, its valid columns. For
          "samples" `samples` int16 (num_samples(audio, T),), `scale` float32, what they are multiplied by, and
          `frames`. Both are as `ClipSource.batch` of the whole clip. For "waveform" `waveform` float32
          (window_samples(audio, T),), padded with zeros, `length` int32, its valid samples, and `start` int32, the
          sample under the middle of the first column: before it lie those that the column needs.

        Raises:
          AudioError: the file is no longer the one that was measured.
        """
        cut = {"mel": self._mel, "samples": self._samples, "waveform": self._waveform}[input_kind]
        bounds = self._reach if input_kind != "waveform" else self._span
        samples = _Rolling(self)
        for start in map(int, starts):
            first, last = bounds(start, frames)
            yield cut(samples.read(first, last), first, start, frames)

    def _reach(self, start: int, frames: int) -> tuple[int, int]:
        """Samples that frames are computed from."""
        return frame_bounds(self.length, self.audio, start, min(frames, self.frames - start))

    def _span(self, start: int, frames: int) -> tuple[int, int]:
        """Samples that an exported program takes for some frames."""
        first = max(0, start * self.audio.hop_length - left_context(self.audio))
        return first, min(self.length, first + window_samples(self.audio, frames))

    def _mel(self, part_N: np.ndarray, first: int, start: int, frames: int) -> Row:
        valid = min(frames, self.frames - start)
        mel_FxT = np.full((self.audio.n_mels, frames), self.audio.floor_db, np.float32)
        excerpt_N = frame_samples(part_N, first, self.length, self.audio, start, valid)
        mel_FxT[:, :valid] = log_mel_frames(excerpt_N, self.audio)
        return {"mel": mel_FxT, "frames": np.int32(valid)}

    def _samples(self, part_N: np.ndarray, first: int, start: int, frames: int) -> Row:
        valid = min(frames, self.frames - start)
        whole_N, scale = to_int16(part_N, self.peak)
        excerpt_N = frame_samples(whole_N, first, self.length, self.audio, start, valid)
        samples_N = np.zeros(num_samples(self.audio, frames), np.int16)
        samples_N[: excerpt_N.size] = excerpt_N
        return {"samples": samples_N, "scale": np.float32(scale), "frames": np.int32(valid)}

    def _waveform(self, part_N: np.ndarray, first: int, start: int, frames: int) -> Row:
        waveform_N = np.zeros(window_samples(self.audio, frames), np.float32)
        waveform_N[: part_N.size] = part_N
        here = np.int32(start * self.audio.hop_length - first)
        return {"waveform": waveform_N, "length": np.int32(part_N.size), "start": here}


class _Rolling:
    """Samples of a recording from front to back; forgets samples before the ones last requested."""

    def __init__(self, recording: Recording) -> None:
        self._audio = recording.audio
        self._first = 0  # where in the recording `_held_N` begins
        self._held_N = np.zeros(0, np.float32) if recording.kept_N is None else recording.kept_N
        self._whole = recording.kept_N is not None
        self._blocks = iter(()) if self._whole else stream(recording.path, recording.audio.sample_rate)

    def read(self, first: int, last: int) -> np.ndarray:
        """Samples `first` to `last` (exclusive); `first` does not decrease."""
        if self._whole:
            return self._held_N[first:last]
        # A window that is reflected at the end of the recording may begin a little before the one that came earlier.
        keep = max(self._first, first - self._audio.n_fft)
        parts = [self._held_N[keep - self._first :]]
        end = self._first + self._held_N.size
        while end < last:
            block_N = next(self._blocks, None)
            if block_N is None:
                raise AudioError("changed while it was read")
            parts.append(block_N[max(0, keep - end) :])
            end += block_N.size
        self._held_N = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._first = keep
        return self._held_N[first - keep : last - keep]


def measure(path: str | Path, audio: AudioConfig) -> Recording:
    """Reads a sound file to its end, so that every defect is found before any result is reported.

    Args:
      path: any format that libsndfile reads, of any length.
      audio: the front end.

    Raises:
      AudioError: the file cannot be used, as `audio.decode`, but for its length.
    """
    length, peak = 0, 0.0
    notes: list[str] = []
    parts: list[np.ndarray] = []
    for block_N in stream(path, audio.sample_rate, note=notes.append):
        length, peak = length + block_N.size, max(peak, float(np.abs(block_N).max(initial=0.0)))
        if length <= KEPT:
            parts.append(block_N)
        else:
            parts.clear()
    kept_N = np.concatenate(parts) if length <= KEPT else None
    return Recording(str(path), audio, length, peak, (*notes, *_too_short(length, audio)), kept_N)


def recording_of_samples(samples: ArrayLike, sample_rate: float, audio: AudioConfig) -> Recording:
    """Makes a recording of samples, with the checks that files get.

    Args:
      samples: one channel (N,), or channels along the shorter axis. Floating-point, at full scale 1; or int16, int32,
        int8 or uint8, which are divided by their full scale.
      sample_rate: Hz.
      audio: the front end.

    Raises:
      AudioError: the samples are silent, not finite, far beyond full scale, too few, or of a rate outside `RATES`.
      ValueError: an array that is no sound by its type or its shape.
    """
    if np.ma.is_masked(samples):
        raise ValueError("samples with a mask; fill or cut out what it hides")
    samples_NxC = _columns(np.asarray(samples))
    check_rate(sample_rate)
    peak = float(np.abs(samples_NxC).max())
    check_peak(peak)
    samples_N, notes = samples_NxC.mean(1, dtype=np.float32), []
    if peak and samples_NxC.shape[1] > 1 and (loudest := cancelling(samples_NxC, samples_N, peak)) is not None:
        samples_N = samples_NxC[:, loudest]
        notes.append(f"its channels cancel each other out; channel {loudest + 1} is used")
    if samples_N.min() == samples_N.max():
        raise AudioError(SILENT)
    notes += peak_notes(float(np.abs(samples_N).max()))
    if sample_rate != audio.sample_rate:
        samples_N = soxr.resample(samples_N, sample_rate, audio.sample_rate)
    if not samples_N.size:
        raise AudioError(f"too short: no sample is left at {audio.sample_rate} Hz")
    notes += _too_short(samples_N.size, audio)
    return Recording("", audio, samples_N.size, float(np.abs(samples_N).max()), tuple(notes), samples_N)


def _too_short(length: int, audio: AudioConfig) -> list[str]:
    """A note on a sound that does not fill one window of the spectrogram."""
    if length >= audio.win_length:
        return []
    seconds = length / audio.sample_rate
    return [f"{1000 * seconds:.3g} ms, less than one spectrogram window ({audio.window_ms:g} ms): scores mean little"]


def _columns(samples: np.ndarray) -> np.ndarray:
    """Samples of any type and shape as float32 (samples, channels)."""
    if samples.ndim not in (1, 2) or not samples.size:
        raise ValueError(f"samples of shape {samples.shape}; give (samples,), (samples, channels) or the transpose")
    if samples.dtype.kind == "f":
        full_scale, middle = 1.0, 0.0
    elif samples.dtype.kind in "iu" and samples.dtype.itemsize <= 4:
        full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
        middle = full_scale if samples.dtype.kind == "u" else 0.0
    else:
        raise ValueError(f"samples of type {samples.dtype}; give floating-point ones at full scale 1, or int16")
    if samples.ndim == 1:
        samples = samples[:, None]
    channels, length = sorted(samples.shape)
    if channels > 1 and (channels > MAX_CHANNELS or length <= MAX_CHANNELS):
        raise ValueError(
            f"samples of shape {samples.shape}: which axis is that of the channels is not clear; give one channel"
        )
    if samples.shape[1] > samples.shape[0]:
        samples = samples.T
    # Integers of 32 bits lose nothing that matters in float64 on the way.
    scaled = samples if full_scale == 1 else (samples.astype(np.float64) - middle) / full_scale
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which is refused
        return np.ascontiguousarray(scaled, np.float32)


def plan_windows(frames: int, window: int, overlap: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Start frames of windows: the views that a model is evaluated on, and evenly spaced ones between them.

    Between two views come as many more that neighbours share `overlap` of their columns, or more: views overlap by
    themselves unless the window divides the recording.

    Args:
      frames: columns of the recording.
      window: columns of a window.
      overlap: 0 to below 1; 0 gives the views alone, 0.5 one window between two views, 0.75 three.

    Returns:
      First columns, int64 (W,), strictly ascending, and which of them are views, bool (W,).

    Raises:
      ValueError: an overlap that is out of range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap:g}: give 0 to below 1, such as 0.5")
    views_V = eval_window_starts(frames, window)
    # 1 / (1 - 0.9) is a little more than ten; more than one window a column there is not.
    parts = min(window, math.ceil(1 / (1 - overlap) - 1e-9))
    share_P = np.arange(parts) / parts
    between_VxP = np.round(views_V[:-1, None] + np.diff(views_V)[:, None] * share_P).astype(np.int64)
    starts_W = np.unique(np.append(between_VxP, views_V[-1]))
    return starts_W, np.isin(starts_W, views_V)


Batch = dict[str, np.ndarray]
