"""The function that an exported model computes: from waveforms to probabilities, traceable as a whole.

The log-mel front end runs on the device. A clip is at the start of an array of fixed size and its length is an
argument; everything that depends on the length (frames, reflection at the end) is index arithmetic, so one program
serves clips of all lengths. For a recording longer than the window, the array holds the window and the samples of left
context that its first frame needs; the start of the window is another argument.

Shapes: B batch, N samples of the window, W samples of its frames, F mel bins, T frames, S classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array

from datar_jax.audio.framing import columns, window_samples
from datar_jax.audio.log_mel_jax import frame_samples_jax, log_mel_jax
from datar_jax.config import AudioConfig, Config
from datar_jax.models.spec import ModelSpec, predict
from datar_jax.ops.sampling import Method

WaveformModel = Callable[[Any, Array, Array, Array], Array]


def make_waveform_model(
    config: Config,
    head_sizes: tuple[int, ...],
    classes: int,
    frames: int,
    mean: float,
    std: float,
    sampler: Method = "auto",
) -> WaveformModel:
    """Builds the function from waveforms to probabilities.

    Args:
      config: of the run that trained the model; uses `audio`, `model` and `data.labels`.
      head_sizes: number of classes of each head; empty for a single head.
      classes: S, the total over all heads.
      frames: T, length of the window.
      mean: of the training spectrograms, dB.
      std: standard deviation of the training spectrograms, dB.
      sampler: formulation of bilinear sampling; ONNX needs `gather`.

    Returns:
      A pure function of

      - params: the model's parameters, float32;
      - waveform_BxN: float32 samples at `config.audio.sample_rate`, N = framing.window_samples(config.audio, T);
      - length_B: int32, number of valid samples, 1 to N; samples beyond have no effect;
      - start_B: int32, sample at which the window begins: 0 for a whole clip,
        `framing.left_context(config.audio)` inside one.

      It returns float32 (B, S): probabilities over each head's classes ("single") or of each class ("multi"). It raises
      ValueError for another N.
    """
    audio, samples = config.audio, window_samples(config.audio, frames)
    settings = msgspec.structs.replace(config.model, remat=False)  # of derivatives, which nobody takes here
    spec = ModelSpec(msgspec.structs.replace(config, model=settings), classes, frames, 1, head_sizes)

    def waveform_model(params: Any, waveform_BxN: Array, length_B: Array, start_B: Array) -> Array:
        if waveform_BxN.ndim != 2 or waveform_BxN.shape[1] != samples:
            raise ValueError(f"waveform_BxN has shape {waveform_BxN.shape}; give (B, {samples}), {frames} frames")
        with jax.named_scope("front_end"):
            frames_B = columns_jax(length_B - start_B, audio, frames)
            excerpt_BxW = frame_samples_jax(waveform_BxN, length_B, start_B, audio, frames)
            mel_BxFxT = log_mel_jax(excerpt_BxW, frames_B, audio)
        return predict(spec, params, mel_BxFxT, frames_B, mean, std, sampler)[0]

    return waveform_model


def columns_jax(length_B: Array, audio: AudioConfig, frames: int) -> Array:
    """Number of frames of traced lengths, as `framing.columns`, at most `frames`: int32 (B,).

    float32 cannot reproduce the rounded float64 quotient, so the least length of each frame count is a constant table.
    """
    lengths = np.arange((frames + 1) * audio.hop_length)
    least_T = np.searchsorted(columns(lengths, audio), np.arange(1, frames + 1)).astype(np.int32)
    return (length_B[:, None] >= least_T[None]).sum(1, dtype=jnp.int32)
