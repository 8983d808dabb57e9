"""Settings and sizes that a model is built from, and the spectrograms that it reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax import Array

from datar_jax.audio.log_mel_jax import log_mel_jax, normalize
from datar_jax.config import Config, ConfigError
from datar_jax.models.datar import DATAR, create_model
from datar_jax.models.heads import probabilities
from datar_jax.ops.sampling import Method

Batch = dict[str, Array]


@dataclass(frozen=True)
class ModelSpec:
    """Settings and sizes that a step is compiled for. Folds of a cross-validation share one."""

    config: Config
    classes: int
    frames: int  # of the window
    steps: int  # of the whole run
    head_sizes: tuple[int, ...] = ()  # classes of each head; empty: one head has all

    def model(self, train: bool, sampler: Method = "auto") -> DATAR:
        """The network, for training or for inference; `sampler` is the formulation of bilinear sampling."""
        mels = self.config.audio.n_mels
        return create_model(self.config.model, self.classes, mels, self.frames, train=train, sampler=sampler)


def spectrograms(spec: ModelSpec, batch: Batch) -> Batch:
    """`mel` `(B, F, T)` in decibels and `frames` of a batch, computed from its samples with the device front end."""
    if spec.config.audio.frontend == "host":
        return {"mel": batch["mel"], "frames": batch["frames"]}
    with jax.named_scope("front_end"):
        samples_BxN = batch["samples"].astype(jnp.float32) * batch["scale"][:, None]
        return {"mel": log_mel_jax(samples_BxN, batch["frames"], spec.config.audio), "frames": batch["frames"]}


@contextlib.contextmanager
def weights_of_a_model() -> Iterator[None]:
    """A block in which parameters that others wrote are applied.

    Raises:
      ConfigError: they are of another model.
    """
    try:
        yield
    except FlaxError as error:
        raise ConfigError(f"the weights are of another model than its description ({str(error)[:200]!a})") from None


def predict(
    spec: ModelSpec,
    params: Any,
    mel_BxFxT: Array,
    frames_B: Array,
    mean: Array | float,
    std: Array | float,
    sampler: Method = "auto",
) -> tuple[Array, Any]:
    """The evaluation forward pass: normalizes spectrograms and applies the model and its heads.

    Args:
      spec: static.
      params: of the model.
      mel_BxFxT: decibels.
      frames_B: int32, valid columns.
      mean: of the training spectrograms, decibels.
      std: their standard deviation, decibels.
      sampler: formulation of bilinear sampling.

    Returns:
      Probabilities `(B, S)` float32, over each head's classes ("single") or of each class ("multi"), and the other
      outputs of the model.

    Raises:
      ConfigError: the parameters are of another model.
    """
    mel_BxFxT = normalize(mel_BxFxT, mean, std)
    with weights_of_a_model():
        logits_BxS, outputs = spec.model(train=False, sampler=sampler).apply({"params": params}, mel_BxFxT, frames_B)
    return probabilities(logits_BxS, spec.config.data.labels, spec.head_sizes), outputs
