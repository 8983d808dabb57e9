"""Slaney's mel scale and the filters on it, bit for bit those of librosa, whose import alone takes most of a second.

The scale of Slaney's Auditory Toolbox (1998): a mel is 200/3 Hz up to 1 kHz; above, 27 mels are a factor of 6.4.
Shapes: F mel bins (low to high), K bins of the transform.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datar_jax.config import AudioConfig

LINE = 200.0 / 3  # Hz to a mel below the turn
TURN_HZ = 1000.0
TURN_MEL = TURN_HZ / LINE
STEP = np.log(6.4) / 27  # of the logarithm of the frequency, to a mel above the turn


@functools.lru_cache(maxsize=8)
def mel_basis(audio: AudioConfig) -> NDArray[np.float32]:
    """Slaney mel filters, float32 (F, K), K = fft // 2 + 1; read-only.

    Each is a triangle from its lower neighbour's centre to its upper neighbour's, of area 1 over hertz. It warns of
    filters so narrow that they lie between two bins of the transform and hear nothing.
    """
    edges = to_hertz(np.linspace(to_mel(audio.fmin), to_mel(audio.highest), audio.mels + 2))
    low_Fx1, centre_Fx1, high_Fx1 = (edges[i : i + audio.mels, None] for i in range(3))
    hertz_K = np.fft.rfftfreq(audio.fft, 1.0 / audio.sample_rate)
    rising_FxK = (hertz_K - low_Fx1) / (centre_Fx1 - low_Fx1)
    falling_FxK = (high_Fx1 - hertz_K) / (high_Fx1 - centre_Fx1)
    triangle_FxK = np.maximum(0, np.minimum(rising_FxK, falling_FxK)).astype(np.float32)  # rounded here, as librosa's
    basis_FxK = (triangle_FxK * (2.0 / (high_Fx1 - low_Fx1))).astype(np.float32)
    if deaf := int((basis_FxK.max(1) == 0).sum()):
        warnings.warn(
            f"audio.mels={audio.mels}: {deaf} filters hear no frequency of a transform of {audio.fft} samples; "
            "give fewer audio.mels, or a longer audio.window_ms",
            stacklevel=2,
        )
    basis_FxK.flags.writeable = False
    return basis_FxK


def bin_of_hertz(hertz: ArrayLike, audio: AudioConfig) -> NDArray[np.float64]:
    """The place of a frequency among the mel bins, float64: 0 at the centre of the first filter, 1 of the second."""
    low, high = to_mel(audio.fmin), to_mel(audio.highest)
    return np.asarray((to_mel(hertz) - low) / (high - low) * (audio.mels + 1) - 1)


def to_mel(hertz: ArrayLike) -> NDArray[np.float64]:
    """Frequencies in hertz as mels; of any shape."""
    hertz = np.asarray(hertz, np.float64)
    above = TURN_MEL + np.log(np.maximum(hertz, TURN_HZ) / TURN_HZ) / STEP
    return np.where(hertz < TURN_HZ, hertz / LINE, above)


def to_hertz(mel: ArrayLike) -> NDArray[np.float64]:
    """Mels as frequencies in hertz, the inverse of `to_mel`."""
    mel = np.asarray(mel, np.float64)
    above = TURN_HZ * np.exp(STEP * (np.maximum(mel, TURN_MEL) - TURN_MEL))
    return np.where(mel < TURN_MEL, LINE * mel, above)
