"""Published archives, fetched and unpacked: checked, resumed, and kept inside their folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A file on the network and how its content is known."""

    url: str
    name: str  # of the file that it is kept as
    sha256: str  # of its bytes; empty where its publisher packs it anew for everybody
    size: int  # bytes, about, for a person who waits; 0 if unknown
