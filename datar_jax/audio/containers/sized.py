"""Sections of files whose header states the size of their samples: compares it with what is there."""

from __future__ import annotations

import re
from typing import NamedTuple

from datar_jax.audio.containers.chunks import LATER, Chunks, Header, chunk_header, chunks_of
from datar_jax.audio.containers.plain import plain_header
from datar_jax.audio.containers.section import TOLERANCE, Bytes, Section, Sections
from datar_jax.audio.errors import AudioError

TAIL = 1 << 20  # bytes before the end of samples without a size, in which chunks are looked for
TAGS = b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN"  # what players append
SEARCHED = 1 << 28  # bytes behind a header without a size in which another file is looked for
LARGEST = 1 << 24  # bytes of a header that is held in memory
ROUND = 100_000_000  # recorders that cannot go back leave a multiple of this, or nearly 2**31 or 2**32, as the size
COUNTED = 24  # bytes besides samples that such a size may count, at most: the head of a chunk of Wave64


def sized_sections(content: Bytes) -> Sections | None:
    """One file, or one after another where files were joined; None if the file is of another kind."""
    if _header(content, 0) is None and chunks_of(content, 0) is None:
        return None
    found: list[Section] = []
    notes: list[str] = []
    first: int | None = 0
    while first is not None:
        start = first
        section, note, first = _one_file(content, start)
        notes += [note] if note else []
        found.append(section or Section(start, len(content) if first is None else first))
    if len(found) > 1:
        notes.insert(0, f"{len(found)} files that were joined")
    alone = found == [Section(0, len(content))]
    return Sections(() if alone else tuple(found), "; ".join(notes))


class _File(NamedTuple):
    """What one of several joined files needs."""

    section: Section | None = None  # None: libsndfile reads it by its header
    note: str = ""
    following: int | None = None  # where the next file begins


def _header(content: Bytes, first: int) -> Header | None:
    kind = chunks_of(content, first)
    return chunk_header(content, first, kind) if kind else plain_header(content, first)


def _one_file(content: Bytes, first: int) -> _File:
    """The samples of a file: as many as its header states, or as are there."""
    header = _header(content, first)
    if header is None or header.start > len(content):
        return _File()  # libsndfile says what is wrong
    start, stated, kind = header.start, header.stated, header.chunks
    there = len(content) - start
    if stated is None:
        return _to_the_end(content, first, header, "")
    if stated > there:
        if stated - there <= _slack(stated):
            note = f"the header states {stated - there} bytes more than there are"
            return _File(_section(content, first, header, len(content)), note)
        if not _is_placeholder(stated):
            raise AudioError(f"truncated: {there} of {stated} promised bytes are there")
    else:
        end = start + stated
        behind = min(len(content), end + (-stated % kind.align if kind else 0))
        cut = (
            _section(content, first, header, end)
            if header.foreign or (header.reads_on and end < len(content))
            else None
        )
        if (following := _next_file(content, behind, kind)) is not None:
            return _File(cut, "", following)
        wrapped = there > stated and (there - stated) % 2**32 == 0  # above 4 GiB
        if not wrapped and _is_all(content, behind, stated, kind):
            return _File(cut)
    return _to_the_end(content, first, header, f"the header states {stated} bytes of sound")


def _is_placeholder(size: int) -> bool:
    """Whether a size is what a recorder leaves that cannot go back: nothing, a round number, or about the largest."""
    largest = 0x7FFF_0000 <= size <= 0x8000_0000 or 0xFFFF_0000 <= size < 2**32 or size >= 2**62
    return -size % ROUND <= COUNTED or largest


def _slack(stated: int) -> int:
    """Bytes by which a size may be off."""
    return min(TOLERANCE, 64 + stated // 16)


def _is_all(content: Bytes, behind: int, stated: int, kind: Chunks | None) -> bool:
    """Whether what lies behind the stated samples is no sound: nothing, tags, chunks, padding or too little."""
    rest = content[behind : behind + TOLERANCE]
    if rest.startswith(TAGS) or (kind and kind.is_chunk(content, behind)):
        return True
    if not stated:
        return not rest
    padded = not any(rest) and not any(part.strip(b"\0") for *_, part in content.blocks(behind))
    return padded or len(content) - behind <= _slack(stated)


def _next_file(content: Bytes, at: int, kind: Chunks | None) -> int | None:
    """Where another file begins, behind the chunks that follow the samples; None if none does."""
    while _header(content, at) is None:
        found = kind.chunk(content, at) if kind and kind.is_chunk(content, at) else None
        if found is None:
            return None
        at = found[3]
    return at


def _to_the_end(content: Bytes, first: int, header: Header, note: str) -> _File:
    """A file whose header does not state where its samples end."""
    mark = re.escape(content[first : first + 4])
    marks = content.matches(mark, header.start, header.start + SEARCHED)
    following = next((at for at in marks if _header(content, at)), None)
    end = _end(content, header.start, len(content) if following is None else following, header.chunks)
    if end == header.start:
        return _File(None, "", following)
    section = _section(content, first, header, end)
    note = f"{note}, there are {end - header.start}, and all are read" if note and section else ""
    return _File(section, note, following)


def _end(content: Bytes, start: int, last: int, kind: Chunks | None) -> int:
    """Where samples end that no size delimits: before the chunks at the end of their file."""
    if kind is None:
        return last
    for found in content.matches(LATER, max(start, last - TAIL), last):
        at = found
        while at < last and kind.is_chunk(content, at) and (chunk := kind.chunk(content, at)):
            at = chunk[3]
        if at >= last:
            return min(found, last)
    return last


def _section(content: Bytes, first: int, header: Header, end: int) -> Section | None:
    """The samples up to `end`, behind a header that states so; None if they are not plain."""
    if header.with_size is None:
        return None
    if header.start - first > LARGEST:
        raise AudioError("the header states another size than is there; save the file anew as wav or flac")
    return Section(header.start, end, header.with_size(end - header.start))
