"""Shared by all figures: sheet, colors, shortened names, a mel axis in hertz.

matplotlib is imported where it is used, so that a program which draws nothing starts without it.
"""

from __future__ import annotations

import functools
import io
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datar_jax.atomic_files import atomic_write
from datar_jax.audio.log_mel import bin_of_hertz
from datar_jax.config import AudioConfig
from datar_jax.escaping import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE = "#333333", "#9a9a9a", "#cccccc"
# Okabe and Ito (2008): distinct with any colour vision; black comes last, yellow shows badly on white.
MARKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
FORMATS = ("png", "pdf", "svg")

_LONGEST = 26  # characters of a class name that are shown
_MORE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Arial Unicode MS")
_ROUND = (1000, 4000, 250, 2000, 500, 8000, 125, 16_000)  # hertz that an axis names, the most wanted first


def sheet(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def save(
    figure: Figure,
    path: str | Path,
    dpi: float | None = None,
    write: Callable[[Path, bytes], None] = atomic_write,
) -> None:
    """Writes a PNG, PDF or SVG atomically, by the file's extension; creates its folder.

    Args:
      figure: what to write.
      path: of the file.
      dpi: dots per inch of a PNG and of what is a photograph in the others; 120 by default.
      write: `write_output` for a file that a person names.

    Raises:
      ValueError: the name ends in none of them.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: a picture ends in {', '.join(f'.{each}' for each in FORMATS)}")
    content = io.BytesIO()
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts()[0])
    with warnings.catch_warnings():  # a title may have what no font here has
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(content, format=kind, dpi=dpi or "figure", bbox_inches="tight", pad_inches=0.08)
    write(path, content.getvalue())


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """Families of the fonts that texts are drawn with, and the characters that they have."""
    from matplotlib import font_manager, rcParams

    there = set(font_manager.get_font_names())
    families = [*rcParams["font.family"], *(name for name in _MORE_FONTS if name in there)]
    files = (font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families)
    return families, frozenset(code for file in files for code in font_manager.get_font(file).get_charmap())


def text_width(text: str) -> int:
    """Width of a text, in characters of the Latin script; those of East Asian scripts are twice as wide."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shorten(name: str, longest: int = _LONGEST) -> str:
    """A name as it can be drawn: on one line, and without its middle if it is long.

    Names of one family often differ at the end. Characters that no font here has are escaped; boxes would all be alike.
    """
    known = _fonts()[1]
    name = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in printable(name))
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
