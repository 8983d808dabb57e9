"""Finds all sound of a file, also what its header does not tell.

libsndfile believes the first header: of joined files it reads the first, of a file whose recorder crashed nothing, of a
WAV above 4 GiB the remainder of a division. `find_sections` compares headers with the bytes that are there and returns
the parts to be read one after another, or raises the reason why the file cannot be read whole.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from datar_jax.audio.containers.flac import flac_sections
from datar_jax.audio.containers.mpeg import mpeg_frame, mpeg_sections, skip_id3
from datar_jax.audio.containers.ogg import ogg_sections
from datar_jax.audio.containers.riff import RIFF, is_placeholder, riff_sections
from datar_jax.audio.containers.section import Section, SectionFile, Sections

__all__ = ["Section", "SectionFile", "Sections", "find_sections", "is_placeholder"]


def find_sections(path: str | Path) -> Sections:
    """Compares the header of a file with its content.

    Raises:
      AudioError: the file is truncated, or holds more than its header states in a form that cannot be read.
      OSError, ValueError: it cannot be read.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content[:12]
        if start[:4] in RIFF and start[8:] == b"WAVE":
            return riff_sections(content)
        if start[:4] == b"OggS":
            return ogg_sections(content)
        first = skip_id3(content, 0)
        if content[first : first + 4] == b"fLaC":
            return flac_sections(content, first)
        if mpeg_frame(content, first):
            return mpeg_sections(content, first)
    return Sections()
