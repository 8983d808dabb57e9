"""Samples in, log-mel spectrogram out, on the host or inside a jitted step.

librosa is the reference for both: reflect-padded centred frames, periodic Hann, power, Slaney mel, decibel with a
floor. A window of a clip's columns needs a few samples on either side of it; `excerpt` is the one place that knows
which, so that a crop has the very columns of the whole clip.

Shapes: B batch, N samples, W samples of a window, F mel bins (low to high), T frames, K bins of the transform.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from datar_jax.config import AudioConfig

if TYPE_CHECKING:
    import jax

COLUMNS = 128  # frames that are transformed at a time: what lies between stays in a core's cache


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
    samples_N = samples_N.astype(np.float32, copy=False)
    return log_mel_excerpt(excerpt(samples_N, 0, samples_N.size, audio, 0, frames), audio)


def log_mel_excerpt(excerpt_N: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Log-mel columns of what `excerpt` cut out: float32 (F, T) in decibels."""
    framed_TxW = np.lib.stride_tricks.sliding_window_view(excerpt_N, audio.window)[:: audio.hop]
    mel_FxT = np.empty((audio.mels, len(framed_TxW)), np.float32)
    for first in range(0, len(framed_TxW), COLUMNS):
        spectrum = scipy.fft.rfft(framed_TxW[first : first + COLUMNS] * hann(audio), n=audio.fft, axis=-1)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        mel_FxT[:, first : first + COLUMNS] = _filters(audio) @ power.T
    np.maximum(mel_FxT, np.float32(10 ** (audio.floor_db / 10)), out=mel_FxT)
    np.log10(mel_FxT, out=mel_FxT)
    mel_FxT *= np.float32(10)
    return mel_FxT


def log_mel_jax(excerpt_BxN: jax.Array, frames_B: jax.Array, audio: AudioConfig) -> jax.Array:
    """`log_mel_excerpt` of a batch, traceable and differentiable: matrix products, no transform, no gather.

    The window lies in matrices of cosines and sines. Samples at equal distance from a window's middle share a cosine,
    and a sine but for its sign: their sums and differences halve the work. Against librosa in double precision the
    result errs less than a fast transform in single precision.

    Args:
      excerpt_BxN: float32, N = (T - 1) * audio.hop + audio.window.
      frames_B: valid columns of each clip; the others are set to the floor.
      audio: the front end; static under jit.

    Returns:
      float32 (B, F, T) in decibels.

    Raises:
      ValueError: N is no such number.
    """
    import jax  # here, not above: the processes that decode and read need none of it
    import jax.numpy as jnp

    length, window, hop = excerpt_BxN.shape[-1], audio.window, audio.hop
    if excerpt_BxN.ndim != 2 or length < window or (length - window) % hop:
        raise ValueError(f"excerpt_BxN has shape {excerpt_BxN.shape}; give (B, {window} + a multiple of {hop})")
    frames, parts = (length - window) // hop + 1, -(-window // hop)
    padded = jnp.pad(excerpt_BxN, ((0, 0), (0, (frames - 1 + parts) * hop - length)))
    hops_BxMxH = padded.reshape(-1, frames - 1 + parts, hop)
    framed_BxTxW = jnp.concatenate([hops_BxMxH[:, i : i + frames] for i in range(parts)], axis=-1)[..., :window]
    exact = jax.lax.Precision.HIGHEST
    middle, pairs = window // 2, (window - 1) // 2
    early, late = framed_BxTxW[..., 1 : pairs + 1], framed_BxTxW[..., window - pairs :][..., ::-1]
    even, odd = early + late, early - late
    if window % 2 == 0:  # one sample has no partner; the first of a window is zero
        even = jnp.concatenate([even, framed_BxTxW[..., middle : middle + 1]], axis=-1)
    cosines, sines = fourier(audio)
    power_BxTxK = jnp.square(_product(even, cosines)) + jnp.square(_product(odd, sines))
    mel_BxFxT = jnp.einsum("fk,btk->bft", mel_basis(audio), power_BxTxK, precision=exact)
    sound_BxT = jnp.arange(frames) < frames_B[:, None]
    least = 10 ** (audio.floor_db / 10)
    return 10 * jnp.log10(jnp.maximum(jnp.where(sound_BxT[:, None], mel_BxFxT, least), least))


