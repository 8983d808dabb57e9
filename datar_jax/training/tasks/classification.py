"""Classification losses.

Shapes: B batch, S classes. Where several questions are asked of a clip, each is answered by a head of so many classes,
and the S are those of all heads, one head after another. Everything here is a pure function and computes in float32
whatever the logits' type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from datar_jax.labels import Labels
from datar_jax.models.heads import split_heads

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


def loss(labels: Labels, head_sizes: tuple[int, ...] = ()) -> Loss:
    """The loss for clips with one class of each head ("single") or any number of classes ("multi").

    Cross-entropies of several heads are summed: the negative log likelihood of their answers together. The baselines of
    EPIC-KITCHENS-100 (TSN, TRN, TSM and Auditory SlowFast) train on the mean of verb's and noun's, which is half of it:
    AdamW takes the same steps on both, but for `optim.clip_norm`.

    Args:
      labels: which of the two.
      head_sizes: numbers of classes, S in all; none: one head.
    """
    if labels == "multi":
        return sigmoid_loss

    def summed(logits_BxS: jax.Array, target_BxS: jax.Array, smoothing: float = 0.0) -> jax.Array:
        parts = zip(split_heads(logits_BxS, head_sizes), split_heads(target_BxS, head_sizes))
        return functools.reduce(jnp.add, [softmax_loss(logits, target, smoothing) for logits, target in parts])

    return summed


def _check(logits_BxS: jax.Array, target_BxS: jax.Array) -> None:
    if logits_BxS.ndim != 2 or logits_BxS.shape != target_BxS.shape:
        raise ValueError(f"logits {logits_BxS.shape} and targets {target_BxS.shape}: both must be (batch, classes)")
