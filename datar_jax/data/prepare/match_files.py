"""Finds the file of each listed clip in a folder of sounds."""

from __future__ import annotations

import collections
import itertools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.config import ConfigError
from datar_jax.data.datasets.base import Annotations
from datar_jax.data.unlisted import unlisted
from datar_jax.filesystem import StoragePath
from datar_jax.wording import count

DECIMALS = re.compile(r"_(\d+)(?:\.0+|(\.\d*[1-9])0*)(?=_|$)")  # of seconds in a name: 30.000, 0.50


@dataclass(frozen=True, slots=True)
class File:
    """A file below the audio folder."""

    name: str  # relative, with forward slashes
    version: str  # changes when the file does
    cut: bool  # whether its name says that it is the segment and not the recording


def match_files(listing: Annotations, audio: StoragePath, log: Callable[[str], None]) -> list[File | None]:
    """The file of each segment, or None."""
    if not audio.is_folder():
        raise ConfigError(f"--audio={audio.url!r}: no such folder; give the one that holds the sounds")
    by_stem: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for name, version in audio.list_files():
        by_stem[_key(PurePosixPath(name).stem)].append((name, version))
    several: list[str] = []

    def look(wanted: str, cut: bool) -> File | None:
        wanted = _key(wanted)
        near = by_stem.get(wanted.rpartition("/")[2], [])
        if "/" in wanted:
            near = [each for each in near if f"/{_key(each[0].rpartition('.')[0])}".endswith(f"/{wanted}")]
        if not near:
            return None
        near = sorted(near, key=lambda each: (PurePosixPath(each[0]).suffix.lower() not in SUFFIXES, each[0]))
        if len(near) > 1 and PurePosixPath(near[1][0]).suffix.lower() in SUFFIXES:
            several.append(near[0][0])
        return File(*near[0], cut)

    found = [
        next(filter(None, itertools.chain((look(n, True) for n in s.cut), (look(n, False) for n in s.whole))), None)
        for s in listing.segments
    ]
    if several:
        many = count(len(several), "clip has", "clips have")
        log(f"{many} more than one file; the first by its path is taken, as {several[0]!r}")
    used = {each.name for each in found if each}
    names = sorted(name for files in by_stem.values() for name, _ in files if name not in used)
    left = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if left and used:
        log(unlisted(left))
    if not any(found):
        names = [*listing.segments[0].cut, *listing.segments[0].whole][:3] if listing.segments else []
        raise ConfigError(
            f"--audio={audio.url!r}: none of the {len(listing.segments)} clips of the lists is there; the first would "
            f"be named {' or '.join(names)}, with an ending such as .wav or .flac"
        )
    return found


def _key(name: str) -> str:
    """What equal names have in common: accents are stored in two ways, and `_30.000` is `_30`."""
    return DECIMALS.sub(r"_\1\2", unicodedata.normalize("NFC", name))
