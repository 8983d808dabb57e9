"""Evaluates a model: overall and per-class metrics, confusion matrix, worst clips.

Shapes: N clips, S classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from datar_jax import metrics
from datar_jax.atomic_files import write_json
from datar_jax.checkpoints.model_info import ModelInfo
from datar_jax.checkpoints.pretrained import PretrainedModel
from datar_jax.compilation_cache import compiling
from datar_jax.config import Config, ConfigError
from datar_jax.data.dataset import Dataset
from datar_jax.data.duplicates import learned_note
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.base import usable
from datar_jax.data.splits import check_heads, divide
from datar_jax.escaping import printable
from datar_jax.labels import Labels, class_names, head_slices
from datar_jax.models.spec import ModelSpec
from datar_jax.training.error_analysis import (
    save_worst_clips_figure,
    worst_clips,
    write_confusions_csv,
    write_csv,
    write_worst_clips_csv,
)
from datar_jax.training.eval_loop import score_clips
from datar_jax.training.input_pipeline import open_source
from datar_jax.training.monitoring.console import ProgressConsole
from datar_jax.training.monitoring.metric_writer import Row
from datar_jax.training.plots import save_confusion_figure, try_drawing
from datar_jax.training.sharding import make_mesh

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Split = Literal["train", "validation", "test", "all"]
Array = NDArray[np.float64]

SHOWN = 60  # classes printed to a terminal; classes.csv has all


def evaluate(saved: PretrainedModel, config: Config, split: Split, out: Path, console: ProgressConsole) -> Row:
    """Scores the clips of one split of a data set; writes metrics, table and figures to `out`.

    Args:
      saved: the model; it has weights.
      config: where the data are and how they are divided, and how many are scored at a time.
      split: whose clips; `all` takes every one.
      out: folder for the results, numbers before pictures, and the cache: `result.json`, `classes.csv`, `hardest.csv`,
        `confusion.csv`, `hardest.png`, `confusion.png`.
      console: for progress and results.

    Returns:
      The numbers of `result.json`.

    Raises:
      ConfigError: the data cannot be read, or have classes that the model has not.
      DataError: sounds that cannot be used.
    """
    model = saved.description
    if saved.params is None or model.normalization is None:
        raise ConfigError(f"{saved.source}: has no weights trained on sound; give a run, or an export of weights")
    labels = model.config.data.labels
    if config.data.labels == "multi" != labels:
        raise ConfigError("data.labels='multi': the model gives a clip one class of each head; give single")
    data = msgspec.structs.replace(config.data, labels=labels)
    config = msgspec.structs.replace(config, audio=model.audio, model=model.config.model, data=data)
    mesh = make_mesh(config.mesh)
    if config.train.eval_batch_size % mesh.size:
        raise ConfigError(
            f"train.eval_batch_size={config.train.eval_batch_size}: does not divide over {mesh.size} devices"
        )
    dataset = read_dataset(config.data)
    chosen = np.arange(len(dataset)) if split == "all" else getattr(divide(dataset, config.data), split)
    for note in dataset.notes:
        console.say(note)
    dataset = remap_labels(model, dataset)
    check_heads(config.data, dataset)
    store = open_source(config, dataset, out, console)
    indices, _ = usable(store, chosen)
    if not len(indices):
        raise ConfigError(f"{dataset.source}: no {split} clip; choose another --split")
    known = model.provenance.data
    # Checksums of samples, as of prepared data, do not compare with those of spectrograms.
    alike = model.audio.frontend == "device" or (known.kind == "prepared") is (config.data.kind == "prepared")
    learned = learned_note(store, indices, known.clips_crc32 if alike else b"")
    for note in seen(model, config, dataset, split) if learned is None else filter(None, [learned]):
        console.say(note)

    spec = ModelSpec(config, len(model.labels), model.frames, 1, tuple(head.size for head in model.heads))
    statistics = np.array(model.normalization, np.float32)
    progress = console.progress.counter(f"scoring {split} clips", "clip", compiling(config.model.spec))
    score, target = score_clips(spec, mesh, store, dataset, saved.params, statistics, indices, progress=progress)
    console.progress.stage("drawing")
    numbers = metrics.evaluate(score, target, labels, dataset.heads)
    classes = by_class(score, target, dataset, labels)
    result: Row = {"model": saved.source, "data": dataset.source, "split": split, **numbers}
    confusions = [f"{prefix}confusion" for prefix in head_slices(dataset.heads)]
    for name in ("classes", "hardest", *confusions):  # of an earlier result, beside which the new one must not lie
        for kind in ("csv", "png"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    write_json(out / "result.json", result)
    write_csv(out / "classes.csv", list(classes[0]), (row.values() for row in classes))
    console.print(table_of(classes))
    save_test_results(out, dataset, indices, score, target, labels, console.say)
    return result


def save_test_results(
    folder: Path,
    dataset: Dataset,
    clips_N: NDArray[np.int64],
    score_NxS: Array,
    target_NxS: Array,
    labels: Labels,
    say: Callable[[str], None],
) -> None:
    """Writes the worst clips and, for single-label data, the confusions of each head; then a picture of each.

    A picture that cannot be drawn is one line for `say`.
    """
    answers = worst_clips(dataset, clips_N, score_NxS, target_NxS, labels)
    write_worst_clips_csv(folder / "hardest.csv", answers)
    heads = head_slices(dataset.heads) if labels == "single" else {}
    matrices = {prefix: metrics.confusion(score_NxS[:, part], target_NxS[:, part]) for prefix, part in heads.items()}
    for prefix, matrix in matrices.items():
        write_confusions_csv(folder / f"{prefix}confusion.csv", matrix, dataset.labels[heads[prefix]])
    try_drawing(say, save_worst_clips_figure, folder / "hardest.png", answers)
    for prefix, matrix in matrices.items():
        names = dataset.labels[heads[prefix]]
        try_drawing(say, save_confusion_figure, folder / f"{prefix}confusion.png", matrix, names)


def remap_labels(model: ModelInfo, dataset: Dataset) -> Dataset:
    """The data set with the model's class indices; classes are matched by name and head.

    Raises:
      ConfigError: classes that the model has not.
    """
    known = class_names(model.labels, model.heads)
    there = {name: i for i, name in enumerate(known)}
    asked = class_names(dataset.labels, dataset.heads)
    if strange := [name for name in asked if name not in there]:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise ConfigError(
            f"{dataset.source}: has classes that the model does not know: {', '.join(strange[:5])}{more}; "
            f"it knows {', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
        )
    number = [there[name] for name in asked]
    clips = tuple(replace(clip, labels=tuple(sorted(number[i] for i in clip.labels))) for clip in dataset.clips)
    return replace(dataset, clips=clips, labels=model.labels, heads=model.heads)


def seen(model: ModelInfo, config: Config, dataset: Dataset, split: Split) -> list[str]:
    """Warnings if scored clips may have been part of the model's training data, by the name of the data."""
    data = model.provenance.data
    if data.name != (dataset.card.title if dataset.card else Path(config.data.root).name):
        return []
    if data.fold is not None and (split != "test" or config.data.fold != data.fold):
        return [f"the model was trained on all folds of these data but {data.fold}: this is no test of it"]
    tested = split == "test" or data.fold is not None
    return [] if tested else ["the model was trained on clips of these data: this is no test of it"]


