"""Writes the synthetic data set: ten kinds of sound, no download.

`python -m datar_jax.data.synthetic --root DIR` writes DIR/<kind>/<kind>_000.wav and so on.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datar_jax.data.synthetic_sounds import KINDS, SAMPLE_RATE, render

_RECIPES_VERSION = 1  # raise it when a recipe changes: data sets made before are then written anew
_MARKER = ".synthesis.json"


def write_dataset(root: str | Path, clips_per_class: int = 60, seconds: float = 3.0, seed: int = 0) -> int:
    """Writes the data set as one folder of 16-bit WAV files per kind; a data set that is complete is left as it is.

    Clip i of a kind depends on (seed, kind, i, seconds) alone. Files of another setting in `root` are replaced.

    Returns:
      How many files were written.

    Raises:
      ValueError: a number that is too small, or `root` holds something that this program did not write.
    """
    import soundfile  # here, so that rendering alone needs numpy only

    root = Path(root)
    if seconds < 0.5 or seed < 0:
        raise ValueError(f"seconds={seconds:g}, seed={seed}: give at least 0.5 seconds and a seed of 0 or more")
    if clips_per_class < 1:
        raise ValueError(f"clips_per_class={clips_per_class}: give at least 1")
    settings = {"clips_per_class": clips_per_class, "recipes": _RECIPES_VERSION, "seconds": seconds, "seed": seed}
    marker = root / _MARKER
    complete = _read_marker(root) == {**settings, "complete": True}
    if not complete:
        marker.write_text(json.dumps({**settings, "complete": False}) + "\n", encoding="utf-8")
        for kind in KINDS:
            for stale in (root / kind).glob(f"{kind}_*.wav"):
                stale.unlink()
    written = 0
    for kind in KINDS:
        (root / kind).mkdir(exist_ok=True)
        for index in range(clips_per_class):
            path = root / kind / f"{kind}_{index:03d}.wav"
            if complete and path.is_file():
                continue
            rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), index])
            soundfile.write(path, render(kind, rng, seconds, SAMPLE_RATE), SAMPLE_RATE, subtype="PCM_16")
            written += 1
    if not complete:
        marker.write_text(json.dumps({**settings, "complete": True}) + "\n", encoding="utf-8")
    return written


def _read_marker(root: Path) -> Any:
    """Reads the marker file in `root`; creates the folder, and refuses one with other content."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        return json.loads((root / _MARKER).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # cut off while it was written
        return None
    except FileNotFoundError:
        if found := sorted(p.name for p in root.iterdir()):
            raise ValueError(
                f"root={str(root)!r}: holds {found[0]!r}, which this program did not write; give a new or empty folder"
            ) from None
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datar_jax.data.synthetic", description="Write a synthetic data set."
    )
    parser.add_argument("--root", required=True, help="folder to write to")
    parser.add_argument("--clips-per-class", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a clip")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        written = write_dataset(chosen.root, chosen.clips_per_class, chosen.seconds, chosen.seed)
    except ValueError as error:
        parser.error(str(error))
    total = chosen.clips_per_class * len(KINDS)
    print(f"{chosen.root}: {total} clips of {chosen.seconds:g} s in {len(KINDS)} classes ({written} written now)")


if __name__ == "__main__":
    main()
