"""Format of prepared data: ArrayRecord shards of 16-bit samples, a manifest and an index.

A prepared folder holds `corpus.json` (the card, written last), `manifest.csv` (every clip that the lists name, with
what became of it), `statistics.json` and the shards. A record is a piece of a clip, in msgpack: nothing in it can run.
A clip longer than `PIECE` lies in several records, so that a crop of a long recording reads little more than itself.

Shapes: N samples.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import soundfile

from datar_jax.config import AudioConfig, ConfigError
from datar_jax.config.migration import upgrade_section
from datar_jax.filesystem import StoragePath
from datar_jax.foreign_files import UnsafeName
from datar_jax.labels import Head
from datar_jax.typed_json import JsonError, decode_json
from datar_jax.wording import count

FORMAT = 1
CARD, MANIFEST, STATISTICS = "corpus.json", "manifest.csv", "statistics.json"
MANIFEST_COLUMNS = (
    *("id", "labels", "split", "fold", "status", "reason"),
    *("file", "shard", "record", "samples", "list", "row"),
)
CHECKSUM = "crc32"  # column of the manifest: of a clip's int16 samples, in hexadecimal; manifests of 0.1 have none
FOUND, MISSING, UNREADABLE = "here", "missing", "unreadable"  # the status of a clip
SHARD_NAME = re.compile(r"[\w-]+\.array_record", re.ASCII)
PIECE = 20.0  # seconds of a clip that lie in one record, at most
WRITING = "group_size:1,uncompressed"  # each record by itself: what has to be read at random
AGAIN = "delete it and prepare the data again, which makes no other shard"  # for damage found by checksum

Coding = Literal["pcm", "flac"]


class Record(msgspec.Struct, frozen=True):
    """One record: a part of a clip."""

    id: str
    labels: tuple[int, ...]  # indices into the classes of all heads, one after another
    piece: int  # of the clip, from 0
    scale: float  # what its samples are multiplied by
    coding: Coding
    samples: memoryview  # little-endian int16, or a FLAC stream of them


class Shard(msgspec.Struct, frozen=True):
    """One shard file."""

    name: str
    records: int
    size: int  # bytes
    sha256: str


class DatasetInfo(msgspec.Struct, frozen=True):
    """The index of a prepared folder."""

    format: int
    corpus: str
    title: str
    terms: str
    labels: Literal["single", "multi"]
    heads: tuple[Head, ...]
    sample_rate: int
    coding: Coding
    listed: int  # clips that the lists name
    here: int
    missing: int
    unreadable: int
    clips_sha256: str  # of id, split, fold and labels of the clips that are here; equal for equal data
    lists: dict[str, str]  # SHA-256 of each list that was read
    shards: tuple[Shard, ...]


class Moments(msgspec.Struct, frozen=True):
    """Count, sum and sum of squares of the decibels of one split or fold."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)


class Statistics(msgspec.Struct, frozen=True):
    """Normalization statistics of one front end."""

    audio: AudioConfig
    parts: dict[str, Moments]  # by split, or by fold as `fold 1`


def read_card(folder: StoragePath) -> DatasetInfo:
    """Reads the index of a prepared folder.

    Raises:
      ConfigError: there is none, or it is none.
    """
    try:
        card = decode_json((folder / CARD).read(), DatasetInfo)
        for shard in card.shards:
            if not SHARD_NAME.fullmatch(shard.name):
                raise UnsafeName(f"shards: {ascii(shard.name)[:200]} is not the name of a shard")
            folder.below(shard.name)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"data.root={folder.url!r}: holds no {CARD}; give a folder that `datar-jax prepare` has finished"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder.url}/{CARD}: cannot be read ({error.strerror or error})") from None
    except (JsonError, UnsafeName) as error:
        raise ConfigError(f"{folder.url}/{CARD}: not readable ({error}); prepare the data again") from None
    if card.format != FORMAT:
        raise ConfigError(f"{folder.url}/{CARD}: format {card.format}, this version reads {FORMAT}; prepare again")
    return card


def summary(card: DatasetInfo) -> str:
    """One line on how complete a data set is, with a hash to compare results by."""
    lost = ", ".join(f"{n:,} {what}" for n, what in ((card.missing, MISSING), (card.unreadable, UNREADABLE)) if n)
    there = f"{card.here:,} of {count(card.listed, 'listed clip is', 'listed clips are')} here" + (
        f" ({lost})" if lost else ""
    )
    return f"{card.title}: {there}; the list of those has SHA-256 {card.clips_sha256[:16]}"


def read_statistics(folder: StoragePath, audio: AudioConfig, parts: Sequence[str]) -> tuple[float, float] | None:
    """Mean and deviation (dB) of some splits or folds; None if they were computed for another front end."""
    try:
        found = decode_json((folder / STATISTICS).read(), Statistics, _upgrade)
    except (OSError, JsonError):
        return None
    if msgspec.structs.replace(found.audio, frontend=audio.frontend) != audio or not set(parts) <= set(found.parts):
        return None
    sums = sum((found.parts[part] for part in parts), Moments())
    mean = sums.total / max(sums.count, 1)
    if not abs(mean) <= 1000:  # decibels
        return None
    variance = sums.squares / max(sums.count, 1) - mean**2
    return (mean, variance**0.5) if 0 < variance <= 1e6 else None


def _upgrade(tree: Any) -> Any:
    return {**tree, "audio": upgrade_section("audio", tree.get("audio"))} if isinstance(tree, dict) else tree


def pieces(length: int, sample_rate: int) -> list[int]:
    """Boundaries of the fewest equal parts of a clip, in samples."""
    count = max(1, -(-length // int(PIECE * sample_rate)))
    return [i * length // count for i in range(count + 1)]


def encode(
    clip: str, labels: tuple[int, ...], samples_N: np.ndarray, scale: float, rate: int, coding: Coding
) -> list[bytes]:
    """The records of a clip of int16 samples."""
    parts = enumerate(itertools.pairwise(pieces(len(samples_N), rate)))
    coded = ((i, memoryview(_coded(samples_N[first:last], rate, coding))) for i, (first, last) in parts)
    return [msgspec.msgpack.encode(Record(clip, labels, i, scale, coding, samples)) for i, samples in coded]


def decode_record(content: bytes, most: int) -> tuple[Record, np.ndarray]:
    """A record and its samples, int16 (N,), of which `most + 1` are decoded at most.

    Raises:
      msgspec.MsgspecError, soundfile.LibsndfileError: it is none.
    """
    record = _decoder.decode(content)
    if record.coding == "pcm":
        return record, np.frombuffer(record.samples, "<i2")
    return record, soundfile.read(io.BytesIO(record.samples), most + 1, dtype="int16")[0]


@functools.cache
def _mark(labels: tuple[int, ...]) -> int:
    return zlib.crc32(repr(labels).encode())


def _coded(samples_N: np.ndarray, rate: int, coding: Coding) -> bytes:
    if coding == "pcm":
        return samples_N.astype("<i2").tobytes()
    stream = io.BytesIO()
    soundfile.write(stream, samples_N, rate, "PCM_16", format="FLAC")
    return stream.getvalue()


_decoder = msgspec.msgpack.Decoder(Record)
