"""Base classes of clip sources: random access to spectrograms or samples by clip index.

A window of a clip is the same columns from any store, computed before, while it is read, or on the device.
Shapes: B batch, N samples, F mel bins, T frames or window columns.
"""

from __future__ import annotations

import abc

import numpy as np

from datar_jax.audio.framing import frame_bounds, frame_samples, num_samples
from datar_jax.audio.log_mel import log_mel_frames
from datar_jax.audio.recording import Batch
from datar_jax.config import AudioConfig
from datar_jax.data.identity import FileContent
from datar_jax.wording import count

LONGEST = 10.0  # seconds, upper bound of the window that the data ask for


class DataError(ValueError):
    """Sounds that cannot be trained on; its text says what to do, a line an argument."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ClipSource(abc.ABC):
    """Random access to clips; pickles its path, not its data."""

    path: str  # of the file or folder
    audio: AudioConfig
    bad: tuple[tuple[str, str], ...]  # (name, reason) of the unusable clips
    frames: np.ndarray  # int64 (clips,), columns of each clip; 0 for an unusable one
    checksums: np.ndarray | None = None  # CRC-32 of the samples, or of the spectrogram, that is stored of each clip
    content: FileContent | None = None  # of the files that the clips were decoded from, where that is known

    @abc.abstractmethod
    def get(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Columns `start` to `start + length` of a clip, as far as it reaches: (T, F) decibels."""

    @property
    def seconds(self) -> np.ndarray:
        """float64 (clips,), length of each clip."""
        return self.frames * (self.audio.hop_length / self.audio.sample_rate)

    def batch(self, clips_B: np.ndarray, starts_B: np.ndarray, window_frames: int) -> Batch:
        """The windows of clips that start at some columns.

        Returns:
          mel float32 (B, F, T) in decibels, beyond a clip's end the floor; frames int32 (B,), valid columns.
        """
        mel_BxFxT = np.empty((len(clips_B), self.audio.n_mels, window_frames), np.float32)
        frames_B = np.empty(len(clips_B), np.int32)
        for b, (clip, start) in enumerate(zip(clips_B, starts_B)):
            mel_TxF = self.get(int(clip), int(start), window_frames)
            frames_B[b] = len(mel_TxF)
            mel_BxFxT[b, :, : len(mel_TxF)] = mel_TxF.T
            mel_BxFxT[b, :, len(mel_TxF) :] = self.audio.floor_db
        return {"mel": mel_BxFxT, "frames": frames_B}


class WaveformSource(ClipSource):
    """A source of 16-bit samples; spectrograms are computed on reading, or on the device."""

    lengths: np.ndarray  # int64 (clips,), samples of each clip; 0 for an unusable one

    @abc.abstractmethod
    def read(self, index: int, first: int, last: int) -> tuple[np.ndarray, float]:
        """Samples `first` to `last` (exclusive) of a clip: int16 (N,), and what they are multiplied by."""

    def get(self, index: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """As `ClipSource.get`, float32."""
        frames = int(self.frames[index]) - start
        samples_N, scale = self._excerpt(index, start, frames if length is None else min(frames, length))
        return log_mel_frames(samples_N * np.float32(scale), self.audio).T

    def batch(self, clips_B: np.ndarray, starts_B: np.ndarray, window_frames: int) -> Batch:
        """As `ClipSource.batch`; with a front end on the device, samples in place of spectrograms.

        Returns:
          samples int16 (B, N), N = excerpt_size(audio, T); scale float32 (B,), what they are multiplied by; frames
          int32 (B,), valid columns.
        """
        if self.audio.frontend == "host":
            return super().batch(clips_B, starts_B, window_frames)
        samples_BxN = np.empty((len(clips_B), num_samples(self.audio, window_frames)), np.int16)
        scale_B = np.empty(len(clips_B), np.float32)
        frames_B = np.minimum(self.frames[clips_B] - starts_B, window_frames).astype(np.int32)
        for b, (clip, start) in enumerate(zip(clips_B, starts_B)):
            samples_N, scale_B[b] = self._excerpt(int(clip), int(start), int(frames_B[b]))
            samples_BxN[b, : samples_N.size] = samples_N
            samples_BxN[b, samples_N.size :] = 0
        return {"samples": samples_BxN, "scale": scale_B, "frames": frames_B}

    def _excerpt(self, index: int, start: int, frames: int) -> tuple[np.ndarray, float]:
        """The samples under some columns, int16, and what they are multiplied by."""
        length = int(self.lengths[index])
        first, last = frame_bounds(length, self.audio, start, frames)
        part_N, scale = self.read(index, first, last)
        return frame_samples(part_N, first, length, self.audio, start, frames), scale


def usable(store: ClipSource, indices: np.ndarray) -> tuple[np.ndarray, int]:
    """Drops unusable clips from an index array: (remaining indices, number dropped)."""
    kept = indices[store.frames[indices] > 0]
    return kept, len(indices) - len(kept)


def bad_clips_report(store: ClipSource, max_bad_fraction: float) -> str:
    """A report of every unusable sound by name and reason; empty if there is none.

    Raises:
      DataError: more than `max_bad_fraction` of the clips are unusable, or all of them.
    """
    bad, total = len(store.bad), len(store.frames)
    if not bad:
        return ""
    head = f"{bad:,} of {count(total, 'sound')} cannot be used"
    lines = [f"  {name}: {reason}" for name, reason in store.bad]
    if bad == total or bad > max_bad_fraction * total:
        more = [f"  and {bad - 20} more"] if bad > 20 else []
        advice = f"more than data.max_bad_fraction={max_bad_fraction:g}; repair or remove them, or raise that share"
        raise DataError(f"{head}, {advice}:", *lines[:20], *more)
    return "\n".join([f"{head} and are left out:", *lines])


def statistics(store: ClipSource, indices: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in decibels over all columns of `indices`, accumulated in float64.

    Raises:
      DataError: there is no column, or all values are equal.
    """
    values, total, squares = 0, 0.0, 0.0
    for i in indices:
        mel_TxF = store.get(int(i)).astype(np.float64)
        values += mel_TxF.size
        total += float(mel_TxF.sum())
        squares += float(np.square(mel_TxF).sum())
    mean = total / max(values, 1)
    variance = squares / max(values, 1) - mean**2
    if variance <= 1e-9:
        raise DataError(f"{count(len(indices), 'training sound')} hold no variation to normalize by; check data.root")
    return mean, variance**0.5


def default_window_frames(store: ClipSource, indices: np.ndarray, audio: AudioConfig) -> int:
    """Default window in frames: long enough for 95 % of the clips, at most 10 s.

    The length is that of a real clip, not rounded to a multiple, so that equally long clips fill it exactly.

    Raises:
      DataError: none of the clips is usable.
    """
    frames = store.frames[indices]
    if not (frames > 0).any():
        raise DataError("no usable sound to take a window length from; give data.window_seconds")
    return min(int(np.quantile(frames[frames > 0], 0.95, method="higher")), audio.frames(LONGEST))
