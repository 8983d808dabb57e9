"""The error of sounds that cannot be used."""

from __future__ import annotations


class AudioError(ValueError):
    """A sound that cannot be used; the text is a short reason without the file name."""
