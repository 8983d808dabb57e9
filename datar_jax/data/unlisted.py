"""Sounds that lie beside listed ones and that no list names."""

from __future__ import annotations

import contextlib
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.wording import count


def unlisted_note(root: Path, names: Iterable[str]) -> tuple[str, ...]:
    """A line with the number of sounds that no list names and the first of them; nothing if there is none.

    Args:
      root: the folder that names are relative to.
      names: of the listed files. Only their own folders are searched: a root may hold anything beside.
    """
    listed = {posixpath.normpath(name) for name in names}
    left = []
    for folder in {posixpath.dirname(name) for name in listed}:
        with contextlib.suppress(OSError):  # a listed file that is missing is reported as such
            for entry in os.scandir(root / folder):
                name = posixpath.join(folder, unicodedata.normalize("NFC", entry.name))
                if entry.name[0] != "." and Path(name).suffix.lower() in SUFFIXES and name not in listed:
                    left.append(name)
    return (unlisted(left),) if left else ()


def unlisted(names: Sequence[str]) -> str:
    """The line for sounds, at least one, that no list names."""
    return f"{count(len(names), 'sound is', 'sounds are')} named by no list and left out, the first: {min(names)!r}"