def excerpt_size(audio: AudioConfig, frames: int) -> int:
    """Samples that so many columns are computed from, what is reflected at a clip's ends counted in."""
    return (frames - 1) * audio.hop + audio.window


def excerpt_bounds(length: int, audio: AudioConfig, start: int, frames: int) -> tuple[int, int]:
    """First and last (exclusive) of the samples of a clip of `length` that the columns from `start` on need."""
    low, high = _window(audio, start, frames)
    whole = _least(length, audio)
    return max(0, min(low, whole - 1 - max(0, high - whole))), min(length, max(high, 1 - low))


def excerpt(part_N: np.ndarray, first: int, length: int, audio: AudioConfig, start: int, frames: int) -> np.ndarray:
    """The samples under columns `start` to `start + frames` of a clip, reflected at its ends.

    Args:
      part_N: samples of the clip from `first` on, at least those of `excerpt_bounds`; any dtype.
      first: where they lie in the clip.
      length: samples of the whole clip.
      audio: the front end.
      start: first column.
      frames: columns; none of them beyond the clip's last.

    Returns:
      `excerpt_size(audio, frames)` samples.
    """
    low, high = _window(audio, start, frames)
    whole = _least(length, audio)
    if whole > length:
        part_N = np.pad(part_N, (0, whole - length))
    inner_N = part_N[max(0, low) - first : min(high, whole) - first]
    if low >= 0 and high <= whole:
        return inner_N
    before_N = part_N[1:][: max(0, -low)][::-1]
    after_N = part_N[whole - 1 - max(0, high - whole) - first : whole - 1 - first][::-1]
    return np.concatenate([before_N, inner_N, after_N])


def lead(audio: AudioConfig) -> int:
    """Samples before the middle of a column that it is computed from."""
    return -_window(audio, 0, 1)[0]


def reach(audio: AudioConfig, frames: int) -> int:
    """Samples, `lead` included, that hold all that so many columns of a recording are computed from.

    Also those of any clip that has no more columns.
    """
    whole = frames * audio.hop + (audio.hop - frames % 2) // 2  # a half is rounded to the even number
    return lead(audio) + max(whole, _window(audio, 0, frames)[1])


def excerpt_jax(
    waveform_BxN: jax.Array, length_B: jax.Array, start_B: jax.Array, audio: AudioConfig, frames: int
) -> jax.Array:
    """`excerpt` of a window of clips whose lengths are known only when the program runs, traceable.

    Args:
      waveform_BxN: float32, each clip at the start of its row.
      length_B: int32, samples of each clip, 1 to N; what lies beyond changes nothing.
      start_B: int32, the sample under the middle of the first column.
      audio: the front end; static under jit.
      frames: columns; static under jit.

    Returns:
      float32 (B, W), W = excerpt_size(audio, frames). What is only under columns beyond a clip's last has no meaning.
    """
    import jax.numpy as jnp

    low, high = _window(audio, 0, frames)
    whole_Bx1 = jnp.maximum(length_B, _least(0, audio))[:, None]
    at_BxW = jnp.abs(start_B[:, None] + np.arange(low, high, dtype=np.int32))  # reflected at the start
    at_BxW = jnp.where(at_BxW < whole_Bx1, at_BxW, jnp.maximum(2 * (whole_Bx1 - 1) - at_BxW, 0))  # and at the end
    last = waveform_BxN.shape[1] - 1
    read_BxW = jnp.take_along_axis(waveform_BxN, jnp.minimum(at_BxW, last), axis=1, mode="clip")
    return jnp.where(at_BxW < length_B[:, None], read_BxW, 0)


