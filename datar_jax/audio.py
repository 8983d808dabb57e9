"""Sound in, log-mel spectrogram out.

`decode` reads a file (the one effect in this room); everything else is a pure function. `log_mel` runs on the host and
feeds the feature cache; `log_mel_jax` computes the same on a device, for export and for hosts that ship waveforms.
librosa is the reference for both: reflect-padded centred frames, periodic Hann, power, Slaney mel, decibel with a
floor.

Shapes: B batch, N samples, F mel bins (low to high), T frames.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import soundfile
import soxr

from datar_jax.config import AudioConfig

if TYPE_CHECKING:
    import jax

# What libsndfile recognises by its content and people name so (raw formats without a header are left out).
_NAMES = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 voc sph nist svx avr pvf"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" "))
LOUDEST = 1e7  # a peak beyond this is a broken file: sound lies around -1 to 1, unscaled 24-bit integers reach 8.4e6
SLACK = 0.1  # seconds by which a listed end may pass the end of the file: lists round
MP3_SLACK = 2 * 1152  # frames by which MP3 headers overstate a whole file: encoder delay and padding


class AudioError(ValueError):
    """A sound that cannot be used; its text is the short reason, without the file's name."""


def decode(path: str | Path, sample_rate: int, start: float = 0.0, end: float = 0.0) -> np.ndarray:
    """Reads a sound file, or a part of it, as one channel at `sample_rate`.

    Args:
      path: any format that libsndfile reads.
      sample_rate: Hz of the result.
      start: seconds into the file.
      end: seconds into the file; 0 means to its end.

    Returns:
      float32 (samples,), mean over the channels, not scaled: peaks may lie above 1.

    Raises:
      AudioError: the file is missing, empty, of no known format, truncated, shorter than `start` or `end`, silent
        (every sample has the same value), or holds NaN, infinity or values that cannot be sound.
    """
    if not os.path.isfile(path):
        raise AudioError("no such file")
    if os.path.getsize(path) == 0:
        raise AudioError("empty file")
    try:
        with soundfile.SoundFile(path) as file:
            if reason := _shortfall(path, file):
                raise AudioError(reason)
            rate, total = file.samplerate, file.frames
            first, last = _bounds(total, rate, start, end)
            if first:
                file.seek(first)
            samples_NxC = file.read(last - first, dtype="float32", always_2d=True)
            slack = MP3_SLACK if file.format == "MP3" else 0
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"cannot be decoded ({getattr(error, 'error_string', error)})") from None
    if len(samples_NxC) < last - first - slack:
        raise AudioError(f"truncated: {len(samples_NxC)} of {last - first} promised samples could be read")
    if not samples_NxC.size:
        raise AudioError("holds no samples")
    if not np.isfinite(samples_NxC).all():
        raise AudioError("holds NaN or infinity")
    if (peak := float(np.abs(samples_NxC).max())) > LOUDEST:
        raise AudioError(f"peak of {peak:.3g}: these numbers are no sound")
    samples_N = samples_NxC.mean(axis=1, dtype=np.float32)
    if samples_N.min() == samples_N.max():
        raise AudioError("silent: every sample has the same value")
    if rate != sample_rate:
        samples_N = soxr.resample(samples_N, rate, sample_rate, quality="HQ")
    if not samples_N.size:
        raise AudioError(f"too short: no sample is left at {sample_rate} Hz")
    return np.ascontiguousarray(samples_N, np.float32)


