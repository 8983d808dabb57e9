"""Sections of a FLAC file (RFC 9639)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datar_jax.audio.containers.section import Bytes, Section, Sections, joined

START = b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"  # marker and header of the first block, its only length
TAIL = 1 << 17  # bytes at the end of a stream that hold its last frame


def flac_sections(content: Bytes, first: int) -> Sections:
    """Joined files, and a header that states fewer samples than the last frame counts."""
    starts = [first, *_later_starts(content, first + 4)]
    if len(starts) > 1:
        return joined(starts, len(content))
    info = content[first + 8 : first + 42]
    fields = int.from_bytes(info[10:18], "big")
    stated, counted = fields % 2**36, _last_sample(content, int.from_bytes(info[:2], "big"))
    if len(info) < 34 or not stated or counted <= stated:
        return Sections()
    unknown = content[first : first + 18] + (fields >> 36 << 36).to_bytes(8, "big")
    note = f"the header states {stated} samples, there are {counted}, and all are read"
    return Sections((Section(first + 26, len(content), unknown),), note)


def _later_starts(content: Bytes, first: int) -> Iterator[int]:
    """Where further streams begin. numpy compares bytes several times as fast as `find` looks for four of them."""
    for begin, size, part in content.blocks(first):
        byte_N = np.frombuffer(part, np.uint8)
        first_M = np.flatnonzero(byte_N[: min(size, len(part) - 1)] == START[0][0])
        first_M = first_M[byte_N[first_M + 1] == START[0][1]]
        yield from (begin + i for i in first_M.tolist() if part[i : i + 8] in START)


def _last_sample(content: Bytes, block: int) -> int:
    """Number of the sample after the last frame of a stream; 0 if that is not found."""
    tail = content[max(0, len(content) - TAIL) :]
    at = tail.rfind(b"\xff")
    while at >= 0:
        if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9") and (found := _frame_end(tail[at : at + 16], block)):
            return found
        at = tail.rfind(b"\xff", 0, at)
    return 0


def _frame_end(head: bytes, block: int) -> int:
    """Number of the sample after a frame, from its header; 0 if the checksum says that it is none."""
    if len(head) < 6:
        return 0
    extra = max(0, 7 - (head[4] ^ 0xFF).bit_length())  # bytes of the number after its first, as in UTF-8
    number = head[4] if not extra else head[4] & (0x3F >> extra)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at, code = 5 + extra, head[2] >> 4
    size = {1: 192, **{i: 576 << i - 2 for i in range(2, 6)}, **{i: 256 << i - 8 for i in range(8, 16)}}.get(code, 0)
    if code in (6, 7):
        size = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if not size or at >= len(head) or _crc8(head[:at]) != head[at]:
        return 0
    return (number if head[1] & 1 else number * block) + size


def _crc8(content: bytes) -> int:
    """Checksum of a FLAC frame header: polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
