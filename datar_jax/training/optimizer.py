"""AdamW with warm-up and cosine schedule, weight-decay mask and layer-wise learning rates.

optax is imported where it is used, so that a program which only uses a model starts without it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import jax

from datar_jax.config import OptimConfig

if TYPE_CHECKING:
    import optax

DECAYED = ("kernel",)  # biases, norms, position tables and learned signals are not,
SPARED = ("position",)  # nor the kernels of what stands in for a table, as published


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak, then cosine to `final_rate` of it at `steps`."""
    import optax

    warmup = min(round(config.warmup * steps), steps - 1)
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, max(steps, warmup + 1), peak * config.final_lr_ratio
    )


def decay_mask(params: Any) -> Any:
    """True for every parameter that weight decay applies to."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        return path[-1].key in DECAYED and not any(part.key in SPARED for part in path)

    return jax.tree_util.tree_map_with_path(decayed, params)


def rate_scales(config: OptimConfig, params: Any) -> Any:
    """Learning-rate multiplier of every parameter: 1 for the head, 0 where frozen.

    With `layer_decay` the last norm has 1 too, each block that share of the one above it, and the stem the smallest (as
    in BEiT, Bao et al., 2022); what lies between two stages goes with the block that follows.
    """
    names = [[part.key for part in path] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    order = sorted({block for name in names if (block := _block(name[0]))})
    depth = {block: i for i, block in enumerate(order, start=1)}

    def rate(path: tuple[Any, ...], _: Any) -> float:
        name = path[0].key
        if name == "head":
            return 1.0
        if config.freeze == "backbone":
            return 0.0
        below = {"norm": len(order) + 1, "stem": 0, "adaptor": 0}.get(name)
        if below is None:
            below = depth[_block(name) or (int(name.removeprefix("down_")), 0)]
        return float(config.layer_decay ** (len(order) + 1 - below))

    return jax.tree_util.tree_map_with_path(rate, params)


def _block(name: str) -> tuple[int, int] | None:
    """Stage and number of the block that a parameter's first name says."""
    found = re.fullmatch(r"stage_(\d+)_(\d+)", name)
    return (int(found[1]), int(found[2])) if found else None


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, then each parameter's share."""
    import optax

    parts = [optax.adamw(schedule(config, steps), b2=config.beta2, weight_decay=config.weight_decay, mask=decay_mask)]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.layer_decay < 1 or config.freeze == "backbone":
        parts.append(
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, r: u * r, updates, rate_scales(config, updates)))
        )
    return optax.chain(*parts) if len(parts) > 1 else parts[0]
