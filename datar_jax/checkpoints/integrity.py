"""What a stored state is known by: shape, dtype and CRC-32 of every distinct part of every array.

Each part is summed by the process that holds it, and can be verified on any other mesh.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_Span = tuple[tuple[int, int], ...]  # first and last (exclusive) index along each axis of an array


class Mismatch(Exception):
    """A state is not the one that was described; its text says where."""


def _leaves(state: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def describe(state: Any) -> dict[str, Any]:
    """Shape, dtype and checksums of every leaf; the same on every process."""
    parts, mine = [], []
    for name, leaf in _leaves(state):
        held = {
            _span(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards if shard.replica_id == 0
        }
        for span in sorted(
            {_span(index, leaf.shape) for index in leaf.sharding.devices_indices_map(leaf.shape).values()}
        ):
            parts.append((name, leaf, span))
            mine.append(_crc(np.asarray(held[span])) if span in held else 0)
    # Each part is held once as the first copy: elsewhere stands 0.
    sums = np.array(mine, np.uint32)
    if jax.process_count() > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).max(0)
    described: dict[str, Any] = {}
    for (name, leaf, span), crc in zip(parts, sums):
        entry = described.setdefault(name, {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc": {}})
        entry["crc"][",".join(f"{a}:{b}" for a, b in span)] = int(crc)
    return described


def compare(leaves: dict[str, Any], like: Any) -> None:
    """Refuses what was described of another model.

    Raises:
      Mismatch: the first array that differs in name, shape or dtype.
    """
    wanted = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in _leaves(like)}
    for name in [*wanted, *leaves]:
        if name not in leaves or name not in wanted:
            raise Mismatch(f"of another model: {name} is only in {'this' if name in wanted else 'that'} one")
        there = (leaves[name]["shape"], leaves[name]["dtype"])
        if there != wanted[name]:
            raise Mismatch(
                f"of another model: {name} is {there[1]}{there[0]} there, {wanted[name][1]}{wanted[name][0]} here"
            )


def verify(leaves: Mapping[str, Any], state: Any) -> None:
    """Compares checksums of a state, or of a part of one, on any mesh.

    Of several processes, each looks at the parts that lie whole with it.

    Raises:
      Mismatch: the first array that differs.
    """
    for name, leaf in _leaves(state):
        for text, crc in leaves[name]["crc"].items():
            span = tuple(tuple(map(int, pair.split(":"))) for pair in text.split(",") if pair)
            part = _part(leaf, span)  # type: ignore[arg-type]
            if part is not None and _crc(part) != crc:
                raise Mismatch(f"{name} does not hold the numbers that were written")


def _part(leaf: jax.Array, span: _Span) -> np.ndarray | None:
    """A part of a leaf, if this process can see it whole."""
    for shard in leaf.addressable_shards:
        home = _span(shard.index, leaf.shape)
        if all(h[0] <= s[0] and s[1] <= h[1] for h, s in zip(home, span)):
            return np.asarray(shard.data)[tuple(slice(s[0] - h[0], s[1] - h[0]) for h, s in zip(home, span))]
    if leaf.is_fully_addressable:
        return np.asarray(leaf)[tuple(slice(*s) for s in span)]
    return None


def _span(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Span:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape))


def _crc(part: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
