"""Log-mel spectrograms on the device, inside a compiled step."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax import Array

from datar_jax.audio.framing import min_samples, window_bounds
from datar_jax.audio.log_mel import mel_basis
from datar_jax.config import AudioConfig


def log_mel_jax(excerpt_BxN: jax.Array, frames_B: jax.Array, audio: AudioConfig) -> jax.Array:
    """Log-mel spectrograms of a batch, traceable and differentiable: matrix products, no FFT, no gather.

    The window lies in matrices of cosines and sines. Samples at equal distance from a window's middle share a cosine,
    and a sine but for its sign: their sums and differences halve the work. Against librosa in double precision the
    result errs less than a fast transform in single precision.

    Args:
      excerpt_BxN: float32, N = (T - 1) * audio.hop_length + audio.win_length.
      frames_B: valid columns of each clip; the others are set to the floor.
      audio: the front end; static under jit.

    Returns:
      float32 (B, F, T) in decibels.

    Raises:
      ValueError: N is no such number.
    """
    import jax  # here, not above: the processes that decode and read need none of it
    import jax.numpy as jnp

    length, window, hop = excerpt_BxN.shape[-1], audio.win_length, audio.hop_length
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
    cosines, sines = dft_matrices(audio)
    power_BxTxK = jnp.square(_product(even, cosines)) + jnp.square(_product(odd, sines))
    mel_BxFxT = jnp.einsum("fk,btk->bft", mel_basis(audio), power_BxTxK, precision=exact)
    sound_BxT = jnp.arange(frames)[None] < frames_B[:, None]
    least = 10 ** (audio.floor_db / 10)
    return 10 * jnp.log10(jnp.maximum(jnp.where(sound_BxT[:, None], mel_BxFxT, least), least))


def frame_samples_jax(
    waveform_BxN: jax.Array, length_B: jax.Array, start_B: jax.Array, audio: AudioConfig, frames: int
) -> jax.Array:
    """`framing.frame_samples` for clips whose lengths are known only at run time, traceable.

    Args:
      waveform_BxN: float32, each clip at the start of its row.
      length_B: int32, samples of each clip, 1 to N; what lies beyond changes nothing.
      start_B: int32, the sample under the middle of the first column.
      audio: the front end; static under jit.
      frames: columns; static under jit.

    Returns:
      float32 (B, W), W = num_samples(audio, frames). What is only under columns beyond a clip's last has no meaning.
    """
    import jax.numpy as jnp

    low, high = window_bounds(audio, 0, frames)
    whole_Bx1 = jnp.maximum(length_B, min_samples(0, audio))[:, None]
    at_BxW = jnp.abs(start_B[:, None] + np.arange(low, high, dtype=np.int32)[None])  # reflected at the start
    at_BxW = jnp.where(at_BxW < whole_Bx1, at_BxW, jnp.maximum(2 * (whole_Bx1 - 1) - at_BxW, 0))  # and at the end
    last = waveform_BxN.shape[1] - 1
    read_BxW = jnp.take_along_axis(waveform_BxN, jnp.minimum(at_BxW, last), axis=1, mode="clip")
    return jnp.where(at_BxW < length_B[:, None], read_BxW, 0)


@functools.lru_cache(maxsize=8)
def dft_matrices(audio: AudioConfig) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosines and sines around the window's middle, float64, read-only.

    Returns:
      (W // 2, K) for samples 1, 2, ... as far as the middle, and ((W - 1) // 2, K) for those before it.
    """
    sample_J = np.arange(1, audio.win_length // 2 + 1)[:, None]
    angle_JxK = 2 * np.pi * (sample_J - audio.win_length / 2) * np.arange(audio.n_fft // 2 + 1) / audio.n_fft
    window_J = 0.5 - 0.5 * np.cos(2 * np.pi * sample_J / audio.win_length)
    cosines, sines = window_J * np.cos(angle_JxK), (window_J * np.sin(angle_JxK))[: (audio.win_length - 1) // 2]
    cosines.flags.writeable = sines.flags.writeable = False
    return cosines, sines


def _product(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """`x @ matrix` beyond float32 accuracy, for sums whose large terms cancel; entries are -1 to 1.

    What x and the matrix have in their first seven bits is multiplied and added without rounding, in bfloat16 too; the
    rest is so much smaller that its rounding is. A program's file holds a byte of the first and a float32 of the rest.
    """
    import jax
    import jax.numpy as jnp

    exact = jax.lax.Precision.HIGHEST
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    # Looked up: not every runtime takes floats apart.
    powers = np.expand_dims(np.float32(2) ** np.arange(-100, 128, dtype=np.float32), tuple(range(x.ndim - 1)))
    step = jnp.max(jnp.where(powers <= top, powers, powers.min()), axis=-1, keepdims=True) / 2**6
    coarse = jnp.round(x / step) * step
    tops = np.clip(np.round(matrix * 2**7), -127, 127)
    fine_matrix = (matrix - tops / 2**7).astype(np.float32)
    coarse_matrix = jnp.asarray(tops.astype(np.int8)).astype(jnp.float32) / 2**7
    rest = jnp.matmul(coarse, fine_matrix, precision=exact)
    rest += jnp.matmul(x - coarse, coarse_matrix + fine_matrix, precision=exact)
    return jnp.matmul(coarse, coarse_matrix) + rest


def normalize(mel: Array, mean: Array | float, std: Array | float) -> Array:
    """Normalizes decibels to zero mean and unit deviation over the data set."""
    return (mel - mean) / std
