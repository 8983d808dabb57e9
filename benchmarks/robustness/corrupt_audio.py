"""Corrupt audio files: intact files of every format, how they are corrupted, and the expected outcome of each.

`make` writes them below a folder; what it writes depends on the seed alone. `fuzz_audio.py` runs the
pipeline on them.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from benchmarks.robustness.intact_audio import Base, bases, seal_ogg, store, with_fields

USED, REFUSED, EITHER = "used", "refused", "either"


class Made(NamedTuple):
    """A written file and its expected outcome."""

    name: str  # relative to the root, as the data set spells it
    kind: str
    fate: str  # USED, REFUSED, or EITHER where only the file's content decides


# What is done to them: each function writes one spoiled file.


def cut_header(path: Path, base: Base, rng: Generator) -> None:
    path.write_bytes(base.content[: rng.integers(1, 44)])


def cut(path: Path, base: Base, rng: Generator) -> None:
    path.write_bytes(base.content[: rng.integers(44, len(base.content))])


def sizes(path: Path, base: Base, rng: Generator) -> None:
    """A size field that lies: of RIFF and its chunks, of FLAC's blocks and frames, of an Ogg page and its position."""
    content = bytearray(base.content)
    lie = int(rng.choice([0, 1, 2, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, rng.integers(2**32)]))
    if base.suffix == "flac":
        at, width = [(5, 3), (8, 2), (10, 2), (12, 3), (15, 3), (21, 5)][rng.integers(6)]
        content[at : at + width] = (lie * 0x0101 % 256**width).to_bytes(width, "big")
    elif base.suffix == "ogg":
        pages = [at for at in range(len(content) - 27) if content[at : at + 4] == b"OggS"]
        at = pages[rng.integers(len(pages))]
        at, width = [(at + 26, 1), (at + 27, 1), (at + 6, 8), (at + 18, 4)][rng.integers(4)]
        content[at : at + width] = (lie % 256**width).to_bytes(width, "little")
        seal_ogg(content)
    elif base.suffix == "mp3":
        at = int(rng.integers(0, 200))
        content[at : at + 4] = lie.to_bytes(4, "big")
    else:
        names = [name for name in (b"RIFF", b"RF64", b"ds64", b"fmt ", b"data", b"SSND", b"COMM") if name in content]
        at = content.index(names[rng.integers(len(names))]) + 4 if names else int(rng.integers(4, 40))
        content[at : at + 4] = lie.to_bytes(4, "big" if base.suffix in ("aiff", "caf", "au") else "little")
    path.write_bytes(content)


def some_bytes(path: Path, base: Base, rng: Generator) -> None:
    content = bytearray(base.content)
    first = 0 if rng.uniform() < 0.5 else 64  # half of them in the header
    for at in rng.integers(0, first or len(content), int(rng.integers(1, 64))):
        content[at] = rng.integers(256)
    path.write_bytes(content)


def noise(path: Path, base: Base, rng: Generator) -> None:
    """Random bytes, alone or behind an intact header."""
    kept = int(rng.choice([0, 4, 12, 64, 200]))
    path.write_bytes(base.content[:kept] + rng.bytes(int(rng.integers(1, 20_000))))


def absurd_rate(path: Path, base: Base, rng: Generator) -> None:
    rates = [0, 1, 7, 100] if base.suffix == "flac" else [0, 1, 7, 100, 2**31 - 1, 4_000_000_000]
    path.write_bytes(with_fields(base, rate=int(rng.choice(rates))))


def odd_rate(path: Path, base: Base, rng: Generator) -> None:
    path.write_bytes(with_fields(base, rate=int(rng.choice([1_000, 3_999, 44_101, 192_000, 999_999]))))


def channels_told(path: Path, base: Base, rng: Generator) -> None:
    path.write_bytes(with_fields(base, channels=int(rng.integers(0, 65))))


def channels_true(path: Path, base: Base, rng: Generator) -> None:
    sound_NxC = rng.uniform(-1, 1, (int(rng.integers(4_000, 16_000)), int(rng.integers(1, 65))))
    store(path, sound_NxC, 16_000, "PCM_16")


def ten_hours(path: Path, base: Base, rng: Generator) -> None:
    """The header speaks of ten hours and more; one kilobyte is there (an Ogg file as a whole: it has no length)."""
    content = with_fields(base, seconds=36_000 * float(rng.choice([1, 1, 100, 1e6])))
    path.write_bytes(content[:1024] if base.suffix != "ogg" else content)


def bomb(path: Path, base: Base, rng: Generator) -> None:
    """Two hours of near silence in 60 kB, with or without its length in the header."""
    sound_T = np.zeros(7_200_000, np.int16)
    sound_T[::100_000] = 1
    store(path, sound_T, 1_000, "PCM_16", "FLAC")
    if rng.uniform() < 0.5:
        path.write_bytes(with_fields(Base("flac", path.read_bytes(), 1_000), seconds=0))


def streamed(path: Path, base: Base, rng: Generator) -> None:
    """An intact file whose writer could not go back to tell its length."""
    if base.suffix == "flac":
        path.write_bytes(with_fields(base, seconds=0))
        return
    content = bytearray(base.content)
    for at in (4, content.index(b"data") + 4):
        content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def not_finite(path: Path, base: Base, rng: Generator) -> None:
    sound_T = rng.uniform(-1, 1, 8_000)
    value = rng.choice([math.nan, math.inf, -math.inf, 1e30, -1e38])
    sound_T[rng.integers(8_000, size=int(rng.choice([1, 100, 8_000])))] = value
    store(path, sound_T, 16_000, str(rng.choice(["FLOAT", "DOUBLE"])))


