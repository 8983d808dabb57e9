"""Schedule and optimiser: AdamW, warm-up and cosine, decay only where it belongs."""

from __future__ import annotations

from typing import Any

import jax
import optax

from datar_jax.config import OptimConfig

DECAYED = ("kernel",)  # biases, norms, position tables and learned signals are not


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, then cosine to `final_rate` of it at `steps`."""
    warmup = min(round(config.warmup * steps), steps - 1)
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, max(steps, warmup + 1), peak * config.final_rate
    )


def decay_mask(params: Any) -> Any:
    """True for every parameter that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def optimiser(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW."""
    adamw = optax.adamw(schedule(config, steps), b2=config.beta2, weight_decay=config.weight_decay, mask=decay_mask)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
