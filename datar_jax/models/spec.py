"""Settings and sizes that a model is built from, and the spectrograms that it reads."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from datar_jax.audio.log_mel_jax import log_mel_jax
from datar_jax.config import Config
from datar_jax.models.datar import DATAR, create_model
from datar_jax.training.augment import Batch


@dataclass(frozen=True)
class Task:
    """Settings and sizes that a step is compiled for. Folds of a cross-validation share one."""

    config: Config
    classes: int
    frames: int  # of the window
    steps: int  # of the whole run
    heads: tuple[int, ...] = ()  # classes of each head; empty: one head has all

    def model(self, train: bool) -> DATAR:
        """The network, for training or for use."""
        return create_model(self.config.model, self.classes, self.config.audio.n_mels, self.frames, train=train)


def spectrograms(task: Task, batch: Batch) -> Batch:
    """`mel` `(B, F, T)` in decibels and `frames` of a batch, computed from its samples with the device front end."""
    if task.config.audio.frontend == "host":
        return {"mel": batch["mel"], "frames": batch["frames"]}
    with jax.named_scope("front_end"):
        samples_BxN = batch["samples"].astype(jnp.float32) * batch["scale"][:, None]
        return {"mel": log_mel_jax(samples_BxN, batch["frames"], task.config.audio), "frames": batch["frames"]}