def constant(path: Path, base: Base, rng: Generator) -> None:
    store(path, np.full(8_000, rng.choice([0, 0, 0.25, -1])), 16_000, "PCM_16")


def few_samples(path: Path, base: Base, rng: Generator) -> None:
    store(path, rng.uniform(-1, 1, int(rng.integers(0, 4))), int(rng.choice([8_000, 96_000])), "PCM_16")


def text(path: Path, base: Base, rng: Generator) -> None:
    texts = (
        "This is a letter, not a sound.\n",
        "path,label\na.wav,cat\n",
        '{"a": [1, 2]}',
        "<html>404 Not Found</html>",
    )
    path.write_text(str(rng.choice(texts)) * int(rng.integers(1, 2_000)))


def empty(path: Path, base: Base, rng: Generator) -> None:
    path.touch()


def folder(path: Path, base: Base, rng: Generator) -> None:
    path.mkdir()


def link(path: Path, base: Base, rng: Generator) -> None:
    """To nothing, or to itself."""
    path.symlink_to(path.name if rng.uniform() < 0.5 else "gone")


def pipe(path: Path, base: Base, rng: Generator) -> None:
    """Whoever opens it to read waits for a writer that never comes."""
    os.mkfifo(path)


def whole(path: Path, base: Base, rng: Generator) -> None:
    path.write_bytes(base.content)


def tail(path: Path, base: Base, rng: Generator) -> None:
    """A whole file and other bytes behind it."""
    path.write_bytes(base.content + rng.bytes(int(rng.integers(1, 5_000))))


class Kind(NamedTuple):
    write: Callable[[Path, Base, Generator], None]
    fate: str
    of: tuple[str, ...] = ()  # formats that it is done to; all by default
    suffixes: tuple[str, ...] = ()  # what the file is called; as its format by default


HEADERS = ("wav", "flac", "vorbis")
KINDS = {
    "intact": Kind(whole, USED),
    "truncated in the header": Kind(cut_header, REFUSED),
    "truncated": Kind(cut, EITHER),
    "wrong sizes": Kind(sizes, EITHER),
    "some bytes random": Kind(some_bytes, EITHER),
    "random bytes": Kind(noise, EITHER),
    "rate of 0 to 100 Hz or over 2 GHz": Kind(absurd_rate, REFUSED, HEADERS),
    "odd rate": Kind(odd_rate, USED, ("wav",)),
    "0 to 64 channels, header only": Kind(channels_told, EITHER, HEADERS),
    "1 to 64 channels, real": Kind(channels_true, USED, suffixes=("wav",)),
    "ten hours in the header, 1 kB of data": Kind(ten_hours, REFUSED, ("wav", "flac")),
    "ten hours in the Ogg header": Kind(ten_hours, EITHER, ("vorbis",)),
    "two hours in 60 kB": Kind(bomb, REFUSED, suffixes=("flac",)),
    "no length in the header": Kind(streamed, USED, ("wav", "flac")),
    "NaN, infinity, 1e30": Kind(not_finite, REFUSED, suffixes=("wav",)),
    "constant": Kind(constant, REFUSED, suffixes=("wav",)),
    "0 to 3 samples": Kind(few_samples, EITHER, suffixes=("wav",)),
    "text": Kind(text, REFUSED, suffixes=("wav", "flac", "ogg", "mp3", "au", "snd", "aiff", "caf")),
    "empty": Kind(empty, REFUSED),
    "folder": Kind(folder, REFUSED),
    "broken link": Kind(link, REFUSED),
    "pipe": Kind(pipe, REFUSED),
    "wrong suffix": Kind(whole, USED, suffixes=("wav", "flac", "ogg", "mp3", "aiff")),
    "trailing bytes": Kind(tail, USED, ("flac", "ogg")),
    "trailing bytes in wav": Kind(tail, EITHER, ("wav",)),  # read as sound: a recorder may have crashed
}
ODD_NAMES = ("line\nbreak", "\x1b[31mred", "\udcff\udcfe", "e\u0301", "tab\tname", "%s{0}", "'\"`", "x" * 200)


def make(root: Path, files: int, seed: int) -> list[Made]:
    """Writes `files` files below `root`, a quarter of them intact; one name in eight is odd."""
    intact = bases(seed)
    spoiled = [kind for kind in KINDS if kind != "intact"]
    made = []
    for i in range(files):
        rng = np.random.default_rng([seed, 1, i])
        kind = "intact" if i % 4 == 0 else spoiled[(i - i // 4 - 1) % len(spoiled)]
        write, fate, of, suffixes = KINDS[kind]
        base = Base(*rng.choice(np.array(_of(intact, of), object)))
        suffix = str(rng.choice(suffixes)) if suffixes else base.suffix
        odd = str(rng.choice(np.array(ODD_NAMES, object))) if i % 8 == 5 else kind.replace(" ", "_").replace(",", "")
        name = f"{('bell', 'rain', 'siren')[i % 3]}/{i:05d}_{odd}.{suffix}"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, base, rng)
        made.append(Made(unicodedata.normalize("NFC", name), kind, fate))
    return made


def _of(intact: list[Base], formats: tuple[str, ...]) -> list[Base]:
    """The intact files of some formats; `vorbis` is Ogg with Vorbis in it."""
    return [
        base
        for base in intact
        if not formats or base.suffix in formats or ("vorbis" in formats and b"\x01vorbis" in base.content[:64])
    ]
