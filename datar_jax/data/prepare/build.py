"""From official lists and a folder of sounds to shards.

What is done is done: a shard that lies there, whole and made of the same files, is not made again, so the same command
continues a preparation that was stopped, and ends in the same bytes as one that was not.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from datar_jax.config import ConfigError
from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import Corpus, Listing, Segment
from datar_jax.data.prepare.encode import Cooked, Recipe, cook, cook_all
from datar_jax.data.prepare.match_files import File, find
from datar_jax.data.prepared import Card, Questions, Shard, Statistics, Sums
from datar_jax.filesystem import Place

PARTS = "parts"  # folder of what is known of each finished shard
WRITING = ".writing-"  # how the folder of a shard that is being written begins

Progress = Callable[[int, int], None]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a clip whose file was found."""

    record: int = 0  # its first, in its shard
    samples: int = 0
    reason: str = ""  # why it is unreadable


class Part(msgspec.Struct, frozen=True):
    """A finished shard, and what it was made of."""

    key: str
    shard: Shard
    outcomes: tuple[Outcome, ...]
    sums: dict[str, Sums]


@dataclass(frozen=True)
class Plan:
    """A shard to be: the segments in it, and where each one's sound lies."""

    name: str
    segments: tuple[Segment, ...]
    files: tuple[File, ...]


def prepare(
    name: str,
    corpus: Corpus,
    lists: Path,
    audio: Place,
    out: Place,
    recipe: Recipe,
    progress: Progress,
    tell: Callable[[str], None],
) -> Card:
    """Writes the shards of a data set, its manifest, statistics and card.

    Args:
      name: of the data set.
      corpus: how its lists are read.
      lists: folder of the official lists.
      audio: folder of sounds, at any depth and in any naming that the data set's adapter knows.
      out: folder to write to.
      recipe: rate, coding, sizes, processes.
      progress: called with (clips done, clips).
      tell: called with lines for a person.

    Raises:
      ConfigError: lists that cannot be used, no sound that they name, or a folder that another preparation writes to
        or that holds something else.
    """
    listing = corpus.read(lists)
    for note in listing.notes:
        tell(note)
    found = find(listing, audio, tell)
    plans = _plans(listing, found, recipe.shard_clips)
    with _alone(out):
        _refuse_others(name, out)
        done = _finished(out, plans, recipe)
        if len(done) < len(plans):
            (out / shards.CARD).remove()  # what lies there is no whole data set from here on
        _write_shards([plan for plan in plans if plan.name not in done], audio, out, recipe, done, progress, plans)
        card = _finish(name, corpus, listing, found, plans, done, out, recipe, tell)
        _remove_former(out, plans, tell)
        return card


