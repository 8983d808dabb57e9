"""Ten kinds of synthetic sound, drawn at random: the clips of the quickstart data set.

Pitch, rate, onset, length, level and background overlap between kinds, so that a model has to learn the shape of a
sound. Lengths named T are samples; a recipe is `(rng, samples, sample_rate) -> sound_T` in float64 at any level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Sound = NDArray[np.float64]

SAMPLE_RATE = 16_000  # Hz, of the data set that is written


def glide(frequency_T: Sound, sample_rate: int, weights: Sequence[float] = (1.0,)) -> Sound:
    """A tone whose pitch follows `frequency_T` (Hz); `weights` are its harmonics, silent above half the rate."""
    phase_T = 2 * np.pi * np.cumsum(frequency_T) / sample_rate
    parts = (w * np.sin(h * phase_T) * (h * frequency_T < sample_rate / 2) for h, w in enumerate(weights, start=1))
    return np.sum(list(parts), axis=0)


def ring(
    frequencies: Iterable[float], decays: Iterable[float], weights: Iterable[float], samples: int, sample_rate: int
) -> Sound:
    """Damped sines struck together: frequency (Hz), time (s) until each falls to 1/e, and level."""
    time_T = np.arange(samples) / sample_rate
    sound_T = np.zeros(samples)
    for frequency, decay, weight in zip(frequencies, decays, weights, strict=True):
        if frequency < sample_rate / 2:
            sound_T += weight * np.sin(2 * np.pi * frequency * time_T) * np.exp(-time_T / decay)
    return sound_T


def noise(rng: Generator, samples: int, sample_rate: int, low: float, high: float, slope: float = 0.0) -> Sound:
    """Gaussian noise of unit power between two frequencies (Hz), tilted by `slope` decibels per octave.

    Outside the band it falls by 24 decibels per octave.
    """
    size = 1 << (samples - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)[1:]
    shape = np.zeros(size // 2 + 1)
    shape[1:] = (frequency / 1000) ** (slope / (20 * np.log10(2)))
    shape[1:] *= np.minimum(1, np.minimum(frequency / low, high / frequency)) ** 4
    sound_T = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * shape, size)[:samples]
    return sound_T / (_rms(sound_T) + 1e-12)


def drift(rng: Generator, samples: int, sample_rate: int, rate: float) -> Sound:
    """A slow random curve between 0 and 1 that turns about `rate` times a second."""
    knots = max(3, round(samples / sample_rate * rate) + 2)
    return np.interp(np.linspace(0, knots - 1, samples), np.arange(knots), rng.uniform(0, 1, knots))


def _rms(sound_T: Sound) -> float:
    return float(np.sqrt(np.mean(sound_T**2)))


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _beats(rng: Generator, samples: int, sample_rate: int, rate: float, jitter: float) -> NDArray[np.int64]:
    """Onsets (in samples) about `rate` times a second, each moved by up to `jitter` of the gap."""
    gap = sample_rate / rate
    count = max(1, int(samples / gap))
    onsets = gap * (np.arange(count) + jitter * rng.uniform(0, 1, count))
    return np.minimum(onsets, samples - 1).astype(np.int64)


def _add(sound_T: Sound, onset: int, grain: Sound) -> None:
    """Adds `grain` to `sound_T` from `onset` on, in place, cut at the end."""
    room = sound_T[onset : onset + len(grain)]
    room += grain[: len(room)]


def _swell(samples: int, rise: float, fall: float) -> Sound:
    """An envelope that rises over the share `rise` of its length and falls over the share `fall`."""
    x = np.linspace(0, 1, samples)
    return np.sin(np.pi / 2 * np.clip(np.minimum(x / rise, (1 - x) / fall), 0, 1)) ** 2


def _fades(rng: Generator, samples: int) -> Sound:
    """An envelope for sounds that come and go slowly."""
    return _swell(samples, rng.uniform(0.02, 0.4), rng.uniform(0.02, 0.4))


def _alarm(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Beeps of steady pitch, regularly switched; sometimes two pitches take turns."""
    pitch, period, duty = _log_uniform(rng, 500, 3200), rng.uniform(0.12, 0.6), rng.uniform(0.4, 0.7)
    beat_T = np.arange(samples) / sample_rate / period
    other = rng.uniform(0.7, 0.9) if rng.uniform() < 1 / 3 else 1.0
    frequency_T = pitch * np.where(beat_T.astype(int) % 2 == 0, 1.0, other)
    place_T = beat_T % 1
    edge = 0.005 / period
    gate_T = np.clip(np.minimum(place_T, duty - place_T) / edge, 0, 1)
    return glide(frequency_T, sample_rate, (1.0, 0.0, rng.uniform(0, 0.4), 0.0, rng.uniform(0, 0.2))) * gate_T


