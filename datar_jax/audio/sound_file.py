"""Opens sound files: by libsndfile, section by section where headers are wrong, or by PyAV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from datar_jax.audio.containers import Section, SectionFile, find_sections
from datar_jax.audio.errors import AudioError
from datar_jax.audio.media import MEDIA_SUFFIXES, UNKNOWN, MediaFile
from datar_jax.foreign_files import check_regular

# What libsndfile recognises by its content and people name so (raw formats without a header are left out).
_NAMES = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 voc sph nist svx avr pvf"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" ")) | MEDIA_SUFFIXES
NO_FRAME = 7  # libsndfile's code for a file that is not there, and for an .mp3 that holds something else
NO_CODEC = 18  # of a file whose container libsndfile knows, and whose codec it does not

Note = Callable[[str], None]  # called with what is odd about a file that can be used, as a short text


class SoundReader(Protocol):
    """What an open sound file offers, as `soundfile.SoundFile` does."""

    samplerate: int
    channels: int
    frames: int  # UNKNOWN or more where headers leave it open
    format: str

    def seek(self, frame: int) -> int | None:
        """Moves to a frame."""

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """The next samples, (frames or fewer, channels); none at the end."""

    def close(self) -> None:
        """Closes the file."""


def open_sound(path: str | Path, note: Note) -> SoundReader:
    """Opens a sound file.

    Args:
      path: any format that libsndfile or, where it is installed, PyAV reads.
      note: called with what is odd about the file.

    Raises:
      AudioError: the file is missing, no file, empty, of no known format, or truncated.
    """
    size = _checked_size(path)
    try:
        found = find_sections(path)
        if found.note:
            note(found.note)
        file: SoundReader
        if found.sections:
            file = _Joined(path, found.sections)
        elif Path(path).suffix.lower() in MEDIA_SUFFIXES:
            file = MediaFile(path)
        else:
            try:
                file = _Forward(os.fsencode(path))  # as str, a name that is no UTF-8 is an error
            except soundfile.LibsndfileError as error:
                if not (media := MediaFile.recognized(path, error.code == NO_CODEC)):
                    raise
                file = media
        left = os.stat(path).st_size
    except (soundfile.LibsndfileError, OSError) as error:
        raise undecodable(error) from None
    if file.format == "RAW":  # libsndfile's guess by the ending: any text named .au or .vox would be noise
        file.close()
        raise AudioError("no known format, or samples without a header; save them as wav")
    if left < size:  # libsndfile took what is left for all
        file.close()
        raise AudioError("cut short while it was read")
    return file


def undecodable(error: Exception) -> AudioError:
    """The error of a file that libsndfile or the system cannot read."""
    if getattr(error, "code", None) == NO_FRAME:
        return AudioError("cannot be decoded (no MPEG frame was found)")
    return AudioError(f"cannot be decoded ({getattr(error, 'error_string', error)})")


def _checked_size(path: str | Path) -> int:
    """Bytes of a file. Refuses anything but a regular one, before opening it: opening a pipe would block."""
    try:
        status = check_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("a link to nothing" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        reason = str(error.strerror)
        raise AudioError(reason if reason.endswith("not a file") else f"cannot be read ({reason})") from None
    if not status.st_size:
        raise AudioError("empty file")
    if Path(path).suffix.lower() == ".raw":
        raise AudioError("samples without a header; save them as wav")
    return status.st_size


class _Forward(soundfile.SoundFile):
    """A sound file read from front to back, without the seeks that fail at the end of a FLAC stream."""

    def seekable(self) -> bool:
        return False


class _Joined:
    """Several sections of one file, read one after another as one sound; one of them is open at a time."""

    def __init__(self, path: str | Path, sections: Sequence[Section]) -> None:
        self._path, self._sections = path, sections
        self._lengths, rates = [], set()
        self.channels = 0
        for number in range(len(sections)):
            with self._opened(number):
                self._lengths.append(self._file.frames)
                rates.add(self._file.samplerate)
                self.channels = max(self.channels, self._file.channels)
                self.format = self._file.format
        if len(rates) > 1:
            raise AudioError(f"joined files of {min(rates)} and {max(rates)} Hz; save them one by one")
        (self.samplerate,) = rates
        self.frames = min(UNKNOWN, sum(self._lengths))
        self._number = 0
        self._open(0)

    def seek(self, frame: int) -> None:
        """Moves to a frame of the whole sound."""
        number = 0
        while frame > self._lengths[number] and number + 1 < len(self._lengths):
            frame -= self._lengths[number]
            number += 1
        self.close()
        self._number = number
        self._open(number)
        self._file.seek(frame)

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """The next samples of one section, (frames, its channels); none at the end of the last."""
        samples_NxC = self._file.read(frames, dtype=dtype, always_2d=always_2d)
        while not len(samples_NxC) and self._number + 1 < len(self._sections):
            self.close()
            self._number += 1
            self._open(self._number)
            samples_NxC = self._file.read(frames, dtype=dtype, always_2d=always_2d)
        return np.asarray(samples_NxC)

    def close(self) -> None:
        """Closes the open section."""
        self._file.close()
        self._under.close()

    def _open(self, number: int) -> None:
        section = self._sections[number]
        self._under = SectionFile(self._path, section)
        try:
            self._file = _Forward(self._under)
        except BaseException:
            self._under.close()
            raise

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[None]:
        self._open(number)
        try:
            yield
        finally:
            self.close()
