"""Accuracy of both log-mel front ends against librosa in double precision, on the sounds of a folder.

    python benchmarks/log_mel_accuracy.py --root=SOUNDS

Prints a table in Markdown: the largest difference in decibels above the floor, clips where it is over 0.01 dB, and the
largest relative difference of power in bins within 60 dB of their frame's loudest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from benchmarks._settings import header, row
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import frame_samples
from datar_jax.audio.log_mel import log_mel
from datar_jax.audio.log_mel_jax import log_mel_jax
from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.config import AudioConfig

AUDIO = AudioConfig()
HEARD = 1e-6  # of the power of a frame's loudest bin


def main() -> None:
    """Reads the folder and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of sounds, at any depth")
    root = parser.parse_args().root
    clips = []
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES):
        try:
            clips.append(decode(path, AUDIO.sample_rate))
        except AudioError as error:
            print(f"{path}: {error}; left out", file=sys.stderr)
    if not clips:
        sys.exit(f"--root={root}: no sound that can be used; give another folder")
    print(f"{len(clips)} clips of {root}; {AUDIO.n_mels} mels, floor {AUDIO.floor_db:g} dB.\n")
    print(header(["front end", "largest difference, dB", "clips over 0.01 dB", "largest relative difference"]))
    for name, front_end in (("host", partial(log_mel, audio=AUDIO)), ("device", on_device)):
        found = np.array([difference(front_end, samples) for samples in clips])
        over = int((found[:, 0] > 0.01).sum())
        print(row(name, f"{found[:, 0].max():.4f}", over, f"{found[:, 1].max():.1e}"))


def difference(front_end: Callable[[np.ndarray], np.ndarray], samples_N: np.ndarray) -> tuple[float, float]:
    """The largest difference in decibels, and in relative power of what is heard."""
    mel_FxT = front_end(samples_N).astype(np.float64)
    power_FxT = librosa.feature.melspectrogram(
        y=samples_N.astype(np.float64),
        sr=AUDIO.sample_rate,
        n_fft=AUDIO.n_fft,
        win_length=AUDIO.win_length,
        hop_length=AUDIO.hop_length,
        n_mels=AUDIO.n_mels,
        fmin=AUDIO.fmin,
        fmax=AUDIO.highest,
        pad_mode="reflect",
        dtype=np.float64,
    )[:, : mel_FxT.shape[1]]
    floor = 10 ** (AUDIO.floor_db / 10)
    decibels = np.abs(mel_FxT - 10 * np.log10(np.maximum(power_FxT, floor))).max()
    heard = power_FxT > np.maximum(floor, HEARD * power_FxT.max(axis=0))
    relative = np.abs(10 ** (mel_FxT[heard] / 10) / power_FxT[heard] - 1).max(initial=0.0)
    return float(decibels), float(relative)


def on_device(samples_N: np.ndarray) -> np.ndarray:
    """The device's front end for one clip."""
    frames = AUDIO.frames(samples_N.size / AUDIO.sample_rate)
    whole_N = frame_samples(samples_N, 0, samples_N.size, AUDIO, 0, frames)
    return np.asarray(_device(jnp.asarray(whole_N)[None], jnp.array([frames]), AUDIO))[0]


_device = jax.jit(log_mel_jax, static_argnums=2)

if __name__ == "__main__":
    main()
