"""Sections of an MPEG-1 or 2 audio file (ISO 11172-3, 13818-3) with or without Xing headers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from datar_jax.audio.containers.section import TOLERANCE, Bytes, Section, Sections
from datar_jax.audio.errors import AudioError

# Bit rates in kbit/s by the bits of the layer and the index
MPEG1 = {
    3: (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
MPEG2 = {
    3: (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    1: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class Frame(NamedTuple):
    """One frame of MPEG audio."""

    length: int  # bytes
    bitrate: int  # kbit/s


def mpeg_sections(content: Bytes, first: int) -> Sections:
    """Joined files, and lengths that are estimated from the first frame where no Xing header states them."""
    if abs(_xing_bytes(content, first) - (len(content) - first)) <= TOLERANCE:  # as nearly all files are
        return Sections()
    runs = [run for run in _runs(content, first) if run.frames]
    if not runs:
        return Sections()  # libsndfile reports what is wrong
    if len(runs) == 1 and (runs[0].stated or runs[0].constant):
        stated = runs[0].stated
        if not stated or runs[0].frames <= stated + 1:
            return Sections()
    sections = []
    for run in runs:
        counts = run.stated and run.frames <= run.stated + 1
        sections.append(Section(run.first, run.last, b"" if counts else _xing(content, run)))
    if len(runs) > 1:
        return Sections(tuple(sections), f"{len(runs)} files that were joined")
    return Sections(tuple(sections), "the header does not state its length; all frames are read")


@dataclass
class Run:
    """Frames that one header describes."""

    first: int
    last: int
    head: int  # its first frame with sound
    frames: int = 0
    stated: int = 0  # frames by its Xing header; 0: it has none
    constant: bool = True  # one bitrate


def _runs(content: Bytes, at: int) -> Iterator[Run]:
    """Yields the streams of a file, which begin where a Xing header is."""
    run: Run | None = None
    bitrate, size = 0, len(content)
    known: dict[bytes, Frame] = {}
    marks = itertools.chain(content.matches(rb"Xing|Info|VBRI"), [size])
    mark = next(marks)
    while at + 4 <= size:
        key = content[at : at + 3]
        frame = known.get(key)
        if frame is None:
            frame = mpeg_frame(content, at)
            if frame is None:
                behind = _next_frame(content, at)
                if behind - at > TOLERANCE and run:  # a length by the size of the file would count it
                    run.constant = False
                at = behind
                continue
            known[key] = frame
        while mark < at:
            mark = next(marks)
        if mark < at + frame.length and (stated := _xing_frames(content, at)) is not None:
            if run:
                run.last = at
                yield run
            run, bitrate = Run(at, size, at, stated=stated), 0
        else:
            if run is None:
                run = Run(at, size, at)
            if bitrate not in (0, frame.bitrate):
                run.constant = False
            if not run.frames:
                run.head = at
            bitrate = frame.bitrate
            run.frames += 1
        at += frame.length
    if run:
        yield run


def mpeg_frame(content: Bytes | bytes, at: int) -> Frame | None:
    """The frame that begins here; None if none does."""
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, index, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or not layer or index in (0, 15) or rate == 3:
        return None
    bitrate = (MPEG1 if version == 3 else MPEG2)[layer][index]
    hertz, padding = RATES[version][rate], head[2] >> 1 & 1
    if layer == 3:
        return Frame((12_000 * bitrate // hertz + padding) * 4, bitrate)
    samples = 576 if layer == 1 and version != 3 else 1152
    return Frame(samples // 8 * 1000 * bitrate // hertz + padding, bitrate)


def _next_frame(content: Bytes, at: int) -> int:
    """Where the next frame begins, behind tags or damage: one that another follows, or that ends the file."""
    if (after := skip_id3(content, at)) > at:
        return after
    while (at := content.find(b"\xff", at + 1)) >= 0:
        frame = mpeg_frame(content, at)
        if frame and (at + frame.length >= len(content) or mpeg_frame(content, at + frame.length)):
            return at
    return len(content)


def _xing_frames(content: Bytes, at: int) -> int | None:
    """Number of frames that a Xing header states; None if the frame is none, 0 if it does not tell."""
    where = at + _xing_offset(content[at : at + 4])
    if content[where : where + 4] in (b"Xing", b"Info"):
        return int.from_bytes(content[where + 8 : where + 12], "big") if _flags(content, where) & 1 else 0
    if content[at + 36 : at + 40] == b"VBRI":
        return int.from_bytes(content[at + 50 : at + 54], "big")
    return None


def _xing_bytes(content: Bytes, at: int) -> int:
    """Size of a stream that its Xing header states; 0 if it does not."""
    if not _xing_frames(content, at):
        return 0
    where = at + _xing_offset(content[at : at + 4])
    if _flags(content, where) & 3 != 3 or content[where : where + 4] not in (b"Xing", b"Info"):
        return 0
    return int.from_bytes(content[where + 12 : where + 16], "big")


def _flags(content: Bytes, where: int) -> int:
    """Which numbers a Xing header states: 1 frames, 2 bytes; none where the file ends before."""
    return int.from_bytes(content[where + 4 : where + 8], "big")


def _xing_offset(head: bytes | bytearray) -> int:
    """Where in a frame the Xing header lies: behind the side information of its number of channels."""
    mono, first = head[3] >> 6 == 3, head[1] & 8
    return 4 + ((17 if mono else 32) if first else (9 if mono else 17))


def _xing(content: Bytes, run: Run) -> bytes:
    """A frame with a Xing header that states the number of frames of a run."""
    head = bytearray(content[run.head : run.head + 4])
    head[1] |= 1  # no checksum
    for index in range(1, 15):  # the smallest frame with room for it
        head[2] = head[2] & 0x0D | index << 4
        frame = mpeg_frame(bytes(head), 0)
        if frame and frame.length >= 64:
            break
    else:
        raise AudioError("the header does not state its length; save the file anew")
    where = _xing_offset(head)
    made = bytearray(frame.length)
    made[:4] = head
    made[where : where + 12] = b"Xing\x00\x00\x00\x01" + run.frames.to_bytes(4, "big")
    return bytes(made)


def skip_id3(content: Bytes, at: int) -> int:
    """Where the content behind ID3v2 tags begins."""
    while content[at : at + 3] == b"ID3" and len(content) >= at + 10:
        size = 0
        for byte in content[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size
    return at
