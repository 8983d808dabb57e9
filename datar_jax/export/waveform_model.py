"""From samples to probabilities, all of it one traceable function: what an exported model computes.

The front end is the device's. A clip lies at the start of an array of fixed size, and how many of its samples are sound
is an argument; what its length decides (its columns, where its end is reflected) is index arithmetic, so that one
program serves clips of all lengths. Of a recording that is longer than the model's window, the array holds a part: the
window and, before it, the samples that its first column needs, whose number is another argument.

Shapes: B batch, N samples of the window, W samples under its columns, F mel bins, T frames, S classes.
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
from datar_jax.audio.log_mel import normalize
from datar_jax.audio.log_mel_jax import frame_samples_jax, log_mel_jax
from datar_jax.config import AudioConfig, Config
from datar_jax.models.datar import create_model
from datar_jax.models.heads import probabilities
from datar_jax.ops.sampling import Method

Program = Callable[[Any, Array, Array, Array], Array]


def waveform_program(
    config: Config,
    heads: tuple[int, ...],
    classes: int,
    frames: int,
    mean: float,
    std: float,
    sampler: Method = "auto",
) -> Program:
    """The function from waveforms to probabilities.

    Args:
      config: of the run that trained the model; `audio`, `model` and `data.labels` are used.
      heads: classes of each head; none: one head has all.
      classes: S, of all heads together.
      frames: T, columns of the window that the model's position tables were made for.
      mean: of the training spectrograms, decibels.
      std: their deviation, decibels.
      sampler: formulation of bilinear sampling; ONNX needs `gather`.

    Returns:
      A pure function of

      - params: the model's parameters, float32;
      - waveform_BxN: float32 samples at `config.audio.sample_rate`, N = framing.window_samples(config.audio, T);
      - length_B: int32, how many of them are sound, 1 to N; what lies beyond changes nothing;
      - start_B: int32, which sample the window begins at: 0 for a whole clip,
        `framing.left_context(config.audio)` inside one.

      It gives float32 (B, S): probabilities over each head's classes ("single") or of each class ("multi"), and raises
      ValueError for another N.
    """
    audio, samples = config.audio, window_samples(config.audio, frames)
    settings = msgspec.structs.replace(config.model, remat=False)  # of derivatives, which nobody takes here
    model = create_model(settings, classes, audio.n_mels, frames, sampler=sampler)

    def program(params: Any, waveform_BxN: Array, length_B: Array, start_B: Array) -> Array:
        if waveform_BxN.ndim != 2 or waveform_BxN.shape[1] != samples:
            raise ValueError(f"waveform_BxN has shape {waveform_BxN.shape}; give (B, {samples}), {frames} frames")
        with jax.named_scope("front_end"):
            frames_B = columns_jax(length_B - start_B, audio, frames)
            excerpt_BxW = frame_samples_jax(waveform_BxN, length_B, start_B, audio, frames)
            mel_BxFxT = normalize(log_mel_jax(excerpt_BxW, frames_B, audio), mean, std)
        logits_BxS, _ = model.apply({"params": params}, mel_BxFxT, frames_B)
        return probabilities(logits_BxS, config.data.labels, heads)

    return program


def columns_jax(length_B: Array, audio: AudioConfig, frames: int) -> Array:
    """`store.columns` of lengths that are known only when the program runs, `frames` at most: int32 (B,).

    A rounded quotient of float64 cannot be had in float32: the least length that reaches each column is looked up.
    """
    lengths = np.arange((frames + 1) * audio.hop_length)
    least_T = np.searchsorted(columns(lengths, audio), np.arange(1, frames + 1)).astype(np.int32)
    return (length_B[:, None] >= least_T).sum(1, dtype=jnp.int32)
