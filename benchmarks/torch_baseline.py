"""Baseline: deformable attention in PyTorch, on `torch.nn.functional.grid_sample`.

The same mathematics as `datar_jax.models.mixers.deformable.DeformableAttention` (grid `centre`, bounded offsets,
position table), with the same weights. Maps are `(B, C, F, T)`. `fused` takes PyTorch's own
scaled_dot_product_attention instead of a softmax between two products; `datar_jax` is compared with whichever is
faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class TorchDeformableAttention(nn.Module):
    def __init__(
        self, dim: int, heads: int, groups: int, stride: int, kernel: int, size: tuple[int, int], fused: bool
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.fused = heads, groups, size, fused
        width = dim // groups
        self.query, self.key, self.value, self.out = (nn.Conv2d(dim, dim, 1) for _ in range(4))
        self.depthwise = nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.project = nn.Conv2d(width, 2, 1, bias=False)
        self.table = nn.Parameter(torch.zeros(heads, 2 * size[0] - 1, 2 * size[1] - 1))
        rows, times = (-(-n // stride) for n in size)
        self.keys = (rows, times)
        reference = np.stack(np.meshgrid(*(_centres(n, k) for n, k in zip(size, self.keys)), indexing="ij"), -1)
        lattice = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(1, -1, 1, 2)
        self.register_buffer("reference", torch.tensor(reference, dtype=torch.float32))
        self.register_buffer("lattice", torch.tensor(lattice, dtype=torch.float32))
        self.register_buffer("cell", torch.tensor([n / k for n, k in zip(size, self.keys)]))
        self.register_buffer("last", torch.tensor(size, dtype=torch.float32) - 1)
        self.register_buffer("bound", torch.tensor(size, dtype=torch.float32))

    def load(self, params: dict[str, Any]) -> None:
        """Takes the weights of a flax `DeformableAttention`."""

        def put(parameter: Tensor, value: Any) -> None:
            parameter.data.copy_(torch.tensor(np.asarray(value)).reshape(parameter.shape))

        for name in ("query", "key", "value", "out"):
            put(getattr(self, name).weight, np.asarray(params[name]["kernel"]).T)
            put(getattr(self, name).bias, params[name]["bias"])
        offset = params["offset"]
        put(self.depthwise.weight, np.moveaxis(np.asarray(offset["kernel"]), -1, 0))
        put(self.depthwise.bias, offset["bias"])
        put(self.norm.weight, offset["norm"]["scale"])
        put(self.norm.bias, offset["norm"]["bias"])
        put(self.project.weight, np.asarray(offset["project"]["kernel"]).T)
        put(self.table, params["table"])

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, t = x.shape
        groups, heads, n = self.groups, self.heads, self.keys[0] * self.keys[1]
        q = self.query(x)
        moved = self.depthwise(q.reshape(b * groups, c // groups, f, t))
        moved = F.gelu(self.norm(moved.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        raw = self.project(moved).permute(0, 2, 3, 1)
        position = self.reference + torch.tanh(raw.float()) * self.cell  # pixels, (B G, Fk, Tk, 2)

        grid = (position * (2 / self.last) - 1).flip(-1).to(x.dtype)
        sampled = F.grid_sample(x.reshape(b * groups, c // groups, f, t), grid, align_corners=True)
        sampled = sampled.reshape(b, c, 1, n)
        k, v = self.key(sampled), self.value(sampled)

        # Displacements beyond the table read its edge.
        keys = torch.minimum(position.clamp(min=-1), self.bound).reshape(b * groups, 1, n, 2)
        reach = F.pad(self.table[None], (1, 1, 1, 1), mode="replicate")[0].to(x.dtype)
        away = ((self.lattice - keys) / self.bound).flip(-1).to(x.dtype)
        tables = reach.reshape(1, groups, heads // groups, *reach.shape[1:]).expand(b, -1, -1, -1, -1).flatten(0, 1)
        bias = F.grid_sample(tables, away, align_corners=True).reshape(b, heads, f * t, n)

        q, k, v = (part.reshape(b, heads, c // heads, -1).transpose(2, 3) for part in (q, k, v))
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            out = (q @ k.transpose(2, 3) * (c // heads) ** -0.5 + bias).softmax(-1) @ v
        return self.out(out.transpose(2, 3).reshape(b, c, f, t))


def _centres(size: int, keys: int) -> np.ndarray:
    return (np.arange(keys) + 0.5) * (size / keys) - 0.5
