"""Decodes m4a, mp4, webm, 3gp and other recordings of phones with PyAV, which brings FFmpeg's libraries.

PyAV is an extra: without it these files are refused by name, with the command that installs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datar_jax.audio.errors import AudioError

_NAMES = "m4a m4b aac mp4 m4v mov webm 3gp 3g2 mka mkv amr wma"
MEDIA_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split(" "))
UNKNOWN = 2**62  # frames; libsndfile gives 2**63 - 1 for a FLAC stream whose writer could not go back to count
ADTS_PRIMING = 1024  # samples that every AAC encoder puts in front; a container says how many, a bare stream does not
MARKS = b"\x1aE\xdf\xa3", b"caff", b"#!AMR", b"0&\xb2u"  # how Matroska, CAF, AMR and WMA begin; MP4 has ftyp at 4
ESTIMATED = {
    "aac",
    "ac3",
    "eac3",
    "mp3",
    "loas",
    "amr",
}  # whose length FFmpeg estimates by the first frames
LIBSNDFILE = {"wav", "w64", "flac", "ogg", "mp3", "aiff", "au", "nistsphere", "iff"}  # what it reads, by FFmpeg's names
SLACK = 0.5  # seconds by which a container's duration may pass its last sample


class NoDecoder(AudioError):
    """PyAV is not installed."""


class MediaFile:
    """The first sound stream of a media file, read from front to back; its length is known at its end."""

    format = "MEDIA"
    frames = UNKNOWN

    def __init__(self, path: str | Path) -> None:
        """Opens the file.

        Raises:
          AudioError: PyAV is not installed, or knows no sound stream in the file.
        """
        try:
            import av
        except ImportError:
            raise NoDecoder(f"{Path(path).suffix or 'this format'} needs PyAV to be decoded: pip install av") from None
        self._error = av.error.FFmpegError
        try:
            self._container: Any = av.open(os.fspath(path), metadata_errors="ignore")
        except (self._error, ValueError, UnicodeError) as error:
            raise AudioError(f"cannot be decoded ({_reason(error)})") from None
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError("holds no sound stream")
        self._stream = self._container.streams.audio[0]
        # Of the first frame's rate and channels. Interleaved: from eight planes on, PyAV reads some that are not there.
        self._resampler = av.AudioResampler(format="flt")
        self._waiting = np.zeros((0, 1), np.float32)
        self._priming = ADTS_PRIMING if self._container.format.name == "aac" else 0
        self._count = 0
        self.seconds = self._promised()  # by the headers; 0 where they do not state it
        self._blocks = self._decoded()
        self._waiting = next(self._blocks, self._waiting)
        if not len(self._waiting):
            self._container.close()
            raise AudioError("holds no samples")
        self.samplerate, self.channels = int(self._rate), self._waiting.shape[1]

    @classmethod
    def recognized(cls, path: str | Path, codec_missing: bool) -> MediaFile | None:
        """The file if PyAV knows its content, whatever its name; else None.

        Args:
          path: a file that libsndfile refused.
          codec_missing: whether that was for a codec that it lacks. Otherwise a file in a container of libsndfile is
            damaged, which FFmpeg would read over.

        Raises:
          AudioError: PyAV is not installed, and the file begins as one that it knows.
        """
        try:
            found = cls(path)
            if codec_missing or found._container.format.name not in LIBSNDFILE:
                return found
            found.close()
            return None
        except NoDecoder:
            with open(path, "rb") as file:
                head = file.read(8)
            if head.startswith(MARKS) or head[4:] == b"ftyp":
                raise
            return None
        except AudioError:
            return None

    def seek(self, frame: int) -> None:
        """Moves forward to a frame, by decoding what lies before it."""
        while frame > 0 and len(part := self.read(min(frame, self.samplerate), "float32", True)):
            frame -= len(part)

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """The next samples, float32 (frames or fewer, channels); none at the end."""
        while not len(self._waiting):
            block_NxC = next(self._blocks, None)
            if block_NxC is None:
                break
            self._waiting = block_NxC
        part_NxC, self._waiting = self._waiting[:frames], self._waiting[frames:]
        return part_NxC

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _decoded(self) -> Iterator[np.ndarray]:
        """Yields all samples in blocks; raises AudioError where the stream is damaged or ends early."""
        try:
            for frame in self._container.decode(self._stream):
                for even in self._resampler.resample(frame):
                    yield from self._block(even)
            for even in self._resampler.resample(None):
                yield from self._block(even)
        except (self._error, EOFError) as error:
            raise AudioError(f"truncated or damaged ({_reason(error)})") from None
        if self._count and self._count / self._rate < self.seconds - SLACK:
            raise AudioError(
                f"truncated: {self._count / self._rate:.3g} of {self.seconds:.3g} promised seconds are there"
            )

    def _promised(self) -> float:
        """Seconds of sound by the headers; 0 where they do not say."""
        if self._container.format.name in ESTIMATED:
            return 0.0
        length, unit = self._stream.duration, self._stream.time_base
        if length and unit:
            return float(length * unit)
        alone = not self._container.streams.video  # else the duration may be that of the picture
        return (self._container.duration or 0) / 1e6 if alone else 0.0

    def _block(self, frame: Any) -> Iterator[np.ndarray]:
        self._rate = frame.sample_rate
        self._count += frame.samples
        samples_NxC = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)[self._priming :]
        self._priming = max(0, self._priming - frame.samples)
        if len(samples_NxC):
            yield samples_NxC


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
