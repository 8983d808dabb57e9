"""Test clips ranked by loss: a CSV table of all, and a figure of the worst.

Shapes: N clips, S classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datar_jax import metrics
from datar_jax.atomic_files import atomic_writer, text_of
from datar_jax.data.dataset import Dataset
from datar_jax.escaping import CsvWriter
from datar_jax.labels import Labels, head_slices
from datar_jax.plotting import INK, MARKS, RULE, save, sheet, shorten, text_width

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DRAWN = 20  # clips in the picture
HEADS = ("truth", "taken for")
_LONGEST = 40  # characters of a clip's name that are shown: its folder and its end
_SIZE = 8.0  # points


class Answer(NamedTuple):
    """True and predicted class of one clip; the fields are the columns of the table.

    `probability` is what the model gave the truth, `taken_probability` what it gave that which it took the clip for: of
    several questions the product, of clips with any number of labels the geometric mean over all classes, of which each
    is a question of yes or no. `loss` is the negative logarithm of `probability`.
    """

    clip: str  # its name, relative to the data's root
    row: int  # line of the list that names it; 0 when no list does
    start: float  # seconds
    end: float  # seconds; 0: the end of the file
    truth: str  # several labels as `a;b`
    predicted_instead: str
    probability: float
    taken_probability: float
    loss: float


def worst_clips(
    dataset: Dataset,
    clips_N: NDArray[np.int64],
    score_NxS: NDArray[np.float64],
    target_NxS: NDArray[np.float64],
    labels: Labels,
) -> list[Answer]:
    """All clips, ordered by falling loss.

    Args:
      dataset: names, classes and heads.
      clips_N: which clips of it.
      score_NxS: probabilities.
      target_NxS: 0 or 1.
      labels: whether a clip has one class of each head, and the best is taken, or any number, and those above one half.
    """
    if labels == "single":
        taken_NxS = np.zeros(score_NxS.shape, bool)
        for part in head_slices(dataset.heads).values():
            np.put_along_axis(taken_NxS[:, part], score_NxS[:, part].argmax(1)[:, None], True, 1)
    else:
        taken_NxS = score_NxS > 0.5
    loss_N = metrics.clip_losses(score_NxS, target_NxS, labels)
    taken_loss_N = metrics.clip_losses(score_NxS, taken_NxS, labels)

    def names(chosen_S: NDArray[np.bool_]) -> str:
        return ";".join(dataset.labels[i] for i in np.flatnonzero(chosen_S))

    answers = []
    for n in np.argsort(-loss_N, kind="stable"):
        clip = dataset.clips[clips_N[n]]
        truth, taken = names(target_NxS[n] > 0), names(taken_NxS[n])
        both = float(np.exp(-loss_N[n])), float(np.exp(-taken_loss_N[n]))
        place = clip.name, clip.row, clip.start, clip.end
        answers.append(Answer(*place, truth, taken, *both, float(loss_N[n])))
    return answers


def write_worst_clips_csv(path: Path, answers: Sequence[Answer]) -> None:
    """Writes the table of all clips."""
    rows = ([float(f"{value:.6g}") if isinstance(value, float) else value for value in answer] for answer in answers)
    write_csv(path, Answer._fields, rows)


def write_confusions_csv(path: Path, matrix_SxS: csr_array, names: Sequence[str]) -> None:
    """Writes all cells of a confusion matrix that are not zero: confusions first, then right answers, by count."""
    cells = matrix_SxS.tocoo()
    order = np.lexsort((-cells.data, cells.row == cells.col))
    cell_rows = ((names[cells.row[i]], names[cells.col[i]], int(cells.data[i])) for i in order)
    write_csv(path, ("true", "predicted", "clips"), cell_rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table atomically and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        text = text_of(file)
        writer = CsvWriter(text, header)
        for row in rows:
            writer.row(row)
        text.detach()


def save_worst_clips_figure(path: str | Path, answers: Sequence[Answer]) -> None:
    """Draws the worst twenty clips: name, true and predicted class, and their probabilities.

    Args:
      path: the PNG, PDF or SVG to write; its folder is made.
      answers: from `worst_clips`, at least one.
    """
    from matplotlib.ticker import PercentFormatter

    drawn = answers[:DRAWN]
    texts = [[shorten(answer.truth) or "nothing", shorten(answer.predicted_instead) or "nothing"] for answer in drawn]
    names = [shorten(answer.clip, _LONGEST) for answer in drawn]
    character, bars, gap = 0.0082 * _SIZE, 1.9, 0.15  # inches
    left = character * max(map(text_width, names))
    truth, taken = (
        gap + character * max(len(head), *map(text_width, column)) for head, column in zip(HEADS, zip(*texts))
    )
    width, height = left + bars + truth + taken, 0.8 + 0.24 * len(drawn)
    figure = sheet(width, height)
    figure.set_layout_engine("none")  # the columns are measured already
    axes = figure.add_axes((left / width, 0.4 / height, bars / width, 1 - 0.8 / height))
    rows = np.arange(len(drawn))
    for offset, colour, field in ((-0.17, MARKS[0], "probability"), (0.17, MARKS[1], "taken_probability")):
        axes.barh(rows + offset, [getattr(answer, field) for answer in drawn], height=0.3, color=colour, linewidth=0)
    beside, columns = axes.get_yaxis_transform(), (1 + gap / bars, 1 + (gap + truth) / bars)
    for x, head, colour in zip(columns, HEADS, MARKS):
        axes.text(x, -0.85, head, transform=beside, fontsize=_SIZE, color=colour, weight="bold", va="bottom")
    for row, both in enumerate(texts):
        for x, text in zip(columns, both):
            axes.text(x, row, text, transform=beside, fontsize=_SIZE, color=INK, va="center", parse_math=False)
    axes.set_yticks(rows, names, fontsize=_SIZE, color=INK, parse_math=False)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks((0, 0.5, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.tick_params(axis="x", labelsize=_SIZE, length=2)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(RULE)
    axes.set_xlabel("probability", fontsize=_SIZE)
    all_drawn = len(drawn) == len(answers)
    title = "test clips, the hardest first" if all_drawn else f"the {DRAWN} hardest of {len(answers):,} test clips"
    axes.set_title(title, fontsize=10, color=INK, pad=18, loc="left")
    save(figure, path)