def log_mel(samples_N: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Log-mel spectrogram of one waveform, computed on the host.

    Frame t is centred on sample `t * audio.hop`.

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
    padded = np.pad(samples_N.astype(np.float32, copy=False), (0, _lacking(samples_N.size, audio)))
    padded = np.pad(padded, audio.fft // 2, mode="reflect")[_lead(audio) :]
    framed_TxW = np.lib.stride_tricks.sliding_window_view(padded, audio.window)[:: audio.hop][:frames]
    spectrum = scipy.fft.rfft(framed_TxW * hann(audio), n=audio.fft, axis=-1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    mel_FxT = mel_basis(audio) @ power.T
    np.maximum(mel_FxT, np.float32(10 ** (audio.floor_db / 10)), out=mel_FxT)
    np.log10(mel_FxT, out=mel_FxT)
    mel_FxT *= np.float32(10)
    return mel_FxT


def log_mel_jax(samples_BxN: jax.Array, audio: AudioConfig) -> jax.Array:
    """`log_mel` of a batch of equally long waveforms, traceable.

    Args:
      samples_BxN: float32, at `audio.sample_rate`.
      audio: the front end; static under jit.

    Returns:
      float32 (B, F, T) in decibels.

    Raises:
      ValueError: `samples_BxN` has no samples or not two axes.
    """
    import jax  # here, not above: the processes that decode and read need none of it
    import jax.numpy as jnp

    if samples_BxN.ndim != 2 or not samples_BxN.shape[1]:
        raise ValueError(f"samples_BxN has shape {samples_BxN.shape}; give two axes with at least one sample")
    length = samples_BxN.shape[1]
    frames = audio.frames(length / audio.sample_rate)
    padded = jnp.pad(samples_BxN.astype(jnp.float32), ((0, 0), (0, _lacking(length, audio))))
    padded = jnp.pad(padded, ((0, 0), (audio.fft // 2, audio.fft // 2)), mode="reflect")
    index_TxW = _lead(audio) + np.arange(frames)[:, None] * audio.hop + np.arange(audio.window)
    spectrum = jnp.fft.rfft(padded[:, index_TxW] * hann(audio), n=audio.fft, axis=-1)
    power_BxTxK = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel_BxFxT = jnp.einsum("fk,btk->bft", mel_basis(audio), power_BxTxK, precision=jax.lax.Precision.HIGHEST)
    return 10 * jnp.log10(jnp.maximum(mel_BxFxT, 10 ** (audio.floor_db / 10)))


@functools.lru_cache(maxsize=8)
def mel_basis(audio: AudioConfig) -> np.ndarray:
    """Slaney mel filters, float32 (F, fft // 2 + 1), read-only."""
    import librosa.filters  # a second to import; only those who compute features pay it

    basis_FxK = librosa.filters.mel(
        sr=audio.sample_rate, n_fft=audio.fft, n_mels=audio.mels, fmin=audio.fmin, fmax=audio.highest
    )
    basis_FxK.flags.writeable = False
    return basis_FxK


@functools.lru_cache(maxsize=8)
def hann(audio: AudioConfig) -> np.ndarray:
    """Periodic Hann window, float32 (audio.window,), read-only."""
    window_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(audio.window) / audio.window)).astype(np.float32)
    window_W.flags.writeable = False
    return window_W


def _lacking(length: int, audio: AudioConfig) -> int:
    """Zeros to append before a reflection by half a transform is possible."""
    return max(0, audio.fft // 2 + 1 - length)


def _lead(audio: AudioConfig) -> int:
    """Samples of the transform before the window that is centred in it; a power spectrum does not see the shift."""
    return (audio.fft - audio.window) // 2


def _bounds(total: int, rate: int, start: float, end: float) -> tuple[int, int]:
    """First and last (exclusive) frame of a part of a file of `total` frames."""
    if start < 0 or (end and end <= start):
        raise AudioError(f"part from {start:g} s to {end:g} s is empty")
    if total and round(start * rate) >= total:
        raise AudioError(f"starts at {start:g} s, but the file ends at {total / rate:g} s")
    if end > total / rate + SLACK:
        raise AudioError(f"ends at {end:g} s, but the file ends at {total / rate:g} s")
    return round(start * rate), min(total, round(end * rate)) if end else total


def _shortfall(path: str | Path, file: soundfile.SoundFile) -> str:
    """Why the file is known to be cut off, or nothing.

    libsndfile silently shortens what it reads to what is there, so that counting samples does not tell: containers of
    plain samples tell by the size of their data chunk, Ogg by a last page that does not end.
    """
    if file.format == "OGG":
        return "truncated: the last Ogg page is incomplete" if _ogg_page_cut(path) else ""
    found = re.search(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if found and int(found[2]) < int(found[1]) < 0x7FFF_0000:  # larger ones are placeholders of a streaming writer
        return f"truncated: {found[2]} of {found[1]} promised bytes are there"
    found = re.search(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)", file.extra_info)
    if found and int(found[1]) < int(found[2]):
        return f"truncated: {found[1]} of {found[2]} promised samples are there"
    return ""


def _ogg_page_cut(path: str | Path) -> bool:
    """Whether the last page of an Ogg file promises more bytes than follow."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * 65_536))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 0
    return len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments])
