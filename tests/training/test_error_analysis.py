"""The hardest clips: every clip once, by its loss, under its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from datar_jax.data.dataset import Clip, Dataset
from datar_jax.escaping import read_csv
from datar_jax.labels import Head
from datar_jax.training import error_analysis as page
from datar_jax.training.error_analysis import save_worst_clips_figure, worst_clips, write_worst_clips_csv
from tests.helpers import head

CLASSES = ("dog", "雨", "sea, waves", "$x_")


def dataset(clips: int, heads: tuple[Head, ...] = ()) -> Dataset:
    names = [rf"deep/ein $\no{{name, ünï{'-' * 30}{i}.wav" for i in range(clips)]
    return Dataset(
        tuple(Clip("", name, (0,), row=i + 2, end=0.1 * i) for i, name in enumerate(names)), CLASSES, heads=heads
    )


def test_one_label_is_sorted_by_what_the_truth_was_given() -> None:
    score = np.array([[0.7, 0.1, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1], [0.4, 0.3, 0.2, 0.1]])
    answers = worst_clips(dataset(9), np.array([5, 8, 1]), score, np.eye(4)[[0, 1, 1]], "single")
    told = [
        (a.row, a.truth, a.predicted_instead, round(a.probability, 9), round(a.taken_probability, 9)) for a in answers
    ]
    assert told == [(10, "雨", "sea, waves", 0.1, 0.6), (3, "雨", "dog", 0.3, 0.4), (7, "dog", "dog", 0.7, 0.7)]
    np.testing.assert_allclose([a.loss for a in answers], -np.log([0.1, 0.3, 0.7]))
    assert answers[0].clip.endswith("8.wav") and answers[0].end == pytest.approx(0.8)


def test_several_questions_are_answered_together() -> None:
    heads = (head("what", 2), head("where", 2))
    (answer,) = worst_clips(
        dataset(1, heads), np.array([0]), np.array([[0.9, 0.1, 0.3, 0.7]]), np.array([[1, 0, 1, 0]]), "single"
    )
    assert (answer.truth, answer.predicted_instead) == ("dog;sea, waves", "dog;$x_")
    assert (answer.probability, answer.taken_probability) == pytest.approx((0.9 * 0.3, 0.9 * 0.7))


def test_any_number_of_labels_is_judged_class_by_class() -> None:
    score = np.array([[0.9, 0.6, 0.1, 0.1], [0.2, 0.1, 0.1, 0.1]])
    easy, hard = worst_clips(dataset(2), np.array([0, 1]), score, np.array([[1, 0, 0, 0], [1, 1, 1, 1]]), "multi")[::-1]
    assert (hard.truth, hard.predicted_instead) == (";".join(CLASSES), "") and (easy.truth, easy.predicted_instead) == (
        "dog",
        "dog;雨",
    )
    assert easy.probability == pytest.approx((0.9 * 0.4 * 0.9 * 0.9) ** 0.25)
    assert easy.taken_probability == pytest.approx((0.9 * 0.6 * 0.9 * 0.9) ** 0.25)
    assert hard.loss == pytest.approx(-np.log([0.2, 0.1, 0.1, 0.1]).mean())


def test_the_table_reads_back(tmp_path: Path) -> None:
    answers = worst_clips(dataset(3), np.arange(3), np.full((3, 4), 0.25), np.eye(4)[[1, 2, 3]], "single")
    write_worst_clips_csv(tmp_path / "hardest.csv", answers)
    assert [path.name for path in tmp_path.iterdir()] == ["hardest.csv"]
    with (tmp_path / "hardest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(read_csv(file))
    assert [(row["clip"], row["truth"], row["predicted_instead"]) for row in rows] == [
        (a.clip, a.truth, a.predicted_instead) for a in answers
    ]
    assert [float(row["probability"]) for row in rows] == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("clips, labels", [(1, "single"), (25, "single"), (7, "multi")])
def test_the_picture_has_the_hardest_twenty_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: int, labels: Any
) -> None:
    rng = np.random.default_rng(0)
    answers = worst_clips(
        dataset(clips), np.arange(clips), rng.dirichlet(np.ones(4), clips), np.eye(4)[[1] * clips], labels
    )
    drawn, save = [], page.save
    monkeypatch.setattr(page, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    save_worst_clips_figure(tmp_path / "new" / "h.png", answers)
    picture = matplotlib.image.imread(tmp_path / "new" / "h.png")[..., :3]
    assert all((edge == 1).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1])), "nothing is cut"
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(names)) == min(clips, 20) and names[0][-8:] == answers[0].clip[-8:]
    assert ("20 hardest of 25" in axes.get_title(loc="left")) == (clips == 25)
    truths, taken = (bars.datavalues for bars in axes.containers)
    np.testing.assert_allclose(truths, [a.probability for a in answers[:20]])
    np.testing.assert_allclose(taken, [a.taken_probability for a in answers[:20]])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), "texts stand side by side"
