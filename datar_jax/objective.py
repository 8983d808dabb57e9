"""What training lowers and what the head's numbers mean: losses and scores.

Shapes: B batch, S classes. Everything here is a pure function and computes in float32 whatever the logits' type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Labels = Literal["single", "multi"]
Loss = Callable[[jax.Array, jax.Array, float], jax.Array]


def softmax_loss(logits_BxS: jax.Array, target_BxS: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy with a distribution over the classes, per clip.

    Args:
      logits_BxS: output of the head.
      target_BxS: rows that sum to 1 (one-hot, or mixed by mixup).
      smoothing: share of the target that is spread evenly over all classes.

    Returns:
      loss_B in float32.
    """
    _check(logits_BxS, target_BxS)
    target_BxS = target_BxS.astype(jnp.float32) * (1 - smoothing) + smoothing / logits_BxS.shape[-1]
    return -jnp.sum(target_BxS * jax.nn.log_softmax(logits_BxS.astype(jnp.float32)), axis=-1)


def sigmoid_loss(logits_BxS: jax.Array, target_BxS: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Binary cross-entropy of every class, averaged over the classes, per clip.

    Args:
      logits_BxS: output of the head.
      target_BxS: 0 to 1 for each class on its own.
      smoothing: how far both answers move towards one half (1 moves them all the way).

    Returns:
      loss_B in float32.
    """
    _check(logits_BxS, target_BxS)
    target_BxS = target_BxS.astype(jnp.float32) * (1 - smoothing) + smoothing / 2
    logits_BxS = logits_BxS.astype(jnp.float32)
    yes_BxS, no_BxS = jax.nn.log_sigmoid(logits_BxS), jax.nn.log_sigmoid(-logits_BxS)
    return -jnp.mean(target_BxS * yes_BxS + (1 - target_BxS) * no_BxS, axis=-1)


def loss(labels: Labels) -> Loss:
    """The loss for clips with one class each ("single") or any number of them ("multi")."""
    return {"single": softmax_loss, "multi": sigmoid_loss}[labels]


def scores(logits_BxS: jax.Array, labels: Labels) -> jax.Array:
    """Probabilities in float32: over the classes ("single") or of each class by itself ("multi")."""
    return {"single": jax.nn.softmax, "multi": jax.nn.sigmoid}[labels](logits_BxS.astype(jnp.float32))


def _check(logits_BxS: jax.Array, target_BxS: jax.Array) -> None:
    if logits_BxS.ndim != 2 or logits_BxS.shape != target_BxS.shape:
        raise ValueError(f"logits {logits_BxS.shape} and targets {target_BxS.shape}: both must be (batch, classes)")
