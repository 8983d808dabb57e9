"""Settings of the log-mel front end."""

from __future__ import annotations

from typing import ClassVar, Literal

from datar_jax.config.base import StrictStruct, require

MAX_WINDOW = 8192  # samples: matrices of the transform on a device grow with its square


class AudioConfig(StrictStruct, frozen=True):
    """The log-mel front end (DATAR.md, front end: our decision)."""

    largest: ClassVar[dict[str, float]] = {"window_ms": 8192, "hop_ms": 8192, "n_mels": 1024}

    sample_rate: int = 16_000  # Hz; every clip is resampled to it
    window_ms: float = 25.0  # Hann window
    hop_ms: float = 10.0
    n_mels: int = 128  # mel bins = frequency rows of the spectrogram
    fmin: float = 20.0  # Hz, lower edge of the first mel filter
    fmax: float = 0.0  # Hz, upper edge of the last one; 0 means half the sample rate
    floor_db: float = -80.0  # power below this many decibels is set to it: digital silence is finite
    frontend: Literal["host", "device"] = "host"  # where spectrograms are computed; "device": inside the step

    def check(self) -> None:
        require(1_000 <= self.sample_rate <= 192_000, "audio.sample_rate", self.sample_rate, "give 1000 to 192000 Hz")
        require(self.hop_length >= 1, "audio.hop_ms", self.hop_ms, "give at least one sample")
        require(self.win_length >= self.hop_length, "audio.window_ms", self.window_ms, "give at least audio.hop_ms")
        most = f"give at most {MAX_WINDOW / self.sample_rate * 1000:g} ms, {MAX_WINDOW} samples"
        require(self.win_length <= MAX_WINDOW, "audio.window_ms", self.window_ms, most)
        require(self.n_mels >= 32, "audio.n_mels", self.n_mels, "give at least 32: four stages divide it by 32")
        require(
            0 <= self.fmin < self.highest,
            "audio.fmin",
            self.fmin,
            f"give 0 or more and less than audio.fmax ({self.highest:g} Hz)",
        )
        require(
            self.highest <= self.sample_rate / 2,
            "audio.fmax",
            self.fmax,
            f"give at most half of audio.sample_rate ({self.sample_rate / 2:g} Hz)",
        )
        require(-200 <= self.floor_db < 0, "audio.floor_db", self.floor_db, "give -200 to 0 decibels, such as -80")

    @property
    def win_length(self) -> int:
        """Window length in samples."""
        return round(self.window_ms * self.sample_rate / 1000)

    @property
    def hop_length(self) -> int:
        """Hop in samples."""
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def n_fft(self) -> int:
        """Transform length in samples: the power of two that holds the window."""
        return 1 << (self.win_length - 1).bit_length()

    @property
    def highest(self) -> float:
        """Upper edge of the last mel filter in Hz."""
        return self.fmax or self.sample_rate / 2

    def frames(self, seconds: float) -> int:
        """Spectrogram columns of `seconds` of sound (at least one)."""
        return max(1, round(seconds * self.sample_rate / self.hop_length))