def _bark(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Short throaty calls: harmonics under a resonance, pitch up and down again, some breath."""
    sound_T = np.zeros(samples)
    pitch, resonance = _log_uniform(rng, 220, 800), rng.uniform(700, 1800)
    for onset in _beats(rng, samples, sample_rate, rng.uniform(1.2, 4), 0.4):
        length = int(rng.uniform(0.09, 0.25) * sample_rate)
        frequency = pitch * rng.uniform(0.9, 1.1) * (0.7 + 0.5 * np.sin(np.pi * np.linspace(0, 1, length) ** 0.7))
        weights = [np.exp(-((np.log2(h * pitch / resonance) / 0.9) ** 2)) for h in range(1, 13)]
        grain = glide(frequency, sample_rate, weights)
        grain = grain / (_rms(grain) + 1e-12)
        grain += rng.uniform(0.2, 0.6) * noise(rng, length, sample_rate, 0.5 * resonance, 3 * resonance)
        _add(sound_T, onset, grain * _swell(length, 0.12, 0.8) * rng.uniform(0.6, 1))
    return sound_T


def _bell(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Strikes with partials that are no multiples of one another; the higher, the shorter."""
    sound_T = np.zeros(samples)
    pitch, decay = _log_uniform(rng, 350, 1800), rng.uniform(0.15, 0.8)
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.61, 3.05, 4.12]) * rng.uniform(0.98, 1.02, 8)
    weights = rng.uniform(0.3, 1, 8) / ratios**0.5
    for onset in _beats(rng, int(0.7 * samples), sample_rate, rng.uniform(0.5, 2.5), 0.3):
        strike = ring(pitch * ratios, decay / ratios**0.8, weights, samples - onset, sample_rate)
        _add(sound_T, onset, strike * rng.uniform(0.5, 1))
    return sound_T


