"""The manifest, statistics and summary of a prepared data set."""

from __future__ import annotations

import collections
import hashlib
import io
from collections.abc import Callable
from typing import Any

import msgspec

from datar_jax.config import ConfigError
from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import Annotations, DatasetSpec
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.data.prepare.match_files import File
from datar_jax.data.prepare.shard_plan import Outcome, Part, ShardPlan
from datar_jax.data.prepared import DatasetInfo, Moments, Statistics
from datar_jax.escaping import CsvWriter
from datar_jax.filesystem import StoragePath
from datar_jax.wording import count


def write_manifest(
    name: str,
    spec: DatasetSpec,
    listing: Annotations,
    found: list[File | None],
    plans: list[ShardPlan],
    done: dict[str, Part],
    out: StoragePath,
    options: EncodeOptions,
    log: Callable[[str], None],
) -> DatasetInfo:
    """Writes manifest and statistics and, last, the index of the data set."""
    where = {
        segment.id: (plan.name, outcome)
        for plan in plans
        for segment, outcome in zip(plan.segments, done[plan.name].outcomes)
    }
    rows, counts, clips = [], collections.Counter[str](), hashlib.sha256()
    for segment, file in zip(listing.segments, found):
        shard, outcome = where.get(segment.id, ("", Outcome(reason="no file of its name")))
        status = shards.MISSING if file is None else shards.UNREADABLE if outcome.reason else shards.FOUND
        counts[status] += 1
        labels = " ".join(map(str, segment.labels))
        about = (segment.id, labels, segment.split or "", segment.fold or "")
        if status == shards.FOUND:
            clips.update(repr(about).encode())
        checksum = "" if outcome.crc32 is None else f"{outcome.crc32:08x}"
        at = (shard, outcome.record, outcome.samples) if status == shards.FOUND else ("", "", "")
        reason = outcome.reason or outcome.note
        rows.append((*about, status, reason, file.name if file else "", *at, segment.source, segment.row, checksum))
    if unreadable := [row for row in rows if row[4] == shards.UNREADABLE]:
        first = f"the first, {unreadable[0][6]!r}: {unreadable[0][5]}"
        if not counts[shards.FOUND]:
            raise ConfigError(f"none of {count(len(unreadable), 'found sound')} can be used; {first}")
        log(f"{count(len(unreadable), 'clip')} cannot be used; {first}")
    if odd := [row for row in rows if row[4] == shards.FOUND and row[5]]:
        log(f"{count(len(odd), 'odd sound is used', 'odd sounds are used')}; the first, {odd[0][6]!r}: {odd[0][5]}")
    splits = {row[2] for row in rows if row[4] == shards.FOUND}
    if lacking := [split for split in ("train", "test") if not {split, ""} & splits]:
        log(f"no {' and no '.join(lacking)} clip is here: a run needs one")
    text = io.StringIO()
    writer = CsvWriter(text, (*shards.MANIFEST_COLUMNS, shards.CHECKSUM))
    for row in rows:
        writer.row(row)
    (out / shards.MANIFEST).write(text.getvalue().encode("utf-8", "surrogateescape"))
    sums: dict[str, Moments] = collections.defaultdict(Moments)
    for plan in plans:
        for part, each in done[plan.name].sums.items():
            sums[part] += each
    (out / shards.STATISTICS).write(_json(Statistics(options.audio, dict(sums))))
    card = DatasetInfo(
        format=shards.FORMAT,
        corpus=name,
        title=spec.title,
        terms=spec.terms,
        labels=listing.labels,
        heads=listing.heads,
        sample_rate=options.audio.sample_rate,
        coding=options.coding,
        listed=len(rows),
        here=counts[shards.FOUND],
        missing=counts[shards.MISSING],
        unreadable=counts[shards.UNREADABLE],
        clips_sha256=clips.hexdigest(),
        lists={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in listing.lists},
        shards=tuple(done[plan.name].shard for plan in plans if done[plan.name].shard.records),
    )
    (out / shards.CARD).write(_json(card))
    return card


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