@functools.lru_cache(maxsize=8)
def mel_basis(audio: AudioConfig) -> np.ndarray:
    """Slaney mel filters, float32 (F, K), K = fft // 2 + 1; read-only."""
    import librosa.filters  # a second to import; only those who compute features pay it

    basis_FxK = librosa.filters.mel(
        sr=audio.sample_rate, n_fft=audio.fft, n_mels=audio.mels, fmin=audio.fmin, fmax=audio.highest
    )
    basis_FxK.flags.writeable = False
    return basis_FxK


def bin_of_hertz(hertz: float | np.ndarray, audio: AudioConfig) -> np.ndarray:
    """The place of a frequency among the mel bins, float64: 0 at the centre of the first filter, 1 of the second."""
    import librosa

    low, high, at = (librosa.hz_to_mel(each) for each in (audio.fmin, audio.highest, hertz))
    return np.asarray((at - low) / (high - low) * (audio.mels + 1) - 1)


@functools.lru_cache(maxsize=8)
def _filters(audio: AudioConfig) -> Any:
    """`mel_basis` by its rows' few numbers that are not zero: of a bin's power at most two filters take a share."""
    import scipy.sparse

    return scipy.sparse.csr_array(mel_basis(audio))


@functools.lru_cache(maxsize=8)
def hann(audio: AudioConfig) -> np.ndarray:
    """Periodic Hann window, float32 (audio.window,), read-only."""
    window_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(audio.window) / audio.window)).astype(np.float32)
    window_W.flags.writeable = False
    return window_W


@functools.lru_cache(maxsize=8)
def fourier(audio: AudioConfig) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosines and sines around the window's middle, float64, read-only.

    Returns:
      (W // 2, K) for samples 1, 2, ... as far as the middle, and ((W - 1) // 2, K) for those before it.
    """
    sample_J = np.arange(1, audio.window // 2 + 1)[:, None]
    angle_JxK = 2 * np.pi * (sample_J - audio.window / 2) * np.arange(audio.fft // 2 + 1) / audio.fft
    window_J = 0.5 - 0.5 * np.cos(2 * np.pi * sample_J / audio.window)
    cosines, sines = window_J * np.cos(angle_JxK), (window_J * np.sin(angle_JxK))[: (audio.window - 1) // 2]
    cosines.flags.writeable = sines.flags.writeable = False
    return cosines, sines


def _product(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """`x @ matrix` to more than the digits of float32, where the large terms of a sum cancel; entries are -1 to 1.

    What x and the matrix have in their first seven bits is multiplied and added without rounding, in bfloat16 too; the
    rest is so much smaller that its rounding is. A program's file holds a byte of the first and a float32 of the rest.
    """
    import jax
    import jax.numpy as jnp

    exact = jax.lax.Precision.HIGHEST
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    powers = np.float32(2) ** np.arange(-100, 128, dtype=np.float32)  # looked up: not every runtime takes floats apart
    step = jnp.max(jnp.where(powers <= top, powers, powers[0]), axis=-1, keepdims=True) / 2**6
    coarse = jnp.round(x / step) * step
    tops = np.clip(np.round(matrix * 2**7), -127, 127)
    fine_matrix = (matrix - tops / 2**7).astype(np.float32)
    coarse_matrix = jnp.asarray(tops.astype(np.int8)).astype(jnp.float32) / 2**7
    rest = jnp.matmul(coarse, fine_matrix, precision=exact)
    rest += jnp.matmul(x - coarse, coarse_matrix + fine_matrix, precision=exact)
    return jnp.matmul(coarse, coarse_matrix) + rest


def _window(audio: AudioConfig, start: int, frames: int) -> tuple[int, int]:
    """First and last (exclusive) of the samples under some columns; negative ones lie before the clip."""
    first = start * audio.hop - audio.fft // 2 + (audio.fft - audio.window) // 2
    return first, first + excerpt_size(audio, frames)


def _least(length: int, audio: AudioConfig) -> int:
    """Samples of a clip once zeros are appended to one that is too short to be reflected by half a transform."""
    return max(length, audio.fft // 2 + 1)
