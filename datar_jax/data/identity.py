"""What data a run is trained on, so that it never goes on with others: classes, and each clip's labels, split and file.

The content of a file is compared by size and time of change, and by checksum only where the time differs. A record of
it lies in the work directory, compressed: about 28 bytes a clip with short names.

Shapes: N clips.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from datar_jax.atomic_files import atomic_write
from datar_jax.config import ConfigError
from datar_jax.data.dataset import SPLITS, Clip, Dataset
from datar_jax.data.prepared import _mark
from datar_jax.data.splits import Splits
from datar_jax.escaping import printable
from datar_jax.filesystem import StoragePath, file_state
from datar_jax.foreign_files import open_regular

RECORD = "data.identity"  # the file in a work directory
INFLATES = 1000  # a record is at most so many times its file: names repeat
SHOWN = 3  # clips that an error names
BLOCK = 1 << 16  # bytes of a file that are read at a time


class FileContent(NamedTuple):
    """What is known of the file of each clip."""

    sizes: np.ndarray  # int64 (N,), bytes; -1 for a file that cannot be read
    times: np.ndarray  # int64 (N,), of the last change, nanoseconds; in a bucket a hash of what it says instead
    sums: np.ndarray  # uint32 (N,), CRC-32; of a shard, that of its SHA-256 in its card; 0 where that is not known


def file_content(columns: Mapping[str, Any]) -> FileContent:
    """The content from lists of numbers by name of field."""
    sizes, times = (np.array(columns[name], np.int64) for name in ("sizes", "times"))
    return FileContent(sizes, times, np.array(columns["sums"], np.uint32))


class DataIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run is bound to."""

    format: Literal[1]
    labels: tuple[str, ...]
    heads: dict[str, int]
    names: bytes  # each ended by a null character
    marks: bytes  # uint32 (N,), checksum of the class indices
    splits: dict[int, bytes]  # by test fold, uint8 (N,): 0 for none, else one more than the index in SPLITS
    sizes: bytes  # as the fields of `FileContent`
    times: bytes
    sums: bytes

    def __post_init__(self) -> None:
        count = self.names.count(b"\0")
        widths = [(self.marks, 4), (self.sizes, 8), (self.times, 8), (self.sums, 4)]
        if any(len(column) != count * width for column, width in [*widths, *((s, 1) for s in self.splits.values())]):
            raise ValueError("columns of several lengths")

    @property
    def content(self) -> FileContent:
        """The files."""
        kinds = zip((self.sizes, self.times, self.sums), ("<i8", "<i8", "<u4"), strict=True)
        return FileContent(*(np.frombuffer(column, kind) for column, kind in kinds))


def look_at_files(dataset: Dataset, root: StoragePath | None = None) -> FileContent:
    """Size and time of the file of every clip; of prepared data in `root` also the checksums that the card holds."""
    paths = [clip.path for clip in dataset.clips]
    if dataset.card and root:
        known = {shard.name: zlib.crc32(shard.sha256.encode()) for shard in dataset.card.shards}
        found = {name: (*root.below(name).state(), total) for name, total in known.items()}
    else:
        found = {path: (*file_state(path), 0) for path in dict.fromkeys(paths)}
    sizes, times, sums = zip(*(found[path] for path in paths), strict=True) if paths else ((), (), ())
    return FileContent(np.array(sizes, np.int64), np.array(times, np.int64), np.array(sums, np.uint32))


def with_checksums(
    dataset: Dataset, now: FileContent, before: FileContent, root: StoragePath | None = None
) -> FileContent:
    """`now` with the checksums that a comparison needs: those of `before` for files of the same size and time.

    A file of the same size and another time is read. One of another size is another file, whatever its checksum.
    """
    # What a card says is no proof, except of a difference.
    known = np.where(now.sums != before.sums, now.sums, 0) if root else now.sums
    same = (now.sizes == before.sizes) & (now.times == before.times)
    sums = np.where(known > 0, known, np.where(same, before.sums, 0))
    todo = np.flatnonzero((now.sizes == before.sizes) & ~same & (known == 0) & (now.sizes >= 0))
    paths = list(dict.fromkeys(dataset.clips[i].path for i in todo))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sums_read = pool.map(lambda path: _shard_checksum(root.below(path)) if root else checksum(path), paths)
        found = dict(zip(paths, sums_read, strict=True))
    sums[todo] = [found[dataset.clips[i].path] for i in todo]
    return now._replace(sums=sums)


def checksum(path: str) -> int:
    """The CRC-32 of a regular file; 0 if it cannot be read."""
    total = 0
    try:
        with open_regular(path) as file:
            while block := file.read(BLOCK):
                total = zlib.crc32(block, total)
    except OSError:
        return 0
    return total


