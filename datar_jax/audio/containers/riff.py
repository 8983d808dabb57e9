"""Sections of a WAV: RIFF, RIFX and RF64 (IBM and Microsoft, 1991; EBU Tech 3306)."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from datar_jax.audio.containers.section import TOLERANCE, Bytes, Section, Sections
from datar_jax.audio.errors import AudioError

Order = Literal["little", "big"]

RIFF = b"RIFF", b"RIFX", b"RF64", b"BW64"  # marks of a file
TAIL = 1 << 20  # bytes at the end of a file in which chunks are looked for behind samples without a size
ROUND = 100_000_000  # recorders that cannot go back leave a multiple of this, or nearly 2**31 or 2**32, as the size
TAGS = b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN"  # what players append
SUBTYPES = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}


def riff_sections(content: Bytes) -> Sections:
    """WAV in 32 and 64 bits, either byte order; one after another where files were joined."""
    found: list[Section] = []
    notes: list[str] = []
    first: int | None = 0
    while first is not None:
        start = first
        sections, note, first = _one_file(content, start)
        notes += [note] if note else []
        found += sections or (Section(start, len(content) if first is None else first),)
    if len(found) > 1:
        notes.insert(0, f"{len(found)} files that were joined")
    alone = len(found) == 1 and not found[0].raw
    return Sections(() if alone else tuple(found), "; ".join(notes))


class _File(NamedTuple):
    """What one of several joined files needs."""

    sections: tuple[Section, ...]  # none: libsndfile reads it by its header
    note: str = ""
    following: int | None = None  # where the next file begins


def _one_file(content: Bytes, first: int) -> _File:
    """Finds the samples of the file that begins here."""
    order: Order = "big" if content[first : first + 4] == b"RIFX" else "little"
    at, wide, form = first + 12, 0, b""
    while at + 8 <= len(content):
        name, stated = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], order)
        if name == b"ds64":
            wide = int.from_bytes(content[at + 16 : at + 24], "little")
        elif name == b"fmt ":
            form = content[at + 8 : at + 8 + min(stated, 64)]
        elif name == b"data":
            return _samples(content, at + 8, wide if stated == 0xFFFF_FFFF and wide else stated, form, order)
        elif not _is_chunk(content, at, order):
            break
        at += 8 + stated + stated % 2
    return _File(())  # libsndfile tells what is wrong


def _samples(content: Bytes, start: int, stated: int, form: bytes, order: Order) -> _File:
    """The samples of a file: as many as the header states, or as are there."""
    there = len(content) - start
    if stated > there:
        if stated - there <= TOLERANCE:
            return _File((), f"the header states {stated - there} bytes more than there are")
        if not is_placeholder(stated):
            raise AudioError(f"truncated: {there} of {stated} promised bytes are there")
    else:
        end = start + stated + (stated % 2 and there > stated)
        if (following := _next_file(content, end, order)) is not None:
            return _File((), "", following)
        rest = content[end : end + TOLERANCE]
        wrapped = there > stated and (there - stated) % 2**32 == 0  # above 4 GiB
        padded = stated and not any(rest)
        tagged = rest.startswith(TAGS) or _is_chunk(content, end, order)
        if not wrapped and (padded or tagged or (stated and there - stated <= TOLERANCE)):
            return _File(())
    if there:
        return _File(_raw_section(start, _end(content, start, order), form, order), _size_note(stated, there))
    return _File(())


def _next_file(content: Bytes, at: int, order: Order) -> int | None:
    """Where another file begins behind the chunks that follow the samples; None if none does."""
    while not (content[at : at + 4] in RIFF and content[at + 8 : at + 12] == b"WAVE"):
        if not _is_chunk(content, at, order):
            return None
        size = int.from_bytes(content[at + 4 : at + 8], order)
        at += 8 + size + size % 2
    return at


def _end(content: Bytes, start: int, order: Order) -> int:
    """Where the samples end that no size delimits: before the chunks at the end of the file."""
    tail = max(start, len(content) - TAIL)
    for found in re.finditer(rb"LIST|INFO|bext|iXML|id3 |ID3 |cue |smpl|fact|PEAK|_PMX|JUNK", content[tail:]):
        at = tail + found.start()
        while _is_chunk(content, at, order):
            size = int.from_bytes(content[at + 4 : at + 8], order)
            at += 8 + size + size % 2
        if at >= len(content):
            return tail + found.start()
    return len(content)


def _size_note(stated: int, there: int) -> str:
    return f"the header states {stated} bytes of sound, there are {there}, and all are read"


def _is_chunk(content: Bytes, at: int, order: Order) -> bool:
    """Whether a chunk begins here: a printable name, and a size that is there."""
    head = content[at : at + 8]
    size = int.from_bytes(head[4:], order)
    return len(head) == 8 and all(32 <= c < 127 for c in head[:4]) and size <= len(content) - at - 7


def is_placeholder(size: int) -> bool:
    """Whether a size is what a recorder leaves that cannot go back: nothing, a round number, or about the largest."""
    return size % ROUND == 0 or 0x7FFF_0000 <= size <= 0x8000_0000 or size >= 0xFFFF_0000


def _raw_section(first: int, last: int, form: bytes, order: Order) -> tuple[Section]:
    """Samples without a header."""
    number = lambda at, size: int.from_bytes(form[at : at + size], order)  # noqa: E731
    kind = number(24, 2) if number(0, 2) == 0xFFFE else number(0, 2)  # the wide format has the kind further on
    subtype = SUBTYPES.get((kind, number(14, 2)))
    channels, frame = number(2, 2), number(12, 2)
    if not subtype or not channels or not frame:
        raise AudioError("the header states another size than is there; save the file anew as wav or flac")
    raw = {"samplerate": number(4, 4), "channels": channels, "subtype": subtype, "format": "RAW"}
    raw["endian"] = order.upper()
    return (Section(first, last - (last - first) % frame, raw=raw),)
