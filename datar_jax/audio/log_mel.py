"""Log-mel spectrograms on the host.

librosa is the reference for both: reflect-padded centred frames, periodic Hann, power, Slaney mel, decibel with a
floor. A window of a clip's columns needs a few samples on either side of it; `framing.frame_samples` alone knows
which, so that a crop has the very columns of the whole clip.

Shapes: B batch, N samples, W samples of a window, F mel bins (low to high), T frames, K bins of the transform.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy.fft

from datar_jax.audio.framing import frame_samples
from datar_jax.config import AudioConfig

COLUMNS = 128  # frames that are transformed at a time: what lies between stays in a core's cache


def log_mel(samples_N: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Log-mel spectrogram of one waveform, computed on the host.

    Frame t is centred on sample `t * audio.hop_length`.

    Args:
      samples_N: float, finite, at least one sample at `audio.sample_rate`; of any length.
      audio: the front end.

    Returns:
      float32 (F, T) in decibels, not below `audio.floor_db`; T = audio.frames(N / audio.sample_rate).

    Raises:
      ValueError: `samples_N` has no samples or more than one axis.
    """
    if samples_N.ndim != 1 or not samples_N.size:
        raise ValueError(f"samples_N has shape {samples_N.shape}; give one axis with at least one sample")
    frames = audio.frames(samples_N.size / audio.sample_rate)
    samples_N = samples_N.astype(np.float32, copy=False)
    return log_mel_frames(frame_samples(samples_N, 0, samples_N.size, audio, 0, frames), audio)


def log_mel_frames(excerpt_N: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Log-mel frames of samples from `framing.frame_samples`: float32 (F, T) in decibels."""
    framed_TxW = np.lib.stride_tricks.sliding_window_view(excerpt_N, audio.win_length)[:: audio.hop_length]
    mel_FxT = np.empty((audio.n_mels, len(framed_TxW)), np.float32)
    for first in range(0, len(framed_TxW), COLUMNS):
        spectrum = scipy.fft.rfft(framed_TxW[first : first + COLUMNS] * hann(audio), n=audio.n_fft, axis=-1)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        mel_FxT[:, first : first + COLUMNS] = _filters(audio) @ power.T
    np.maximum(mel_FxT, np.float32(10 ** (audio.floor_db / 10)), out=mel_FxT)
    np.log10(mel_FxT, out=mel_FxT)
    mel_FxT *= np.float32(10)
    return mel_FxT


@functools.lru_cache(maxsize=8)
def mel_basis(audio: AudioConfig) -> np.ndarray:
    """Slaney mel filters, float32 (F, K), K = fft // 2 + 1; read-only."""
    import librosa.filters  # a second to import; only those who compute features pay it

    basis_FxK = librosa.filters.mel(
        sr=audio.sample_rate, n_fft=audio.n_fft, n_mels=audio.n_mels, fmin=audio.fmin, fmax=audio.highest
    )
    basis_FxK.flags.writeable = False
    return basis_FxK


def bin_of_hertz(hertz: float | np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Position of a frequency among the mel bins, float64: 0 at the center of the first filter, 1 of the second."""
    import librosa

    low, high, at = (librosa.hz_to_mel(each) for each in (audio.fmin, audio.highest, hertz))
    return np.asarray((at - low) / (high - low) * (audio.n_mels + 1) - 1)


@functools.lru_cache(maxsize=8)
def _filters(audio: AudioConfig) -> Any:
    """`mel_basis` as a sparse matrix: every transform bin contributes to at most two filters."""
    import scipy.sparse

    return scipy.sparse.csr_array(mel_basis(audio))


@functools.lru_cache(maxsize=8)
def hann(audio: AudioConfig) -> np.ndarray:
    """Periodic Hann window, float32 (audio.win_length,), read-only."""
    window_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(audio.win_length) / audio.win_length)).astype(np.float32)
    window_W.flags.writeable = False
    return window_W
