"""Headers of files that are chains of chunks: WAV, RF64, Wave64, AIFF, AIFC, CAF and 8SVX.

Sources: IBM and Microsoft, RIFF (1991); EBU Tech 3306; Sony, Wave64; Apple, AIFF-C (1991) and CAF; Electronic Arts,
8SVX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from datar_jax.audio.containers.section import Bytes

GUID = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # the end of the long names of Wave64
GUID_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
# Chunks that follow samples
LATER = (
    rb"LIST|INFO|bext|iXML|id3 |ID3 |cue |smpl|fact|PEAK|_PMX|JUNK|list|levl|COMM|ANNO|NAME|AUTH|\(c\) |COMT|MARK|INST|"
    rb"MIDI|AESD|APPL|info|pakt|strg|mark|regn|inst|peak|midi|ovvw|umid|uuid|free|edct"
)


class Chunks(NamedTuple):
    """How the files of one kind are divided."""

    order: Literal["little", "big"] = "little"
    name: int = 4  # bytes of a chunk's name
    size: int = 4  # bytes of its size
    counts_head: bool = False  # whether a size counts name and size as well
    align: int = 2  # a chunk is padded to a multiple of it
    first: int = 12  # where the first chunk begins
    samples: bytes = b"data"  # name of the chunk of samples
    ahead: int = 0  # bytes in it before the first sample

    def chunk(self, content: Bytes, at: int) -> tuple[bytes, int, int, int] | None:
        """Name, first byte, stated size of the chunk at `at`, and where the next begins; None behind the last."""
        start = at + self.name + self.size
        head = content[at:start]
        if len(head) < self.name + self.size:
            return None
        size = int.from_bytes(head[self.name :], self.order)
        if self.counts_head:
            size = max(0, size - len(head))
        return head[: self.name], start, size, start + size + -size % self.align

    def is_chunk(self, content: Bytes, at: int) -> bool:
        """Whether a chunk begins here: a printable name, and a size that is there."""
        found = self.chunk(content, at)
        if found is None or not all(32 <= byte < 127 for byte in found[0][:4]):
            return False
        return found[1] + found[2] <= len(content) + 1


RIFF, RIFX, AIFF = Chunks(), Chunks("big"), Chunks("big", samples=b"SSND", ahead=8)
SVX = Chunks("big", samples=b"BODY")
WAVE64 = Chunks(name=16, size=8, counts_head=True, align=8, first=40, samples=b"data" + GUID)
CAF = Chunks("big", size=8, align=1, first=8, ahead=4)


def chunks_of(content: Bytes, at: int) -> Chunks | None:
    """The kind of file that begins here, by its mark; None if none of these does."""
    head = content[at : at + 40]
    mark, form = head[:4], head[8:12]
    if form == b"WAVE":
        return {b"RIFF": RIFF, b"RF64": RIFF, b"BW64": RIFF, b"RIFX": RIFX}.get(mark)
    if mark == b"FORM":
        return {b"AIFF": AIFF, b"AIFC": AIFF, b"8SVX": SVX, b"16SV": SVX}.get(form)
    if head[:16] == GUID_RIFF and head[24:] == b"wave" + GUID:
        return WAVE64
    return CAF if head[:6] == b"caff\x00\x01" else None


class Header(NamedTuple):
    """What the header of a file states of its samples."""

    start: int  # where they begin
    stated: int | None  # their bytes; None: to the end of the file
    with_size: Callable[[int], bytes] | None  # the header for a number of bytes; None: these are no plain samples
    chunks: Chunks | None = None  # how the file is divided
    reads_on: bool = False  # whether libsndfile reads to the end of the file, whatever is stated
    foreign: bool = False  # whether libsndfile does not know the header


def chunk_header(content: Bytes, first: int, kind: Chunks) -> Header | None:
    """The header of the file that begins at `first`; None if its chunk of samples is not found."""
    at, wide, plain = first + kind.first, None, True
    while (found := kind.chunk(content, at)) is not None:
        name, start, stated, behind = found
        if name == b"ds64":
            wide = int.from_bytes(content[start + 8 : start + 16], "little")
        elif name == b"desc":
            plain = content[start + 8 : start + 12] in (b"lpcm", b"ulaw", b"alaw")
        elif name == kind.samples:
            break
        elif not kind.is_chunk(content, at):
            return None
        at = behind
    else:
        return None
    mark = content[first : first + 4]
    ahead = kind.ahead + (int.from_bytes(content[start : start + 4], "big") if kind is AIFF else 0)
    if wide and stated == 0xFFFF_FFFF:
        stated = wide
    size = max(0, stated - ahead)

    def with_size(count: int) -> bytes:
        head = bytearray(content[first : start + ahead])
        at_size = slice(start - first - kind.size, start - first)
        if name == b"data" and kind is not CAF:  # RIFF of size 8 is read to its end, also above 4 GiB
            head[:4] = b"RIFX" if mark == b"RIFX" else b"RIFF"
            head[4:8], head[at_size] = (8).to_bytes(4, kind.order), bytes(4)
        elif kind.size == 8:
            head[at_size] = (count + ahead + kind.counts_head * (kind.name + kind.size)).to_bytes(8, kind.order)
        else:  # AIFF: 0 is read to the end; 8SVX: what is too large is
            head[at_size] = bytes(4) if kind is AIFF else b"\xff\xff\xff\xff"
        return bytes(head)

    return Header(
        start + ahead,
        None if kind is CAF and stated == 2**64 - 1 else size,
        with_size if plain else None,
        kind,
        reads_on=kind in (WAVE64, SVX),
        foreign=mark == b"BW64",
    )
