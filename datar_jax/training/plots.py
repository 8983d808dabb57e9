"""Figures of a run as PNG files: confusion matrix and training curves.

matplotlib is imported where it is used, so that a program which draws nothing starts without it. Shapes: S classes,
F mel bins, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datar_jax.checkpoints.integrity import short_message
from datar_jax.metrics import format_metric
from datar_jax.plotting import FAINT, INK, save, sheet, shorten, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from scipy.sparse import csr_array

Row = Mapping[str, Any]

_COLOURS = {"train": "#3b6fb6", "validation": "#d9822b", "test": "#2e8b57"}
_LONG = 60  # points from which a curve counts as long
_COUNTED = 20  # classes up to which every cell carries its count
MAX_CLASSES = 60  # in a confusion matrix; names of more cannot be read


def try_drawing(say: Callable[[str], None], draw: Callable[..., None], path: Path, *given: Any) -> None:
    """Draws a picture of results that are stored already; if that fails, says so in one line.

    An older picture under that name is then removed: it does not show these results.

    Args:
      say: prints a line.
      draw: draws the picture.
      path: of the picture, the first argument of `draw`.
      given: the other arguments.
    """
    try:
        draw(path, *given)
    except Exception as error:  # matplotlib and the fonts of a machine raise many kinds, and a disk may be full
        with suppress(OSError):
            path.unlink(missing_ok=True)
        say(f"{path}: could not be drawn ({short_message(error)}); the numbers are complete")


def most_confused(matrix_SxS: csr_array, most: int = MAX_CLASSES) -> NDArray[np.int64]:
    """The classes of the most frequent confusions, in the order of the matrix; all, if there are no more than `most`.

    Without so many confusions, the classes of most clips complete them.
    """
    cells = matrix_SxS.tocoo()
    wrong = np.flatnonzero(cells.row != cells.col)
    wrong = wrong[np.argsort(-cells.data[wrong], kind="stable")]
    largest = np.argsort(-matrix_SxS.sum(axis=1), kind="stable")
    order = np.concatenate([np.stack([cells.row[wrong], cells.col[wrong]], axis=1).ravel(), largest])
    return np.sort(list(dict.fromkeys(order.tolist()))[:most])


def save_confusion_figure(path: str | Path, matrix_SxS: NDArray[Any] | csr_array, names: Sequence[str]) -> None:
    """Draws a confusion matrix: true classes in rows, predicted ones in columns.

    Colour is the share of the row, on a scale that shows small shares well; up to 20 classes every cell that is not
    zero also carries its count. Of more than 60 classes, the most confused are drawn.

    Args:
      path: the PNG to write; its folder is made.
      matrix_SxS: counts, dense or sparse, such as `metrics.confusion` gives.
      names: of the S classes.

    Raises:
      ValueError: the matrix and the names do not fit.
    """
    from matplotlib.colors import PowerNorm
    from scipy.sparse import csr_array

    counts = csr_array(matrix_SxS)
    if counts.shape != (len(names), len(names)) or not len(names):
        raise ValueError(f"matrix {counts.shape} for {len(names)} names: it must be (classes, classes), not empty")
    drawn = most_confused(counts)
    classes, matrix = len(drawn), counts[drawn][:, drawn].toarray()
    share = matrix / np.maximum(counts.sum(axis=1)[drawn, None], 1)
    heading = f"accuracy {counts.trace() / max(counts.sum(), 1):.1%} of {counts.sum():,} clips"
    if classes < len(names):
        heading += f"\nthe {classes} most confused of {len(names):,} classes; {Path(path).stem}.csv has all"
    cell = float(np.interp(classes, (2, _COUNTED, 60), (0.62, 0.42, 0.16)))  # inches
    text = float(np.interp(cell, (0.16, 0.42), (6.5, 9)))  # points
    shown = [shorten(names[s]) for s in drawn]
    margin = 0.6 + max(map(text_width, shown)) * text * 0.0088
    side = classes * cell
    title = float(np.interp(side, (6, 16), (11, 18)))
    figure = sheet(max(side, 2.4) + margin + 1.2, max(side, 1.6) + margin + 0.6)
    axes = figure.add_subplot()
    edges = np.arange(classes + 1) - 0.5
    line = "#e8e8e8" if classes <= _COUNTED else "#f1f5fb"
    image = axes.pcolormesh(
        edges, edges, share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), edgecolors=line, linewidth=cell
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks(range(classes), shown, rotation=90, fontsize=text, parse_math=False)
    axes.set_yticks(range(classes), shown, fontsize=text, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#cccccc")
    axes.set_xlabel("predicted", fontsize=title - 1)
    axes.set_ylabel("true", fontsize=title - 1)
    axes.set_title(heading, fontsize=title, color=INK)
    if classes <= _COUNTED:
        size = min(9.0, cell * 60 / max(len(str(matrix.max())), 2))
        for row, column in np.argwhere(matrix):
            colour = "white" if share[row, column] > 0.35 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=size, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / max(side, 1.6)), pad=0.02, aspect=18)
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1], labels=["0%", "5%", "20%", "50%", "100%"])
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    save(figure, path)


def save_training_curves(
    path: str | Path, rows: Iterable[Row], score: str = "top1", chosen: Sequence[int] = ()
) -> None:
    """Draws loss, score and step size over the steps of a run, or of all folds of one.

    Args:
      path: the PNG to write; its folder is made.
      rows: metric rows (step, loss, learning_rate, grad_norm) and evaluation rows (step, split, score, loss), in any
        order. A row that lacks a number is skipped where it is needed; of two rows at one step the later one counts.
        Rows with different `fold` become separate thin lines.
      score: the number that the run is judged by, as `metrics.primary_metric` says.
      chosen: steps whose weights were tested; a vertical line where validation clips were scored.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rows = list(rows)
    scored = any("split" in row and _number(row, score) for row in rows)
    stepped = any(_number(row, "grad_norm") or _number(row, "learning_rate") for row in rows)
    panels = 1 + scored + stepped
    figure = sheet(7.2, 0.7 + 2.1 * panels)
    axes = list(np.atleast_1d(figure.subplots(panels, 1, sharex=True)))
    for panel in axes:
        panel.grid(True, color="#e6e6e6", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    _draw_loss(axes[0], rows)
    if scored:
        for split in ("validation", "test"):
            _draw_lines(axes[1], rows, split, score)
        if any(row.get("split") == "validation" for row in rows):
            for i, step in enumerate(chosen):
                label = None if i else "tested weights"
                axes[1].axvline(step, color=INK, linewidth=0.9, linestyle=":", label=label)
        axes[1].set_ylim(0, 1.02)
        axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes[1].set_ylabel((format_metric(score, 0.0) or (score,))[0])
        axes[1].legend(loc="best", fontsize=8, frameon=False)
    if stepped:
        _draw_steps(axes[-1], rows)
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(left=0)
    axes[-1].xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    figure.align_ylabels(axes)
    save(figure, path)


def _draw_loss(axes: Axes, rows: Sequence[Row]) -> None:
    for split in ("train", "validation", "test"):
        _draw_lines(axes, rows, split, "loss")
    axes.set_ylabel("loss")
    if axes.lines:
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "no rows yet", transform=axes.transAxes, ha="center", va="center", color=FAINT)


