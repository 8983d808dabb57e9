"""Intact sound files of every format, and changes to the fields of their headers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from datar_jax.data import synthetic_sounds


class Base(NamedTuple):
    """An intact sound file."""

    suffix: str
    content: bytes
    rate: int


def bases(seed: int) -> list[Base]:
    """Intact files of every format, rate and length that the mutations start from."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for i, (suffix, subtype, rate) in enumerate(
            [
                ("wav", "PCM_16", 16_000),
                ("wav", "PCM_24", 44_100),
                ("wav", "FLOAT", 48_000),
                ("wav", "IMA_ADPCM", 22_050),
                ("wav", "ULAW", 8_000),
                ("flac", "PCM_16", 16_000),
                ("flac", "PCM_24", 48_000),
                ("ogg", "VORBIS", 16_000),
                ("ogg", "VORBIS", 44_100),
                ("ogg", "OPUS", 48_000),
                ("mp3", "MPEG_LAYER_III", 16_000),
                ("mp3", "MPEG_LAYER_III", 44_100),
                ("aiff", "PCM_16", 32_000),
                ("au", "PCM_16", 16_000),
                ("w64", "PCM_16", 16_000),
                ("rf64", "PCM_16", 16_000),
                ("caf", "PCM_16", 24_000),
            ]
        ):
            rng = np.random.default_rng([seed, i])
            sound_T = synthetic_sounds.render(sorted(synthetic_sounds.KINDS)[i % 10], rng, rng.uniform(0.5, 3), rate)
            path = Path(folder, f"a.{suffix}")
            channels = int(rng.integers(1, 3))
            store(path, np.stack([sound_T] * channels, 1), rate, subtype, suffix)
            out.append(Base(suffix, path.read_bytes(), rate))
    return out


def store(path: Path, sound: np.ndarray, rate: int, subtype: str, format: str = "wav") -> None:
    """Writes a sound under any name, and the same bytes every time."""
    soundfile.write(os.fsencode(path), sound, rate, subtype, format=format.upper())
    path.write_bytes(without_clock(path.read_bytes()))


def without_clock(content: bytes) -> bytes:
    """The file without what libsndfile takes from the clock: the date of a PEAK chunk, the number of an Ogg stream."""
    settled = bytearray(content)
    if (at := settled.find(b"PEAK", 0, 4096)) >= 0:
        settled[at + 12 : at + 16] = bytes(4)
    at = 0
    while settled[:4] == b"OggS" and (at := settled.find(b"OggS", at)) >= 0:
        settled[at + 14 : at + 18] = b"fuzz"
        at += 27
    seal_ogg(settled)
    return bytes(settled)


def with_fields(base: Base, rate: int = -1, channels: int = -1, seconds: float = -1) -> bytes:
    """The file with another rate, channel count or length in its header; wav, flac and Ogg Vorbis have all three."""
    content = bytearray(base.content)
    if base.suffix == "wav":
        at = content.index(b"fmt ") + 8
        if rate >= 0:
            content[at + 4 : at + 8] = (rate % 2**32).to_bytes(4, "little")
        if channels >= 0:
            content[at + 2 : at + 4] = channels.to_bytes(2, "little")
        if seconds >= 0:
            data = content.index(b"data") + 4
            size = int(seconds * base.rate * int.from_bytes(content[at + 12 : at + 14], "little"))
            content[data : data + 4] = min(size, 0xF000_0000).to_bytes(4, "little")
    elif base.suffix == "flac":  # STREAMINFO: 20 bits rate, 3 bits channels - 1, 5 bits width, 36 bits samples
        fields = int.from_bytes(content[18:26], "big")
        if rate >= 0:
            fields = fields % 2**44 | (rate % 2**20) << 44
        if channels >= 0:
            fields = fields & ~(7 << 41) | (channels - 1) % 8 << 41
        if seconds >= 0:
            fields = fields >> 36 << 36 | min(int(seconds * base.rate), 2**36 - 1)
        content[18:26] = fields.to_bytes(8, "big")
    elif base.suffix == "ogg":
        at = content.index(b"\x01vorbis") + 7
        if rate >= 0:
            content[at + 5 : at + 9] = (rate % 2**32).to_bytes(4, "little")
        if channels >= 0:
            content[at + 4] = channels
        if seconds >= 0:
            last = content.rindex(b"OggS")
            content[last + 6 : last + 14] = int(seconds * base.rate).to_bytes(8, "little")
        seal_ogg(content)
    return bytes(content)


def seal_ogg(content: bytearray) -> None:
    """Writes the checksum of every page anew: a reader skips a page whose checksum is wrong."""
    at = 0
    while (at := content.find(b"OggS", at)) >= 0 and at + 27 <= len(content):
        segments = content[at + 26]
        end = at + 27 + segments + sum(content[at + 27 : at + 27 + segments])
        content[at + 22 : at + 26] = bytes(4)
        content[at + 22 : at + 26] = ogg_checksum(bytes(content[at:end])).to_bytes(4, "little")
        at += 27


def ogg_checksum(page: bytes) -> int:
    total = 0
    for byte in page:
        total = (total << 8) % 2**32 ^ OGG_TABLE[total >> 24 ^ byte]
    return total


def _ogg_entry(value: int) -> int:
    value <<= 24
    for _ in range(8):
        value = (value << 1) % 2**32 ^ (0x04C11DB7 if value >> 31 else 0)
    return value


OGG_TABLE = [_ogg_entry(i) for i in range(256)]