def _shard_checksum(shard: StoragePath) -> int:
    """The CRC-32 of the SHA-256 of a shard, which its card states; 0 if it cannot be read."""
    stream: Any
    try:
        with shard.open() as stream:
            return zlib.crc32(hashlib.file_digest(stream, "sha256").hexdigest().encode())
    except OSError:
        return 0


def changed_files(now: FileContent, before: FileContent) -> np.ndarray:
    """Whether each clip's file has another content, bool (N,); both with checksums."""
    return (now.sizes != before.sizes) | (now.sums != before.sums)


def identity(dataset: Dataset, splits: Mapping[int, Splits], content: FileContent) -> DataIdentity:
    """The identity of a data set and its splits by test fold."""
    codes = {fold: np.zeros(len(dataset), np.uint8) for fold in splits}
    for fold, each in splits.items():
        for number, name in enumerate(SPLITS, start=1):
            codes[fold][getattr(each, name)] = number
    return DataIdentity(
        format=1,
        labels=dataset.labels,
        heads={head.name: head.size for head in dataset.heads},
        names=b"".join(os.fsencode(_name(clip)) + b"\0" for clip in dataset.clips),
        marks=np.array([_mark(clip.labels) for clip in dataset.clips], "<u4").tobytes(),
        splits={fold: code.tobytes() for fold, code in codes.items()},
        sizes=content.sizes.astype("<i8").tobytes(),
        times=content.times.astype("<i8").tobytes(),
        sums=content.sums.astype("<u4").tobytes(),
    )


def write_identity(path: Path, value: DataIdentity) -> None:
    """Writes the record of an identity, atomically."""
    atomic_write(path, zlib.compress(msgspec.msgpack.encode(value), 1))


def read_identity(path: Path) -> DataIdentity | None:
    """Reads the record of an identity; None if there is none, as in runs of earlier versions.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        with open_regular(path) as file:
            packed = file.read()
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, INFLATES * len(packed))
        if not unpacker.eof:
            raise ValueError("it is cut off, or too large")
        return msgspec.msgpack.decode(content, type=DataIdentity)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zlib.error) as error:
        raise ConfigError(
            f"{path}: not readable ({error}); it says what data the run was trained on: delete it to continue without "
            "that check, or give another --workdir"
        ) from None


def differences(dataset: Dataset, now: DataIdentity, before: DataIdentity) -> list[str]:
    """What differs between two identities, a phrase each with the names of the first few clips; none if they agree."""
    if found := other_classes(now.labels, before.labels):
        return [found]
    if now.heads != before.heads:
        return [f"heads {now.heads} in place of {before.heads}"]
    if now.names != before.names:
        return _other_clips(now, before)
    marks = np.frombuffer(now.marks, "<u4") != np.frombuffer(before.marks, "<u4")
    phrases = [("other labels", marks)]
    for fold in now.splits.keys() & before.splits.keys():
        codes = (np.frombuffer(each.splits[fold], np.uint8) for each in (now, before))
        phrases.append(("another split", np.not_equal(*codes)))
    phrases.append(("another content", changed_files(now.content, before.content)))
    clips = ((what, np.flatnonzero(differs)) for what, differs in phrases)
    return [f"{_few([dataset.where(int(i)) for i in which])} with {what}" for what, which in clips if which.size]


def other_classes(now: Sequence[str], before: Sequence[str]) -> str:
    """How classes differ from others, in words; an empty text if they are the same in the same order."""
    lost, new = ([name for name in a if name not in b] for a, b in ((before, now), (now, before)))
    named = [
        f"{kind} class {', '.join(map(repr, names[:5]))}" for kind, names in (("no", lost), ("a new", new)) if names
    ]
    if tuple(now) == tuple(before):
        return ""
    return " and ".join(named) or f"the {len(before)} classes in another order"


def _other_clips(now: DataIdentity, before: DataIdentity) -> list[str]:
    lists = [[os.fsdecode(name) for name in each.names.split(b"\0")[:-1]] for each in (now, before)]
    new, lost = (list(dict.fromkeys(n for n in a if n not in there)) for a, there in _each_with_other(lists))
    phrases = [f"{_few(new)} that are new" if new else "", f"{_few(lost)} missing" if lost else ""]
    return [each for each in phrases if each] or [f"{len(lists[1])} clips in another order or number"]


def _each_with_other(lists: Sequence[list[str]]) -> list[tuple[list[str], set[str]]]:
    first, second = lists
    return [(first, set(second)), (second, set(first))]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names):,} {'clip' if len(names) == 1 else 'clips'} ({shown})"


def _name(clip: Clip) -> str:
    """The name of a clip, with its section if it is a part of a file."""
    return f"{clip.name} {clip.start:.9g}-{clip.end:.9g}" if clip.start or clip.end else clip.name
