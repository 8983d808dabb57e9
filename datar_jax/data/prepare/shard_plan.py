"""Assigns clips to shards; records of finished shards."""

from __future__ import annotations

import collections
import hashlib
from dataclasses import dataclass

import msgspec

from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import Annotations, Segment
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.data.prepare.match_files import File
from datar_jax.data.prepared import Moments, Shard


class Outcome(msgspec.Struct, frozen=True):
    """Result of encoding one clip."""

    record: int = 0  # its first, in its shard
    samples: int = 0
    reason: str = ""  # why it is unreadable
    note: str = ""  # what is odd about its file
    crc32: int | None = None  # of its samples; None: written by 0.1


class Part(msgspec.Struct, frozen=True):
    """A finished shard and a key of its inputs."""

    key: str
    shard: Shard
    outcomes: tuple[Outcome, ...]
    sums: dict[str, Moments]


@dataclass(frozen=True)
class ShardPlan:
    """A planned shard: its segments and their files."""

    name: str
    segments: tuple[Segment, ...]
    files: tuple[File, ...]


def plan_shards(listing: Annotations, found: list[File | None], shard_clips: int) -> list[ShardPlan]:
    """Plans shards of equally many clips, each of one split, in the order of the lists.

    Clips that are missing count, so that one that turns up later changes its own shard only.
    """
    splits: dict[str, list[tuple[Segment, File | None]]] = collections.defaultdict(list)
    for segment, file in zip(listing.segments, found):
        splits[segment.split or "clips"].append((segment, file))
    plans = []
    for split, members in splits.items():
        count = -(-len(members) // shard_clips)
        for i in range(count):
            there = [(segment, file) for segment, file in members[i * shard_clips : (i + 1) * shard_clips] if file]
            if there:
                segments, files = zip(*there)
                plans.append(ShardPlan(f"{split}-{i:05d}-of-{count:05d}.array_record", segments, files))
    return plans


def shard_key(plan: ShardPlan, options: EncodeOptions) -> str:
    """Key of a shard's inputs and options."""
    made_of = (shards.FORMAT, shards.PIECE, options.audio, options.coding)
    digest = hashlib.blake2b(repr(made_of).encode(), digest_size=16)
    for segment, file in zip(plan.segments, plan.files):
        about = (segment.id, segment.labels, segment.split, segment.fold, segment.start, segment.end, file)
        digest.update(repr(about).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
