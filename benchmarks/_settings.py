"""The five deformable attentions that every benchmark of them measures, and how a row of numbers is printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datar_jax.models.mixers.deformable import DeformableAttention
from datar_jax.ops.sampling import Method


class Setting(NamedTuple):
    dim: int
    heads: int
    groups: int
    size: tuple[int, int]
    stride: int
    kernel: int

    @property
    def keys(self) -> int:
        return int(np.prod([-(-n // self.stride) for n in self.size]))

    def module(self, method: Method = "auto", dtype: type = jnp.float32) -> DeformableAttention:
        return DeformableAttention(
            self.heads, self.groups, self.stride, self.kernel, self.size, sampler=method, dtype=dtype
        )

    def macs(self, batch: int) -> int:
        """Of one forward: projections, products with keys and values, offset network; blending is not counted."""
        queries, keys = int(np.prod(self.size)), self.keys
        projections = (2 * queries + 2 * keys) * self.dim**2
        attention = 2 * queries * keys * self.dim
        offsets = keys * self.dim * (self.kernel**2 + 2)
        return batch * (projections + attention + offsets)


SETTINGS = {
    "tiny, stage 3": Setting(384, 12, 3, (8, 64), 1, 5),
    "tiny, stage 4": Setting(768, 24, 6, (4, 32), 1, 3),
    "strided, stage 3": Setting(256, 8, 4, (8, 64), 2, 5),
    "strided, stage 2": Setting(128, 4, 2, (16, 128), 4, 7),
    "strided, stage 1": Setting(64, 2, 1, (32, 256), 8, 9),
}


def parameters(module: DeformableAttention, x: jax.Array) -> dict:
    """Random, with offsets and biases away from zero."""
    params = module.init(jax.random.key(0), x[:1])["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [p + 0.05 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys)])


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def header(cells: Iterable[str]) -> str:
    cells = list(cells)
    return f"{row(*cells)}\n|{'---|' * len(cells)}"
