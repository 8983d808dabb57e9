"""Figure of one sound: spectrogram, scores, events, and the sampling points and attention of each deformable block.

Shapes: F mel bins, T frames, S classes, G offset groups, N points of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datar_jax.atomic_files import write_output
from datar_jax.config import AudioConfig
from datar_jax.inference.attention_maps import AttentionMaps, BlockAttention
from datar_jax.labels import Heads, head_slices
from datar_jax.plotting import FAINT, INK, MARKS, RULE, hertz_axis, save, sheet, shorten, spectrogram_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Event = tuple[str, float, float, float]  # label, onset and offset in seconds, score

TIMES = "\N{MULTIPLICATION SIGN}"
WIDTH = 7.2  # inches: two columns of a paper
SMALL = 7  # points, the smallest text
MOST_BLOCKS = 6  # blocks that are drawn
MOST_EVENTS = 8  # labels that have a row of the timeline
BEST = 5  # classes whose scores are drawn
COVERED = 800.0  # square points that the marks of all sampled points cover together, at most


def save_attention_figure(
    path: str | Path,
    mel_FxT: NDArray[Any],
    audio: AudioConfig,
    inside: AttentionMaps,
    score_S: NDArray[Any],
    labels: Sequence[str],
    events: Sequence[Event] = (),
    heads: Heads = (),
    title: str = "",
) -> None:
    """Draws one sound with its scores, events, sampling points and attention.

    Of more than six blocks, the first, the last and some between them are drawn, and the picture says so.

    Args:
      path: the file to write, PNG, PDF or SVG as its name ends; its folder is made.
      mel_FxT: the spectrogram in decibels; only its columns that are sound are drawn.
      audio: the front end it came from.
      inside: from `attention_maps.compute_attention_maps`, of the same frames.
      score_S: probabilities.
      labels: of the S classes.
      events: detected events; may be empty.
      heads: the classification heads, if there are several.
      title: such as the file's name.

    Raises:
      ValueError: shapes that do not fit each other, or a name that ends otherwise.
    """
    if len(score_S) != len(labels):
        raise ValueError(f"{len(score_S)} scores and {len(labels)} labels: give one label for each score")
    if mel_FxT.shape[0] != audio.n_mels or mel_FxT.shape[1] < inside.frames:
        raise ValueError(
            f"spectrogram {mel_FxT.shape}: give {audio.n_mels} mel bins and {inside.frames} or more columns"
        )
    mel_FxT = np.asarray(mel_FxT[:, : inside.frames], np.float64)
    blocks = chosen(inside.blocks)
    rows = timeline_rows(events)
    row = 1.3 if len(blocks) <= 3 else 1.0
    heights = [1.95 + 0.2 * bool(title) + (0.2 + 0.16 * len(rows) if rows else 0), 0.6 + row * len(blocks)]
    figure = sheet(WIDTH, sum(heights) if blocks else heights[0])
    if title:
        figure.suptitle(shorten(title, 90), fontsize=SMALL + 2, color=INK, parse_math=False)
    halves = figure.subfigures(1 + bool(blocks), 1, height_ratios=heights[: 1 + bool(blocks)], squeeze=False)[:, 0]
    _draw_sound(
        halves[0], mel_FxT, audio, score_S, labels, heads, rows, len({label for label, *_ in events}) - len(rows)
    )
    if blocks:
        _draw_blocks(halves[1], mel_FxT, audio, blocks, len(inside.blocks), row)
    save(figure, path, dpi=200, write=write_output)


def chosen(blocks: Sequence[BlockAttention]) -> list[BlockAttention]:
    """Blocks to draw: all, or the first, the last and evenly spaced ones between."""
    if len(blocks) <= MOST_BLOCKS:
        return list(blocks)
    return [blocks[i] for i in np.linspace(0, len(blocks) - 1, MOST_BLOCKS).round().astype(int)]


def timeline_rows(events: Sequence[Event]) -> list[tuple[str, list[Event]]]:
    """Events by label, in the order of their first onset; with too many labels, those with the best scores."""
    by_label: dict[str, list[Event]] = {}
    for event in events:
        by_label.setdefault(event[0], []).append(event)
    best = sorted(by_label, key=lambda label: -max(score for *_, score in by_label[label]))[:MOST_EVENTS]
    return [(label, by_label[label]) for label in sorted(best, key=lambda label: min(e[1] for e in by_label[label]))]


def _draw_sound(
    figure: SubFigure,
    mel_FxT: NDArray[Any],
    audio: AudioConfig,
    score_S: NDArray[Any],
    labels: Sequence[str],
    heads: Heads,
    rows: Sequence[tuple[str, list[Event]]],
    more: int,
) -> None:
    """Spectrogram and scores, and below the spectrogram the events; `more` labels have no row."""
    ratios = [1.5, 0.16 * len(rows)] if rows else [1.5]
    grid = figure.add_gridspec(len(ratios), 2, width_ratios=[2.1, 1], height_ratios=ratios)
    spectrogram = figure.add_subplot(grid[0, 0])
    low, high = spectrogram_range(mel_FxT)
    image = _show(spectrogram, mel_FxT, audio, cmap="magma", vmin=low, vmax=high)
    hertz_axis(spectrogram, audio, 1.5, SMALL)
    spectrogram.set_ylabel("hertz", fontsize=SMALL + 1)
    bar = figure.colorbar(image, cax=spectrogram.inset_axes((1.015, 0, 0.018, 1)))
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("decibels", fontsize=SMALL)
    if rows:
        timeline = figure.add_subplot(grid[1, 0], sharex=spectrogram)
        spectrogram.tick_params(labelbottom=False)
        ends = spectrogram.get_xlim()
        _draw_timeline(timeline, rows, more)
        timeline.set_xlim(ends)
    (timeline if rows else spectrogram).set_xlabel("seconds", fontsize=SMALL + 1)
    _draw_scores(figure.add_subplot(grid[0, 1]), score_S, labels, heads)


def _show(axes: Axes, mel_FxT: NDArray[Any], audio: AudioConfig, **style: Any) -> Any:
    """A spectrogram over seconds and mel bins; frame t is centred on t hops."""
    hop = audio.hop_length / audio.sample_rate
    bins, frames = mel_FxT.shape
    extent = (-0.5 * hop, (frames - 0.5) * hop, -0.5, bins - 0.5)
    image = axes.imshow(mel_FxT, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **style)
    axes.tick_params(axis="x", labelsize=SMALL, length=2)
    axes.locator_params(axis="x", nbins=6)
    axes.spines[:].set_color(RULE)
    return image


def _draw_timeline(axes: Axes, rows: Sequence[tuple[str, list[Event]]], more: int) -> None:
    """One row a label, its name at the right end, below the scores."""
    beside = axes.get_yaxis_transform()
    for i, (label, events) in enumerate(rows):
        axes.axhline(i, color="#eeeeee", linewidth=0.8, zorder=0)
        for _, onset, offset, _ in events:
            axes.barh(i, offset - onset, left=onset, height=0.65, color=MARKS[0], linewidth=0)
        name = f"{shorten(label)}  {max(score for *_, score in events):.2f}"
        text = axes.text(1.015, i, name, transform=beside, fontsize=SMALL, va="center", color=INK, parse_math=False)
        text.set_in_layout(False)
    if more:
        text = axes.text(1.015, len(rows), f"and {more} more", transform=beside, fontsize=SMALL, va="center", color=INK)
        text.set_in_layout(False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(())
    axes.tick_params(axis="x", labelsize=SMALL, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _draw_scores(axes: Axes, score_S: NDArray[Any], labels: Sequence[str], heads: Heads) -> None:
    """The best classes, of several heads the best of each: a name over each bar."""
    shown = []
    for prefix, part in head_slices(heads).items():
        classes = np.arange(len(score_S))[part]
        of_each = max(1, BEST // max(1, len(heads)))
        best = classes[np.argsort(-np.asarray(score_S)[classes], kind="stable")[:of_each]]
        shown += [(f"{prefix[:-1]}: {labels[i]}" if prefix else labels[i], float(score_S[i])) for i in best]
    for i, (name, score) in enumerate(shown):
        axes.barh(i + 0.22, 1, height=0.3, color="#eeeeee", linewidth=0)
        axes.barh(i + 0.22, score, height=0.3, color=MARKS[0], linewidth=0)
        axes.text(0, i - 0.02, shorten(name), fontsize=SMALL, va="bottom", color=INK, parse_math=False)
        axes.text(1, i - 0.02, f"{score:.1%}", fontsize=SMALL, va="bottom", ha="right", color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(BEST, len(shown)) - 0.5, -0.6)
    axes.set_axis_off()


def _draw_blocks(
    figure: SubFigure,
    mel_FxT: NDArray[Any],
    audio: AudioConfig,
    blocks: Sequence[BlockAttention],
    total: int,
    height: float,
) -> None:
    """A row for each block: its points on the spectrogram, and where its attention landed; all on one scale."""
    hop = audio.hop_length / audio.sample_rate
    panels = figure.subplots(len(blocks), 2, squeeze=False, sharex=True, sharey=True)
    corners = [np.array([(-0.5, -0.5), np.array(mel_FxT.shape) - 0.5])]  # of all that is drawn
    for block, (left, right) in zip(blocks, panels):
        groups, points = len(block.position_GxNx2), int(block.counted_N.sum())
        pixels = np.array([(-0.5, -0.5), (block.size[0] - 0.5, block.sound - 0.5)])
        drawn = [pixels, block.reference_Nx2[block.counted_N], *(at[block.counted_N] for at in block.position_GxNx2)]
        corners += [block.on_spectrogram(at) for at in drawn]
        _draw_points(left, block, mel_FxT, audio)
        counts = f"{points} points {TIMES} {groups} group{'s' * (groups > 1)}"
        counts += f" on {block.size[0]} {TIMES} {block.sound} pixels"
        left.set_title(block.name, fontsize=SMALL + 1, loc="left", color=INK, pad=3)
        left.set_title(counts, fontsize=SMALL, loc="right", color=INK, pad=3)
        _draw_heat(right, block, hop)
        off = f"{block.outside_G.mean():.0%} fell off the map"
        right.set_title(off, fontsize=SMALL, loc="right", color=INK, pad=3)
    all_Nx2 = np.concatenate(corners)
    low_2, high_2 = all_Nx2.min(0), all_Nx2.max(0)
    edge_2 = 0.015 * (high_2 - low_2)
    for axes in panels.flat:
        axes.spines[:].set_visible(False)
        _draw_border(axes, mel_FxT.shape, hop)
        axes.tick_params(labelsize=SMALL, length=2)
    hertz_axis(axes, audio, height * 0.6 * audio.n_mels / (high_2 - low_2)[0], SMALL)  # shared, as the limits are
    axes.set_ylim(low_2[0] - edge_2[0], high_2[0] + edge_2[0])
    axes.set_xlim((low_2[1] - edge_2[1]) * hop, (high_2[1] + edge_2[1]) * hop)
    for axes in panels[-1]:
        axes.set_xlabel("seconds", fontsize=SMALL + 1)
    _draw_key(figure, max(len(block.position_GxNx2) for block in blocks), len(blocks), total)


def _draw_border(axes: Axes, shape: tuple[int, ...], hop: float) -> None:
    """Of the spectrogram, in place of that of the axes: points and pixels may lie beyond it."""
    from matplotlib.patches import Rectangle

    corner = (-0.5 * hop, -0.5)
    axes.add_patch(Rectangle(corner, shape[1] * hop, shape[0], fill=False, edgecolor=RULE, linewidth=0.8))


def _draw_points(axes: Axes, block: BlockAttention, mel_FxT: NDArray[Any], audio: AudioConfig) -> None:
    low, high = spectrogram_range(mel_FxT)
    _show(axes, mel_FxT, audio, cmap="Greys", vmin=low, vmax=high + 1.5 * (high - low))  # faint: no darker than that
    hop = audio.hop_length / audio.sample_rate
    mark = min(2.0, 24 / block.counted_N.sum() ** 0.5)
    start_Nx2 = block.on_spectrogram(block.reference_Nx2[block.counted_N])
    axes.plot(start_Nx2[:, 1] * hop, start_Nx2[:, 0], "o", ms=mark, mfc="none", mec=FAINT, mew=0.5, zorder=2)
    area = min(5.0, COVERED / block.weight_GxN[:, block.counted_N].size)  # of a point with an even share
    for g, (position_Nx2, weight_N) in enumerate(zip(block.position_GxNx2, block.weight_GxN)):
        end_Nx2, weight_N = block.on_spectrogram(position_Nx2[block.counted_N]), weight_N[block.counted_N]
        along = np.stack([start_Nx2, end_Nx2, np.full_like(end_Nx2, np.nan)], 1).reshape(-1, 2)
        colour = MARKS[g % len(MARKS)]
        axes.plot(along[:, 1] * hop, along[:, 0], color=colour, linewidth=0.4, alpha=0.6, zorder=3)
        areas = area * weight_N * len(weight_N)
        axes.scatter(end_Nx2[:, 1] * hop, end_Nx2[:, 0], s=areas, color=colour, alpha=0.85, linewidths=0, zorder=4)


def _draw_heat(axes: Axes, block: BlockAttention, hop: float) -> None:
    """Attention per pixel, where 1 is what every pixel would have if it were spread evenly."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    f, sound = block.size[0], block.sound
    heat_FxT = block.heat_GxFxT.mean(0)[:, :sound] * (f * sound)
    low, first = block.on_spectrogram(np.array([-0.5, -0.5]))
    high, last = block.on_spectrogram(np.array([f - 0.5, sound - 0.5]))
    image = axes.imshow(
        heat_FxT,
        origin="lower",
        aspect="auto",
        cmap="viridis",
        norm=PowerNorm(0.5, 0, max(float(heat_FxT.max()), 1e-9)),  # small shares are seen beside a large one
        extent=(first * hop, last * hop, low, high),
        interpolation="nearest",
    )
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.015, 0, 0.018, 1)), ticks=MaxNLocator(3))
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _draw_key(figure: SubFigure, groups: int, drawn: int, total: int) -> None:
    """What the marks mean."""
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, **style: Any) -> Line2D:
        return Line2D([], [], marker="o", linestyle="", color=colour, label=label, **style)

    hollow = mark("reference", FAINT, markersize=2.5, markerfacecolor="none", markeredgewidth=0.5)
    filled = mark("sampled: area is its attention", FAINT, markersize=4, markeredgewidth=0)
    names = ["group 0", *map(str, range(1, groups))] if groups > 1 else []
    coloured = [mark(name, MARKS[g % len(MARKS)], markersize=4, markeredgewidth=0) for g, name in enumerate(names)]
    few = f", {drawn} of {total} deformable blocks" if drawn < total else ""
    figure.legend(
        handles=[hollow, filled, *coloured],
        title=f"Points (left) and attention per pixel in multiples of an even share (right){few}",
        loc="outside upper left",
        ncols=2 + groups,
        fontsize=SMALL,
        title_fontsize=SMALL + 1,
        alignment="left",
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