def _draw_steps(axes: Axes, rows: Sequence[Row]) -> None:
    """Gradient norm on the left scale, learning rate on the right one."""
    if any(_number(row, "grad_norm") for row in rows):
        _draw_lines(axes, rows, "train", "grad_norm")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("gradient norm", color=_COLOURS["train"])
    else:
        axes.set_yticks(())
    if any(_number(row, "learning_rate") for row in rows):
        rate = axes.twinx()
        for steps, values in _folds(rows, "train", "learning_rate"):
            rate.plot(steps, values, color=FAINT, linewidth=1.2, linestyle="--", marker=_marker(steps))
        rate.set_ylim(bottom=0)
        rate.set_ylabel("learning rate (dashed)", color="#707070")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        rate.spines["top"].set_visible(False)


def _draw_lines(axes: Axes, rows: Sequence[Row], split: str, field: str) -> None:
    """One line per fold in the colour of the split; a long noisy one is drawn as its running mean."""
    folds = _folds(rows, split, field)
    label = split if len(folds) == 1 else f"{split} ({len(folds)} folds)"
    if folds and field != "loss" and format_metric(field, 0.0):
        mean = float(np.mean([values[-1] for _, values in folds]))
        label = f"{split}: {mean:.1%}" if len(folds) == 1 else f"{split}: {mean:.1%}, mean of {len(folds)} folds"
    for steps, values in folds:
        if long := len(values) >= _LONG:
            if len(folds) == 1:
                axes.plot(steps, values, color=_COLOURS[split], linewidth=0.6, alpha=0.35)
            values = _running_mean(values, len(values) // 20)
        axes.plot(
            steps,
            values,
            color=_COLOURS[split],
            linewidth=1.6 if len(folds) == 1 else 0.8,
            linestyle="-" if len(values) > 1 else "",
            marker="o" if split != "train" and not long else _marker(steps),
            markersize=4,
            label=label,
        )
        label = "_nolegend_"  # one entry for all folds


def _folds(rows: Sequence[Row], split: str, field: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """(steps, values) of `field` for each fold that has any."""
    found: dict[Any, dict[float, float]] = {}
    for row in rows:
        if row.get("split", "train") == split and _number(row, field) and _number(row, "step"):
            found.setdefault(row.get("fold"), {})[row["step"]] = row[field]
    lines = (sorted(points.items()) for points in found.values())
    return [(np.array([s for s, _ in line]), np.array([v for _, v in line])) for line in lines]


def _number(row: Row, field: str) -> bool:
    value = row.get(field)
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def _marker(steps: NDArray[Any]) -> str:
    return "o" if len(steps) <= 3 else ""


def _running_mean(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Mean over a centred window, or what there is of it at both ends."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    start, stop = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)