def _birds(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Chirps: quick rises, falls and trills, in groups with rests between."""
    sound_T = np.zeros(samples)
    pitch, bend = _log_uniform(rng, 1500, 4500), rng.uniform(0.6, 1.6)
    trill, depth = rng.uniform(15, 45), rng.uniform(0, 0.12)
    for onset in _beats(rng, samples, sample_rate, rng.uniform(3, 9), 0.5):
        if rng.uniform() < 0.3:
            continue
        length = int(rng.uniform(0.05, 0.2) * sample_rate)
        x = np.linspace(0, 1, length)
        wave = 1 + depth * np.sin(2 * np.pi * trill * x * length / sample_rate)
        frequency = np.minimum(pitch * rng.uniform(0.9, 1.1) * bend**x * wave, 0.45 * sample_rate)
        _add(sound_T, onset, glide(frequency, sample_rate, (1.0, 0.15)) * _swell(length, 0.3, 0.5))
    return sound_T


def _clicks(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """A train of very short bursts of noise."""
    sound_T = np.zeros(samples)
    centre = _log_uniform(rng, 1000, 5000)
    length = int(rng.uniform(0.003, 0.015) * sample_rate)
    fade = np.exp(-np.linspace(0, 5, length))
    for onset in _beats(rng, samples, sample_rate, _log_uniform(rng, 2.5, 16), rng.uniform(0, 0.6)):
        grain = noise(rng, length, sample_rate, 0.6 * centre, 1.6 * centre)
        _add(sound_T, onset, grain * fade * rng.uniform(0.4, 1))
    return sound_T


def _engine(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Many harmonics of a low, wandering pitch that shake in step with it."""
    pitch_T = _log_uniform(rng, 30, 130) * (0.85 + 0.3 * drift(rng, samples, sample_rate, 0.8))
    weights = rng.uniform(0.2, 1, 24) / np.arange(1, 25) ** rng.uniform(0.3, 1.0)
    shake_T = 1 + rng.uniform(0.2, 0.7) * glide(pitch_T / rng.choice([2, 4]), sample_rate)
    tone_T = glide(pitch_T, sample_rate, list(weights)) * shake_T
    hiss_T = noise(rng, samples, sample_rate, 60, 3000, -4)
    return (tone_T / (_rms(tone_T) + 1e-12) + rng.uniform(0.1, 0.4) * hiss_T) * _fades(rng, samples)


def _knocks(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Steps or knuckles: dull, quickly damped resonances with a scrape of noise."""
    sound_T = np.zeros(samples)
    modes = _log_uniform(rng, 80, 450) * np.array([1.0, 1.7, 2.9, 4.3]) * rng.uniform(0.9, 1.1, 4)
    decays = rng.uniform(0.012, 0.06) / np.array([1.0, 1.5, 2.2, 3.0])
    length = int(0.25 * sample_rate)
    fade = np.exp(-np.linspace(0, 40, length))
    for onset in _beats(rng, samples, sample_rate, _log_uniform(rng, 1.5, 6), rng.uniform(0, 0.3)):
        grain = ring(modes, decays, rng.uniform(0.3, 1, 4) * (1, 0.7, 0.5, 0.3), length, sample_rate)
        grain += rng.uniform(0.05, 0.3) * noise(rng, length, sample_rate, 200, 4000, -3) * fade
        _add(sound_T, onset, grain * rng.uniform(0.5, 1))
    return sound_T


def _rain(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """A steady bright hiss with separate drops on top."""
    sound_T = rng.uniform(0.2, 0.6) * noise(rng, samples, sample_rate, 300, 0.48 * sample_rate, rng.uniform(-3, 0))
    length = int(0.012 * sample_rate)
    seconds = samples / sample_rate
    for onset in rng.integers(0, samples, int(seconds * _log_uniform(rng, 25, 120))):
        pitch = _log_uniform(rng, 900, 6000)
        _add(sound_T, int(onset), rng.uniform(0.5, 2.5) * ring([pitch], [0.002], [1.0], length, sample_rate))
    return sound_T * _fades(rng, samples)


def _siren(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """A tone that wanders up and down without rest."""
    low, ratio, rate = _log_uniform(rng, 400, 1400), rng.uniform(1.3, 2.3), _log_uniform(rng, 0.3, 3.5)
    turn_T = rng.uniform() + rate * np.arange(samples) / sample_rate
    smooth_T = 0.5 - 0.5 * np.cos(2 * np.pi * turn_T)
    straight_T = np.abs(2 * (turn_T % 1) - 1)
    path_T = smooth_T if rng.uniform() < 0.5 else straight_T
    return glide(low * ratio**path_T, sample_rate, (1.0, rng.uniform(0.1, 0.6), rng.uniform(0, 0.4)))


def _wind(rng: Generator, samples: int, sample_rate: int) -> Sound:
    """Dark noise in gusts that grow brighter as they grow louder."""
    gust_T = drift(rng, samples, sample_rate, rng.uniform(0.8, 2.5)) ** 1.5
    dark_T = noise(rng, samples, sample_rate, 40, 1500, rng.uniform(-9, -5))
    bright_T = noise(rng, samples, sample_rate, 300, _log_uniform(rng, 1500, 5000), -4)
    return ((0.15 + gust_T) * dark_T + rng.uniform(0.5, 1.5) * gust_T**2 * bright_T) * _fades(rng, samples)


KINDS: dict[str, Callable[[Generator, int, int], Sound]] = {
    "alarm": _alarm,
    "bark": _bark,
    "bell": _bell,
    "birds": _birds,
    "clicks": _clicks,
    "engine": _engine,
    "knocks": _knocks,
    "rain": _rain,
    "siren": _siren,
    "wind": _wind,
}


def render(kind: str, rng: Generator, seconds: float, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """One clip: an event of `kind` somewhere in it, over background noise 5 to 30 dB below the event.

    Args:
      kind: a key of `KINDS`.
      rng: source of every draw; the same state gives the same clip.
      seconds: length of the clip, at least 0.5.
      sample_rate: in Hz, at least 8000.

    Returns:
      Samples whose peak is between 0.1 and 0.9.

    Raises:
      ValueError: no such kind, or a length or rate that is too small.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    if seconds < 0.5:
        raise ValueError(f"seconds={seconds:g}: give at least 0.5")
    if sample_rate < 8000:
        raise ValueError(f"sample_rate={sample_rate}: give at least 8000 Hz")
    samples = round(seconds * sample_rate)
    length = int(samples * rng.uniform(0.5, 1))
    onset = int(rng.uniform(0, samples - length))
    event_T = KINDS[kind](rng, length, sample_rate)
    fade = np.clip(np.arange(length) / (0.01 * sample_rate), 0, 1)
    event_T = event_T * np.minimum(fade, fade[::-1])
    clip_T = noise(rng, samples, sample_rate, 20, sample_rate / 2, rng.uniform(-6, 0))
    clip_T *= 10 ** (-rng.uniform(5, 30) / 20)
    clip_T[onset : onset + length] += event_T / (_rms(event_T) + 1e-12)
    return (clip_T * (_log_uniform(rng, 0.1, 0.9) / np.abs(clip_T).max())).astype(np.float32)
