"""Headers of fixed places before samples: AU of Sun and NeXT, and SPHERE of NIST."""

from __future__ import annotations

import re
from typing import Literal

from datar_jax.audio.containers.chunks import Header
from datar_jax.audio.containers.section import Bytes

AU: dict[bytes, Literal["big", "little"]] = {b".snd": "big", b"dns.": "little"}
FIELDS = 1 << 16  # bytes of a header of SPHERE that are searched; nearly all have 1024
ADPCM = range(23, 27)  # encodings of AU that libsndfile reads to the end of the file


def plain_header(content: Bytes, first: int) -> Header | None:
    """The header of the file that begins at `first`; None if none of these kinds does."""
    head = content[first : first + 24]
    if head[:4] in AU:
        return _au(content, first, head)
    if head[:8] == b"NIST_1A\n":
        return _sphere(content, first)
    return None


def _au(content: Bytes, first: int, head: bytes) -> Header | None:
    order = AU[head[:4]]
    offset, stated, encoding, rate, channels = (int.from_bytes(head[i : i + 4], order) for i in range(4, 24, 4))
    if len(head) < 24 or offset < 24 or not 0 < encoding < 30 or not rate or not 0 < channels < 1024:
        return None
    start = first + offset
    return Header(
        start,
        None if stated == 0xFFFF_FFFF else stated,
        lambda _: head[:8] + b"\xff\xff\xff\xff" + content[first + 12 : start],  # to the end of the file
        reads_on=encoding in ADPCM,
    )


def _sphere(content: Bytes, first: int) -> Header | None:
    size = content[first + 8 : first + 16].strip()
    if not size.isdigit() or int(size) < 16:  # no room for the size itself
        return None
    start, stated = first + int(size), 1
    fields = content[first : min(start, first + FIELDS)]
    for name in (b"sample_count", b"channel_count", b"sample_n_bytes"):
        found = re.search(name + rb" -\w+ (\d{1,18})", fields)
        stated *= int(found[1]) if found else 0
    return Header(start, stated or None, lambda _: content[first:start], reads_on=True)
