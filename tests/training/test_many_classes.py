"""Ten thousand classes are scored in little more memory than the scores take; a dense confusion matrix has 800 MB."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from datar_jax import metrics
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.labels import Labels
from datar_jax.training import evaluate
from datar_jax.training.evaluate import SHOWN, by_class, save_test_results, table_of

CLIPS, CLASSES = 300, 10_000
LIMIT = 120e6  # bytes beside the 24 MB of scores


def scored(clips: int, classes: int) -> tuple[np.ndarray, np.ndarray, Dataset]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, clips)
    target = np.zeros((clips, classes), bool)
    target[np.arange(clips), truth] = True
    score = rng.dirichlet(np.ones(classes), clips) + 0.5 * target * (rng.random((clips, 1)) < 0.5)
    names = tuple(f"class {i}" for i in range(classes))
    return score, target, Dataset(tuple(Clip("", f"{i}.wav", (int(t),)) for i, t in enumerate(truth)), names)


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_ten_thousand_classes_are_scored_in_bounded_memory(tmp_path: Path, labels: Labels) -> None:
    score, target, dataset = scored(CLIPS, CLASSES)
    lines: list[str] = []
    tracemalloc.start()
    try:
        numbers = metrics.evaluate(score, target, labels)
        rows = by_class(score, target, dataset, labels)
        table = table_of(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    save_test_results(tmp_path, dataset, np.arange(CLIPS), score, target, labels, lines.append)
    assert peak < LIMIT
    assert not lines and len(rows) == CLASSES and table.row_count == SHOWN
    assert {path.name for path in tmp_path.glob("*.png")} == {"hardest.png"} | (
        {"confusion.png"} if labels == "single" else set()
    )
    if labels == "single":
        with (tmp_path / "confusion.csv").open(newline="") as file:
            cells = list(csv.DictReader(file))
        assert sum(int(cell["clips"]) for cell in cells) == CLIPS
        right = sum(int(cell["clips"]) for cell in cells if cell["true"] == cell["predicted"])
        assert right / CLIPS == pytest.approx(numbers["top1"])


def test_what_a_class_is_taken_for_is_the_largest_other_cell_of_its_row() -> None:
    score, target, dataset = scored(400, 12)
    matrix = metrics.confusion(score, target).toarray()
    np.fill_diagonal(matrix, 0)
    for row, counts in zip(by_class(score, target, dataset, "single"), matrix, strict=True):
        wanted = dataset.labels[counts.argmax()] if counts.any() else ""
        assert row["predicted_instead"] == wanted


def test_numbers_are_stored_before_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to a picture, the tables are whole, and the others are drawn."""

    def fail(path: Path, *_: object) -> None:
        assert {each.name for each in tmp_path.iterdir()} >= {"hardest.csv", "confusion.csv"}
        raise RuntimeError("no font")

    monkeypatch.setattr(evaluate, "save_worst_clips_figure", fail)
    score, target, dataset = scored(20, 5)
    lines: list[str] = []
    save_test_results(tmp_path, dataset, np.arange(20), score, target, "single", lines.append)
    assert lines == [f"{tmp_path / 'hardest.png'}: could not be drawn (no font); the numbers are complete"]
    assert {each.name for each in tmp_path.iterdir()} == {"hardest.csv", "confusion.csv", "confusion.png"}
