"""Checkpoint metadata (JSON with its own CRC-32), and shape, dtype and CRC-32 of arrays in checkpoints and exports.

Each shard of a train state is summed by the process that holds it, and can be verified on any other mesh.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from jax.experimental import multihost_utils

from datar_jax.escaping import printable
from datar_jax.foreign_files import read_regular
from datar_jax.typed_json import JsonError, decode_json

Plain = int | float | str | None
METADATA_BYTES = 1 << 26  # of names, shapes and checksums: hundreds of bytes for each array
_Span = tuple[tuple[int, int], ...]  # first and last (exclusive) index along each axis of an array


class BadCheckpoint(Exception):
    """Why one checkpoint cannot be used."""


class Mismatch(Exception):
    """A state differs from its fingerprint; the message names the first array that does."""


def stored_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first, whether they can be read or not."""
    return sorted((int(each.name) for each in folder.glob("*") if each.name.isdecimal()), reverse=True)


def metadata_path(folder: Path, step: int) -> Path:
    """Path of the metadata of a checkpoint."""
    return folder / str(step) / "meta" / "metadata"


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of one array of a state."""

    shape: tuple[int, ...]
    dtype: str
    crc: dict[str, int]  # of each shard, by its span along each axis: `0:8,0:300`


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything in a checkpoint but its state."""

    step: int
    data: dict[str, Plain]  # position of the training batches
    run: dict[str, Plain]  # such as the seconds trained so far
    score: float | None  # on the validation clips; the highest is the best
    leaves: dict[str, Leaf]
    crc: int  # of all the above


def read_metadata(folder: Path, step: int) -> Metadata:
    """Reads and verifies the metadata of a checkpoint.

    Raises:
      BadCheckpoint: it is missing, damaged, or of another checkpoint.
    """
    try:
        content = read_regular(metadata_path(folder, step), METADATA_BYTES)
        metadata = decode_json(content, Metadata)
    except FileNotFoundError:
        raise BadCheckpoint("it has no meta/metadata: not a complete checkpoint of this program") from None
    except (OSError, JsonError) as error:
        raise BadCheckpoint(f"meta/metadata cannot be read: {short_message(error)}") from None
    if (tree := json.loads(content)) != with_checksum(tree):
        raise BadCheckpoint("meta/metadata is not what was written")
    if metadata.step != step:
        raise BadCheckpoint(f"it is of step {metadata.step}")
    return metadata


def with_checksum(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with the CRC-32 of all else under `crc`."""
    metadata = {name: value for name, value in metadata.items() if name != "crc"}
    return {**metadata, "crc": zlib.crc32(json.dumps(metadata, sort_keys=True).encode())}


def rank_by_score(scores: Mapping[int, float], steps: Sequence[int]) -> list[int]:
    """Scored steps, best first; of equal scores the later step first."""
    return sorted((step for step in steps if step in scores), key=lambda step: (scores[step], step), reverse=True)


def short_message(error: BaseException) -> str:
    """One printable line of an error: the operating system's message, else the first line of the root cause."""
    while error.__cause__:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = line.partition(" [os_error_code=")[0]  # where tensorstore adds its settings
    return printable(line if len(line) < 160 else line.rsplit(": ", 1)[-1][:160])


def _leaves(state: Any) -> Iterator[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def fingerprint(state: Any) -> dict[str, Any]:
    """Shape, dtype and per-shard checksums of every leaf of a pytree of jax arrays; equal on every process."""
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
    # One process holds replica 0 of each shard; the others contribute 0.
    sums = np.array(mine, np.uint32)
    if jax.process_count() > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).max(0)
    leaves: dict[str, Any] = {}
    for (name, leaf, span), crc in zip(parts, sums):
        entry = leaves.setdefault(name, {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc": {}})
        entry["crc"][",".join(f"{a}:{b}" for a, b in span)] = int(crc)
    return leaves


def check_structure(leaves: Mapping[str, Leaf], like: Any) -> None:
    """Checks that a fingerprint has the names, shapes and dtypes of a pytree.

    Raises:
      Mismatch: the first array that differs in name, shape or dtype.
    """
    wanted = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in _leaves(like)}
    for name in [*wanted, *leaves]:
        if name not in leaves or name not in wanted:
            raise Mismatch(f"of another model: {name} is only in the {'model' if name in wanted else 'checkpoint'}")
        stored = (list(leaves[name].shape), leaves[name].dtype)
        if stored != wanted[name]:
            raise Mismatch(
                f"of another model: {name} is {stored[1]}{stored[0]} in the checkpoint, "
                f"{wanted[name][1]}{wanted[name][0]} in the model"
            )


def verify_checksums(leaves: Mapping[str, Leaf], state: Any) -> None:
    """Compares checksums of a state, or of a subtree of one, on any mesh.

    Of several processes, each verifies the shards that it holds completely.

    Raises:
      Mismatch: the first array that differs.
    """
    for name, leaf in _leaves(state):
        for text, crc in leaves[name].crc.items():
            span = tuple(tuple(map(int, pair.split(":"))) for pair in text.split(",") if pair)
            part = _part(leaf, span)  # type: ignore[arg-type]
            if part is not None and _crc(part) != crc:
                raise Mismatch(f"{name} differs from what was written")


def tensor_checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Dtype, shape and CRC-32 of each stored tensor of an export, as one text."""
    return {name: f"{tensor.dtype}{list(tensor.shape)} {_crc(tensor):08x}" for name, tensor in tensors.items()}


def tensor_shapes(checksums: Mapping[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each tensor from `tensor_checksums`.

    Raises:
      ValueError: a text that is none of them.
    """
    found = {}
    for name, text in checksums.items():
        dtype, _, rest = text.partition("[")
        shape, end, _ = rest.partition("] ")
        if not end:
            raise ValueError(f"{name}: {text!r} is not a checksum of a tensor")
        found[name] = jax.ShapeDtypeStruct(tuple(map(int, filter(None, shape.split(", ")))), jax.numpy.dtype(dtype))
    return found


def file_checksum(content: bytes) -> str:
    """Size and CRC-32 of a file of an export, as one text."""
    return f"{len(content)} bytes {zlib.crc32(content):08x}"


def _part(leaf: jax.Array, span: _Span) -> np.ndarray | None:
    """A span of a leaf, if this process can address all of it."""
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
