"""Processor time to decode sound files, against libsndfile and soxr without any check.

    python benchmarks/decode.py

Prints a table in Markdown: milliseconds for ten seconds of stereo at 44.1 kHz, resampled to 16 kHz, the least of
several rounds that take turns. The sound is noise, which no format compresses well: the checks read the most there
can be.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import soundfile
import soxr

from benchmarks._settings import header, row
from datar_jax.audio.containers import find_sections
from datar_jax.audio.decode import decode

RATE, SECONDS, FILES, ROUNDS = 44_100, 10, 8, 9


def main() -> None:
    """Writes files of each format, times both ways and prints the table."""
    rng = np.random.default_rng(0)
    print(header(["format", "plain, ms", "datar_jax, ms", "ratio", "of it the headers, ms"]))
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac", "ogg", "mp3"):
            paths = [os.path.join(folder, f"{i}.{suffix}") for i in range(FILES)]
            for path in paths:
                soundfile.write(path, 0.1 * rng.normal(size=(SECONDS * RATE, 2)), RATE)
            ways = plain, lambda path: decode(path, 16_000), find_sections
            rounds = [[milliseconds(way, paths) for way in ways] for _ in range(ROUNDS)]
            least = np.min(rounds, axis=0)
            print(row(suffix, *(f"{x:.2f}" for x in least[:2]), f"{least[1] / least[0]:.3f}", f"{least[2]:.2f}"))


def plain(path: str) -> np.ndarray:
    """One channel at 16 kHz, whatever the file holds."""
    samples_NxC, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(soxr.resample(samples_NxC.mean(axis=1), rate, 16_000))


def milliseconds(way: Callable[[str], object], paths: list[str]) -> float:
    """Processor time for one file."""
    began = time.process_time()
    for path in paths:
        way(path)
    return 1000 * (time.process_time() - began) / len(paths)


if __name__ == "__main__":
    main()
