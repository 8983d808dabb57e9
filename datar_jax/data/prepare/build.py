"""Builds shards from official lists and a folder of sounds.

What is done is done: a shard that lies there, whole and made of the same files, is not made again, so the same command
continues a preparation that was stopped, and ends in the same bytes as one that was not.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from datar_jax.config import ConfigError
from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import DatasetSpec
from datar_jax.data.prepare.encode import EncodedClip, EncodeOptions, encode_all, encode_clips
from datar_jax.data.prepare.manifest import write_manifest
from datar_jax.data.prepare.match_files import match_files
from datar_jax.data.prepare.shard_plan import Outcome, Part, ShardPlan, plan_shards, shard_key
from datar_jax.data.prepared import DatasetInfo, Moments, Shard
from datar_jax.filesystem import StoragePath
from datar_jax.locks import LockHeld, locked_folder
from datar_jax.typed_json import JsonError, decode_json
from datar_jax.wording import count

PARTS = "parts"  # folder of what is known of each finished shard
WRITING = ".writing-"  # how the folder of a shard that is being written begins

Progress = Callable[[int, int], None]


def build_dataset(
    name: str,
    spec: DatasetSpec,
    lists: Path,
    audio: StoragePath,
    out: StoragePath,
    options: EncodeOptions,
    progress: Progress,
    log: Callable[[str], None],
) -> DatasetInfo:
    """Writes the shards of a data set, its manifest, statistics and card.

    Args:
      name: of the data set.
      spec: how its lists are read.
      lists: folder of the official lists.
      audio: folder of sounds, at any depth and in any naming that the data set's adapter knows.
      out: folder to write to.
      options: rate, coding, shard size, processes.
      progress: called with (clips done, clips).
      log: called with lines for the user.

    Raises:
      ConfigError: lists that cannot be used, no sound that they name, or a folder that another preparation writes to
        or that holds something else.
    """
    listing = spec.read(lists)
    for note in listing.notes:
        log(note)
    found = match_files(listing, audio, log)
    plans = plan_shards(listing, found, options.shard_clips)
    with _sole_writer(out):
        _refuse_others(name, out)
        done = _finished(out, plans, options)
        if len(done) < len(plans):
            (out / shards.CARD).remove()  # what lies there is no whole data set from here on
        _write_shards([plan for plan in plans if plan.name not in done], audio, out, options, done, progress, plans)
        card = write_manifest(name, spec, listing, found, plans, done, out, options, log)
        _remove_former(out, plans, log)
        return card


# Writing


@contextlib.contextmanager
def _sole_writer(out: StoragePath) -> Iterator[None]:
    """Holds the lock on the output folder; a bucket has none."""
    if out.local is None:
        yield
        return
    try:
        with locked_folder(out.local):
            for left in out.local.glob(f"{WRITING}*"):  # by one that was killed
                shutil.rmtree(left)
            yield
    except LockHeld as held:
        raise ConfigError(f"--out={out.url!r}: {held.strerror}; wait for it, or give another folder") from None
    except OSError as error:
        raise ConfigError(
            f"--out={out.url!r}: cannot be written ({error.strerror or error}); mend that and give the same command, "
            "which continues, or give another folder"
        ) from None


def _refuse_others(name: str, out: StoragePath) -> None:
    """Refuses a folder with foreign files or another data set, whose shards would have the same names."""
    if not (out / PARTS).is_folder():
        for file in (shards.CARD, shards.MANIFEST, shards.STATISTICS):
            if (out / file).size() >= 0:
                raise ConfigError(
                    f"--out={out.url!r}: holds a {file}, but no {PARTS}/ as a preparation leaves; give another folder"
                )
    try:
        card = shards.read_card(out)
    except ConfigError:
        return  # there is none yet, or it is rewritten
    if card.corpus != name:
        raise ConfigError(f"--out={out.url!r}: holds {card.title}; give another folder, or delete that one")


def _finished(out: StoragePath, plans: list[ShardPlan], options: EncodeOptions) -> dict[str, Part]:
    """Finished shards in the output folder whose inputs and options are unchanged."""
    done = {}
    for plan in plans:
        with contextlib.suppress(FileNotFoundError, JsonError):
            part = decode_json((out / PARTS / f"{plan.name}.json").read(), Part)
            size = (out / plan.name).size()
            made_of = (part.key, part.shard.name, part.shard.size or -1, len(part.outcomes))
            if made_of == (shard_key(plan, options), plan.name, size, len(plan.segments)):
                done[plan.name] = part
    return done


def _write_shards(
    todo: list[ShardPlan],
    audio: StoragePath,
    out: StoragePath,
    options: EncodeOptions,
    done: dict[str, Part],
    progress: Progress,
    plans: list[ShardPlan],
) -> None:
    """Writes missing shards in order and adds them to `done`."""
    total = sum(len(plan.segments) for plan in plans)
    count = total - sum(len(plan.segments) for plan in todo)
    progress(count, total)
    clips = [(segment, file) for plan in todo for segment, file in zip(plan.segments, plan.files)]
    with contextlib.closing(
        encode_all(clips, functools.partial(encode_clips, audio, options), options.workers)
    ) as encoded:

        def logged() -> Iterator[EncodedClip | str]:
            for number, each in enumerate(encoded, count + 1):
                progress(number, total)
                yield each

        results = logged()
        for plan in todo:
            part = _write_shard(plan, itertools.islice(results, len(plan.segments)), out, options)
            (out / PARTS / f"{plan.name}.json").write(msgspec.json.encode(part))
            done[plan.name] = part


def _write_shard(
    plan: ShardPlan, encoded: Iterable[EncodedClip | str], out: StoragePath, options: EncodeOptions
) -> Part:
    """Writes one shard atomically."""
    from array_record.python.array_record_module import ArrayRecordWriter

    outcomes, sums = [], collections.defaultdict[str, Moments](Moments)
    records = 0
    with tempfile.TemporaryDirectory(dir=out.local, prefix=WRITING) as folder:
        path = Path(folder, plan.name)
        writer = ArrayRecordWriter(str(path), shards.WRITING)
        for segment, each in zip(plan.segments, encoded, strict=True):
            if isinstance(each, str):
                outcomes.append(Outcome(reason=each))
                continue
            for record in each.records:
                writer.write(record)
            outcomes.append(Outcome(records, each.samples, note=each.note, crc32=each.crc32))
            records += len(each.records)
            part = segment.split or f"fold {segment.fold}"
            sums[part] += each.sums
        writer.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(plan.name, records, path.stat().st_size if records else 0, digest if records else "")
        if records:
            out.system.makedirs(out.path, exist_ok=True)
            (out / plan.name).move_from(path)
        else:
            (out / plan.name).remove()  # one that was there before, of sounds that could be used then
    return Part(shard_key(plan, options), shard, tuple(outcomes), dict(sums))


# Finishing


def _remove_former(out: StoragePath, plans: list[ShardPlan], log: Callable[[str], None]) -> None:
    """Removes shards of an earlier preparation with other lists, sounds or sizes, which the new index does not name."""
    kept = {f"{plan.name}.json" for plan in plans}
    listed = (name for name, _ in (out / PARTS).list_files() if shards.SHARD_NAME.fullmatch(name.removesuffix(".json")))
    former = [name for name in listed if name not in kept]
    for name in former:
        (out / name.removesuffix(".json")).remove()
        (out / PARTS / name).remove()
    if former:
        log(f"{count(len(former), 'shard')} of an earlier preparation removed, the first: {former[0][:-5]}")
