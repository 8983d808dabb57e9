"""Finds all sound of a file, also what its header does not tell.

libsndfile believes the first header: of joined files it reads the first, of a file whose recorder crashed nothing, of a
WAV above 4 GiB the remainder of a division. `find_sections` compares headers with the bytes that are there and returns
the parts to be read one after another, or raises the reason why the file cannot be read whole.
"""

from __future__ import annotations

from pathlib import Path

from datar_jax.audio.containers.flac import flac_sections
from datar_jax.audio.containers.mpeg import mpeg_frame, mpeg_sections, skip_id3
from datar_jax.audio.containers.ogg import ogg_sections
from datar_jax.audio.containers.section import Bytes, Section, SectionFile, Sections
from datar_jax.audio.containers.sized import sized_sections
from datar_jax.foreign_files import open_regular

__all__ = ["Section", "SectionFile", "Sections", "find_sections"]


def find_sections(path: str | Path) -> Sections:
    """Compares the header of a file with its content.

    Raises:
      AudioError: the file is truncated, or holds more than its header states in a form that cannot be read.
      OSError, ValueError: it cannot be read.
    """
    with open_regular(path) as file:
        content = Bytes(file)
        if (sections := sized_sections(content)) is not None:
            return sections
        if content[:4] == b"OggS":
            return ogg_sections(content)
        first = skip_id3(content, 0)
        if content[first : first + 4] == b"fLaC":
            return flac_sections(content, first)
        if mpeg_frame(content, first):
            return mpeg_sections(content, first)
    return Sections()
