"""Slow float64 definitions that fast code is tested against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

GRIDS = ("centre", "dat2022", "dat2023")


def bilinear(map_FxTxC: np.ndarray, position_Nx2: np.ndarray) -> np.ndarray:
    """The law itself in float64: four neighbours, each of them zero outside."""
    f, t, c = map_FxTxC.shape
    out = np.zeros((len(position_Nx2), c))
    for n, (row, time) in enumerate(np.asarray(position_Nx2, np.float64)):
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(time), math.floor(time) + 1):
                if 0 <= i < f and 0 <= j < t:
                    out[n] += (1 - abs(row - i)) * (1 - abs(time - j)) * map_FxTxC[i, j]
    return out


def to_pixels(unit: np.ndarray, size: int) -> np.ndarray:
    return (unit + 1) / 2 * (size - 1)


def bias_by_loops(table: np.ndarray, position: np.ndarray, size: tuple[int, int], grid: str) -> np.ndarray:
    """The law in float64: ours in pixels with the edge repeated, the published ones in units of half a map."""
    sides = table.shape[1:]
    if grid == "centre":
        reach = [max(0, n + 2 - (side + 1) // 2) for n, side in zip(size, sides)]
        table = np.pad(table, ((0, 0), *((r, r) for r in reach)), mode="edge")
        position = np.clip(position, -1, size)
        queries = [np.arange(n) for n in size]
        read = [q[:, None] - p + (side - 1) / 2 for q, p, side in zip(queries, position.T, table.shape[1:])]
    else:
        unit = [2 * position[:, a] / (size[a] - 1) - 1 for a in (0, 1)]
        lattice = [
            2 * (np.arange(n) + 0.5) / n - 1 if grid == "dat2022" else 2 * np.arange(n) / (n - 1) - 1 for n in size
        ]
        read = [to_pixels(0.5 * (q[:, None] - u), side) for q, u, side in zip(lattice, unit, sides)]
    f, t = size
    out = np.zeros((table.shape[0], f * t, len(position)))
    for i in range(f):
        for j in range(t):
            out[:, i * t + j] = bilinear(np.moveaxis(table, 0, -1), np.stack([read[0][i], read[1][j]], -1)).T
    return out


def network_by_loops(network: Any, position: np.ndarray, size: tuple[int, int], grid: str) -> np.ndarray:
    """Pair by pair: logarithm of the displacement, in pixels or in eighths of the map, two layers; `(H, M, N)`."""
    kernel, bias, heads = (np.asarray(network[name], np.float64) for name in ("kernel", "bias", "heads"))
    out = np.zeros((heads.shape[1], math.prod(size), len(position)))
    for m in range(math.prod(size)):
        query = np.array(divmod(m, size[1]), np.float64)
        if grid == "dat2022":
            query = (query + 0.5) / size * (np.array(size) - 1)
        for n, key in enumerate(np.asarray(position, np.float64)):
            apart = query - key
            if grid != "centre":
                apart = 4 * apart / ((np.array(size) - 1) / 2)
            spaced = np.sign(apart) * np.log2(np.abs(apart) + 1) / 3
            out[:, m, n] = np.maximum(spaced @ kernel + bias, 0) @ heads
    return out


def dense(params: Any, name: str, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"], np.float64)


def weigh(q_MxHxD: np.ndarray, k_NxHxD: np.ndarray, v_NxHxD: np.ndarray, bias_HxMxN: np.ndarray) -> np.ndarray:
    """softmax(q k / sqrt(D) + bias) v in float64; a bias of -inf forbids a pair."""
    score = np.einsum("mhd,nhd->hmn", q_MxHxD, k_NxHxD) / math.sqrt(q_MxHxD.shape[-1]) + bias_HxMxN
    weight = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("hmn,nhd->mhd", weight / weight.sum(-1, keepdims=True), v_NxHxD)


def lattice(*sizes: int) -> np.ndarray:
    """All pixels of a map, row-major, `(F T, 2)`."""
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, 2)
