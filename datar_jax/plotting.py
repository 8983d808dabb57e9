"""Shared by all figures: sheet, colors, shortened names, a mel axis in hertz.

matplotlib is imported where it is used, so that a program which draws nothing starts without it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datar_jax.audio.log_mel import bin_of_hertz
from datar_jax.config import AudioConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE = "#333333", "#9a9a9a", "#cccccc"
# Okabe and Ito (2008): told apart with any colour vision; black comes last, yellow shows badly on white.
MARKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
FORMATS = ("png", "pdf", "svg")

_LONGEST = 26  # characters of a class name that are shown
_ROUND = (1000, 4000, 250, 2000, 500, 8000, 125, 16_000)  # hertz that an axis names, the most wanted first


def sheet(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def save(figure: Figure, path: str | Path, dpi: float | None = None) -> None:
    """Writes a PNG, PDF or SVG, by the file's extension; creates its folder.

    Args:
      figure: what to write.
      path: of the file.
      dpi: dots per inch of a PNG and of what is a photograph in the others; 120 by default.

    Raises:
      ValueError: the name ends in none of them.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: a picture ends in {', '.join(f'.{each}' for each in FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # a script that no font here has is drawn as boxes; that is no news to a run
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format=kind, dpi=dpi or "figure", bbox_inches="tight", pad_inches=0.08)


def shorten(name: str, longest: int = _LONGEST) -> str:
    """A long name without its middle: names of one family often differ at the end."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[: longest - 1 - half]}…{name[-half:]}"


def hertz_axis(axes: Axes, audio: AudioConfig, inches: float, size: float) -> None:
    """Names round frequencies along an axis of mel bins, as many as have room.

    Args:
      axes: whose y axis counts mel bins, 0 at the centre of the first.
      audio: the front end.
      inches: height of the axes, about.
      size: of the labels, in points.
    """
    room = 1.25 * size / 72 / inches * audio.n_mels  # bins
    chosen: dict[float, int] = {}
    for hertz in _ROUND:
        row = float(bin_of_hertz(hertz, audio))
        if -0.5 <= row <= audio.n_mels - 0.5 and all(abs(row - other) >= room for other in chosen):
            chosen[row] = hertz
    names = [f"{hertz // 1000}k" if hertz >= 1000 else str(hertz) for hertz in chosen.values()]
    axes.set_yticks(list(chosen), names)
    axes.tick_params(axis="y", labelsize=size, length=2)


def spectrogram_range(mel_FxT: Any) -> tuple[float, float]:
    """Decibels between which a spectrogram is coloured: its quiet tenth is dark; silence has a range too."""
    import numpy as np

    low, high = np.percentile(np.asarray(mel_FxT, np.float64), (10, 99.8))
    return float(min(low, high - 10)), float(high)
