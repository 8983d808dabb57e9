"""Sections of an Ogg file: the links of a chain (RFC 3533)."""

from __future__ import annotations

from datar_jax.audio.containers.section import Bytes, Sections, joined
from datar_jax.audio.errors import AudioError


def ogg_sections(content: Bytes) -> Sections:
    """The links of a chain: each begins with pages that are marked as first."""
    starts, at, heads = [0], 0, True
    while at < len(content):
        if content[at : at + 4] != b"OggS":
            at = content.find(b"OggS", at)
            if at < 0:
                break
            continue
        page = content[at : at + 27 + 255]
        lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
        if len(page) < 27 or len(lengths) < page[26]:
            raise AudioError("truncated: the last Ogg page is incomplete")
        if page[5] & 2 and not heads:
            starts.append(at)
        heads = bool(page[5] & 2)
        at += 27 + len(lengths) + sum(lengths)
        if at > len(content):
            raise AudioError("truncated: the last Ogg page is incomplete")
    return joined(starts, len(content))