def by_class(score_NxS: Array, target_NxS: Array, dataset: Dataset, labels: str) -> list[Row]:
    """One row per class.

    Its clips; of one label a clip its recall, its precision and the class that it is most often taken for; its average
    precision and the area under its ROC.
    """
    rows: list[Row] = []
    for prefix, part in head_slices(dataset.heads).items():
        score, target, names = score_NxS[:, part], target_NxS[:, part], dataset.labels[part]
        precision_S, auc_S = metrics.class_rankings(score, target)
        matrix = metrics.confusion(score, target)
        right_S, taken_S, instead_S = matrix.diagonal(), matrix.sum(axis=0), _predicted_instead(matrix)
        for s, clips in enumerate((target > 0).sum(axis=0).tolist()):
            row: Row = {"head": prefix.removesuffix("_"), "class": names[s], "clips": clips}
            if labels == "single":
                row["recall"] = float(right_S[s] / clips) if clips else None
                row["precision"] = float(right_S[s] / taken_S[s]) if taken_S[s] else None
                row["predicted_instead"] = names[instead_S[s]] if s in instead_S else ""
            row["average_precision"] = precision_S[s]
            row["roc_auc"] = auc_S[s]
            rows.append(row)
    return rows


def _predicted_instead(matrix: csr_array) -> dict[int, int]:
    """The class that each class is most often taken for, of those that are; of equally many the first."""
    cells = matrix.tocoo()
    wrong = cells.row != cells.col
    row, column, count = cells.row[wrong], cells.col[wrong], cells.data[wrong]
    order = np.lexsort((-column, count))  # the last one of a class counts
    return dict(zip(row[order].tolist(), column[order].tolist()))


def table_of(classes: Sequence[Row]) -> Table:
    """The classes that occur, worst first, for a terminal."""
    there = [row for row in classes if row["clips"]]
    judged = "recall" if "recall" in classes[0] else "average_precision"
    worst = sorted(there, key=lambda row: (row[judged], row["class"]))
    columns = [name for name in classes[0] if name != "head" or any(row["head"] for row in classes)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        text = name in ("head", "class", "predicted_instead")
        table.add_column(name.replace("_", " "), justify="left" if text else "right")
    for row in worst[:SHOWN]:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    if len(worst) > SHOWN:
        table.caption = f"the {SHOWN} worst of {len(worst)} classes; classes.csv has all"
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))
