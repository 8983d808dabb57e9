"""Which samples a range of spectrogram frames is computed from."""

from __future__ import annotations

import math

import numpy as np

from datar_jax.config import AudioConfig


def num_samples(audio: AudioConfig, frames: int) -> int:
    """Number of samples that `frames` frames are computed from, including what is reflected at a clip's ends."""
    return (frames - 1) * audio.hop_length + audio.win_length


def frame_bounds(length: int, audio: AudioConfig, start: int, frames: int) -> tuple[int, int]:
    """First and last (exclusive) sample of a clip that frames from `start` on are computed from."""
    low, high = window_bounds(audio, start, frames)
    whole = min_samples(length, audio)
    return max(0, min(low, whole - 1 - max(0, high - whole))), min(length, max(high, 1 - low))


def frame_samples(
    part_N: np.ndarray, first: int, length: int, audio: AudioConfig, start: int, frames: int
) -> np.ndarray:
    """Samples that frames `start` to `start + frames` of a clip are computed from, reflected at its ends.

    Args:
      part_N: samples of the clip from `first` on, at least those of `frame_bounds`; any dtype.
      first: where they lie in the clip.
      length: samples of the whole clip.
      audio: the front end.
      start: first column.
      frames: columns; none of them beyond the clip's last.

    Returns:
      `num_samples(audio, frames)` samples.
    """
    low, high = window_bounds(audio, start, frames)
    whole = min_samples(length, audio)
    if whole > length:
        part_N = np.pad(part_N, (0, whole - length))
    inner_N = part_N[max(0, low) - first : min(high, whole) - first]
    if low >= 0 and high <= whole:
        return inner_N
    before_N = part_N[1:][: max(0, -low)][::-1]
    after_N = part_N[whole - 1 - max(0, high - whole) - first : whole - 1 - first][::-1]
    return np.concatenate([before_N, inner_N, after_N])


def left_context(audio: AudioConfig) -> int:
    """Number of samples before the center of a frame that it is computed from."""
    return -window_bounds(audio, 0, 1)[0]


def window_samples(audio: AudioConfig, frames: int) -> int:
    """Number of samples that `frames` frames of a recording are computed from, `left_context` included.

    Also those of any clip that has no more columns.
    """
    whole = frames * audio.hop_length + (audio.hop_length - frames % 2) // 2  # a half is rounded to the even number
    return left_context(audio) + max(whole, window_bounds(audio, 0, frames)[1])


def window_bounds(audio: AudioConfig, start: int, frames: int) -> tuple[int, int]:
    """First and last (exclusive) sample of some frames; negative ones are before the clip."""
    first = start * audio.hop_length - audio.n_fft // 2 + (audio.n_fft - audio.win_length) // 2
    return first, first + num_samples(audio, frames)


def min_samples(length: int, audio: AudioConfig) -> int:
    """Length of a clip after padding: one that is too short for reflect padding is extended with zeros."""
    return max(length, audio.n_fft // 2 + 1)


INT16_SCALE = 2**15  # an int16 sample of a clip whose peak is 1 counts in steps of 1 / INT16_SCALE


def columns(lengths: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Number of spectrogram frames of clips of given lengths, int64, as `AudioConfig.frames`; 0 for no samples."""
    rate = audio.sample_rate
    return np.where(lengths > 0, np.maximum(np.round(lengths / rate * rate / audio.hop_length), 1), 0).astype(np.int64)


def eval_window_starts(frames: int, window_frames: int) -> np.ndarray:
    """First frames of the fewest evenly spaced windows that cover a clip, int64; one for a short clip."""
    count = -(-frames // window_frames)
    return np.round(np.linspace(0, max(0, frames - window_frames), max(1, count))).astype(np.int64)


def to_int16(samples_N: np.ndarray, peak: float | None = None) -> tuple[np.ndarray, float]:
    """Converts float samples to int16 (little-endian); also returns the power of two that scales them back.

    A recording of 16 bits keeps its very samples, a quiet one its detail. `peak` is that of the whole clip, where
    these samples are a part of it.
    """
    peak = float(np.abs(samples_N).max(initial=0.0)) if peak is None else peak
    scale = 2.0 ** (math.ceil(math.log2(peak)) if peak else 0) / INT16_SCALE
    return np.minimum(np.round(samples_N / scale), INT16_SCALE - 1).astype("<i2"), scale