def _plans(listing: Listing, found: list[File | None], shard_clips: int) -> list[Plan]:
    """Shards of equally many listed clips, each of one side, in the order of the lists.

    Clips that are missing count, so that one that turns up later changes its own shard only.
    """
    sides: dict[str, list[tuple[Segment, File | None]]] = collections.defaultdict(list)
    for segment, file in zip(listing.segments, found):
        sides[segment.side or "clips"].append((segment, file))
    plans = []
    for side, members in sides.items():
        count = -(-len(members) // shard_clips)
        for i in range(count):
            there = [(segment, file) for segment, file in members[i * shard_clips : (i + 1) * shard_clips] if file]
            if there:
                segments, files = zip(*there)
                plans.append(Plan(f"{side}-{i:05d}-of-{count:05d}.array_record", segments, files))
    return plans


# Writing


@contextlib.contextmanager
def _alone(out: Place) -> Iterator[None]:
    """Refuses a second preparation of the same folder at the same time, on this machine."""
    if out.local is None:
        yield
        return
    try:
        out.local.mkdir(parents=True, exist_ok=True)
        with (out.local / ".lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"--out={out.url!r}: another preparation is writing there; wait for it") from None
            for left in out.local.glob(f"{WRITING}*"):  # by one that was killed
                shutil.rmtree(left)
            yield
    except OSError as error:
        raise ConfigError(
            f"--out={out.url!r}: cannot be written ({error.strerror or error}); mend that and give the same command, "
            "which continues, or give another folder"
        ) from None


def _refuse_others(name: str, out: Place) -> None:
    """Leaves alone what no preparation wrote, or that of another data set: shards of both would have the same names."""
    if not (out / PARTS).is_folder():
        for file in (shards.CARD, shards.MANIFEST, shards.STATISTICS):
            if (out / file).size() >= 0:
                raise ConfigError(
                    f"--out={out.url!r}: holds a {file}, but no {PARTS}/ as a preparation leaves; give another folder"
                )
    try:
        card = shards.read_card(out)
    except ConfigError:
        return  # there is none, or it will be written anew
    if card.corpus != name:
        raise ConfigError(f"--out={out.url!r}: holds {card.title}; give another folder, or delete that one")


def _finished(out: Place, plans: list[Plan], recipe: Recipe) -> dict[str, Part]:
    """The shards that lie there, whole, and are made of what this preparation would make them of."""
    done = {}
    for plan in plans:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            part = msgspec.json.decode((out / PARTS / f"{plan.name}.json").read(), type=Part)
            if part.key == _key(plan, recipe) and (out / plan.name).size() == (part.shard.size or -1):
                done[plan.name] = part
    return done


def _key(plan: Plan, recipe: Recipe) -> str:
    """Names what a shard is made of."""
    made_of = (shards.FORMAT, shards.PIECE, recipe.audio, recipe.coding)
    digest = hashlib.blake2b(repr(made_of).encode(), digest_size=16)
    for segment, file in zip(plan.segments, plan.files):
        about = (segment.id, segment.labels, segment.side, segment.fold, segment.start, segment.end, file)
        digest.update(repr(about).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _write_shards(
    todo: list[Plan],
    audio: Place,
    out: Place,
    recipe: Recipe,
    done: dict[str, Part],
    progress: Progress,
    plans: list[Plan],
) -> None:
    """Makes what is missing, in order, and enters it in `done`."""
    total = sum(len(plan.segments) for plan in plans)
    count = total - sum(len(plan.segments) for plan in todo)
    progress(count, total)
    clips = [(segment, file) for plan in todo for segment, file in zip(plan.segments, plan.files)]
    with contextlib.closing(cook_all(clips, functools.partial(cook, audio, recipe), recipe.workers)) as cooked:

        def told() -> Iterator[Cooked | str]:
            for number, each in enumerate(cooked, count + 1):
                progress(number, total)
                yield each

        results = told()
        for plan in todo:
            part = _write_shard(plan, itertools.islice(results, len(plan.segments)), out, recipe)
            (out / PARTS / f"{plan.name}.json").write(msgspec.json.encode(part))
            done[plan.name] = part


def _write_shard(plan: Plan, cooked: Iterable[Cooked | str], out: Place, recipe: Recipe) -> Part:
    """One shard, whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    outcomes, sums = [], collections.defaultdict[str, Sums](Sums)
    records = 0
    with tempfile.TemporaryDirectory(dir=out.local, prefix=WRITING) as folder:
        path = Path(folder, plan.name)
        writer = ArrayRecordWriter(str(path), shards.WRITING)
        for segment, each in zip(plan.segments, cooked, strict=True):
            if isinstance(each, str):
                outcomes.append(Outcome(reason=each))
                continue
            for record in each.records:
                writer.write(record)
            outcomes.append(Outcome(records, each.samples))
            records += len(each.records)
            part = segment.side or f"fold {segment.fold}"
            sums[part] += each.sums
        writer.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(plan.name, records, path.stat().st_size if records else 0, digest if records else "")
        if records:
            out.system.makedirs(out.path, exist_ok=True)
            (out / plan.name).take(path)
        else:
            (out / plan.name).remove()  # one that was there before, of sounds that could be used then
    return Part(_key(plan, recipe), shard, tuple(outcomes), dict(sums))


# Finishing


def _finish(
    name: str,
    corpus: Corpus,
    listing: Listing,
    found: list[File | None],
    plans: list[Plan],
    done: dict[str, Part],
    out: Place,
    recipe: Recipe,
    tell: Callable[[str], None],
) -> Card:
    """Manifest, statistics and, last, the card."""
    where = {
        segment.id: (plan.name, outcome)
        for plan in plans
        for segment, outcome in zip(plan.segments, done[plan.name].outcomes)
    }
    rows, counts, clips = [], collections.Counter[str](), hashlib.sha256()
    for segment, file in zip(listing.segments, found):
        shard, outcome = where.get(segment.id, ("", Outcome(reason="no file of its name")))
        status = shards.MISSING if file is None else shards.UNREADABLE if outcome.reason else shards.HERE
        counts[status] += 1
        labels = " ".join(map(str, segment.labels))
        about = (segment.id, labels, segment.side or "", segment.fold or "")
        if status == shards.HERE:
            clips.update(repr(about).encode())
        at = (shard, outcome.record, outcome.samples) if status == shards.HERE else ("", "", "")
        rows.append((*about, status, outcome.reason, file.name if file else "", *at, segment.source, segment.row))
    if unreadable := [row for row in rows if row[4] == shards.UNREADABLE]:
        first = f"the first, {unreadable[0][6]!r}: {unreadable[0][5]}"
        if not counts[shards.HERE]:
            raise ConfigError(f"none of the {len(unreadable)} sounds that were found can be used; {first}")
        tell(f"{len(unreadable):,} clips cannot be used; {first}")
    sides = {row[2] for row in rows if row[4] == shards.HERE}
    if lacking := [side for side in ("train", "test") if not {side, ""} & sides]:
        tell(f"no {' and no '.join(lacking)} clip is here: a run needs one")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(shards.MANIFEST_COLUMNS)
    writer.writerows(rows)
    (out / shards.MANIFEST).write(text.getvalue().encode("utf-8", "surrogateescape"))
    sums: dict[str, Sums] = collections.defaultdict(Sums)
    for plan in plans:
        for part, each in done[plan.name].sums.items():
            sums[part] += each
    (out / shards.STATISTICS).write(_json(Statistics(recipe.audio, dict(sums))))
    card = Card(
        format=shards.FORMAT,
        corpus=name,
        title=corpus.title,
        terms=corpus.terms,
        labels=listing.labels,
        heads=tuple(Questions(head.name, head.classes) for head in listing.heads),
        sample_rate=recipe.audio.sample_rate,
        coding=recipe.coding,
        listed=len(rows),
        here=counts[shards.HERE],
        missing=counts[shards.MISSING],
        unreadable=counts[shards.UNREADABLE],
        clips_sha256=clips.hexdigest(),
        lists={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in listing.lists},
        shards=tuple(done[plan.name].shard for plan in plans if done[plan.name].shard.records),
    )
    (out / shards.CARD).write(_json(card))
    return card


def _remove_former(out: Place, plans: list[Plan], tell: Callable[[str], None]) -> None:
    """Takes away the shards of an earlier preparation that had other lists, sounds or sizes: no card names them."""
    kept = {f"{plan.name}.json" for plan in plans}
    former = [name for name, _ in (out / PARTS).files() if name not in kept]
    for name in former:
        (out / name.removesuffix(".json")).remove()
        (out / PARTS / name).remove()
    if former:
        tell(f"{len(former)} shards of an earlier preparation are taken away, the first: {former[0][:-5]}")


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
