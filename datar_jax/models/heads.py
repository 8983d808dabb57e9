"""Probabilities from logits, for each classification head."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from datar_jax.labels import Labels


def probabilities(logits_BxS: jax.Array, labels: Labels, head_sizes: tuple[int, ...] = ()) -> jax.Array:
    """Probabilities in float32: over the classes of each head ("single") or of each class by itself ("multi")."""
    logits_BxS = logits_BxS.astype(jnp.float32)
    if labels == "multi":
        return jax.nn.sigmoid(logits_BxS)
    return jnp.concatenate([jax.nn.softmax(logits) for logits in split_heads(logits_BxS, head_sizes)], axis=-1)


def split_heads(x_BxS: jax.Array, head_sizes: tuple[int, ...]) -> list[jax.Array]:
    """The columns of each head."""
    if head_sizes and sum(head_sizes) != x_BxS.shape[-1]:
        raise ValueError(f"heads of {head_sizes} classes over {x_BxS.shape}: they must share out all classes")
    return jnp.split(x_BxS, list(itertools.accumulate(head_sizes))[:-1], axis=-1) if len(head_sizes) > 1 else [x_BxS]
