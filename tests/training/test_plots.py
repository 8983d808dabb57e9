"""Pictures: they are drawn whatever the data, nothing is cut off, and they show the numbers they were given."""

import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from scipy.sparse import csr_array

from datar_jax.training import plots as plot


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the last figure that was drawn, besides saving it."""
    kept, save = [], plot.save

    def keep(figure, path):
        kept[:] = [figure]
        save(figure, path)

    monkeypatch.setattr(plot, "save", keep)
    return lambda: kept[0]


def frame_is_white(path):
    """Whether the outermost pixels are background: nothing runs over the edge."""
    picture = matplotlib.image.imread(path)[..., :3]
    return all((edge == 1).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def run(steps, fold=None, seed=0, validation=True):
    rng = np.random.default_rng(seed)
    extra = {} if fold is None else {"fold": fold}
    rows = [
        {"step": s, "epoch": s / 10, "loss": 2 / s, "learning_rate": 1e-3, "grad_norm": rng.uniform(1, 2)} | extra
        for s in range(1, steps + 1)
    ]
    if validation:
        rows += [
            {"step": s, "split": "validation", "top1": s / steps, "loss": 1.0} | extra for s in (steps // 2, steps)
        ]
    return [*rows, {"step": steps, "split": "test", "top1": 0.75, "loss": 0.5} | extra]


@pytest.mark.parametrize("classes", [1, 2, 10, 20, 21, 100])
def test_confusion_of_any_size(tmp_path, drawn, classes):
    matrix = np.random.default_rng(0).integers(0, 40, (classes, classes))
    names = [rf"$\no{{math$ and a name that goes on and on and on_{i}" for i in range(classes)]
    plot.save_confusion_figure(tmp_path / "new" / "c.png", matrix, names)
    assert frame_is_white(tmp_path / "new" / "c.png")
    axes = drawn().axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(shown)) == min(classes, 60)  # shortened names still tell the classes apart
    counts = sorted(int(text.get_text()) for text in axes.texts)
    assert counts == (sorted(matrix[matrix > 0]) if classes <= 20 else [])


def test_confusion_states_the_accuracy_with_truth_in_rows(tmp_path, drawn):
    plot.save_confusion_figure(tmp_path / "c.png", np.array([[3, 1], [0, 0]]), ["a", "b"])
    axes = drawn().axes[0]
    assert axes.get_title() == "accuracy 75.0% of 4 clips"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    np.testing.assert_allclose(np.ravel(axes.collections[0].get_array()), [0.75, 0.25, 0, 0])
    place = {text.get_text(): text.get_position() for text in axes.texts}
    assert place == {"3": (0, 0), "1": (1, 0)} and axes.yaxis_inverted()


def test_of_many_classes_the_most_confused_are_drawn_in_their_order(tmp_path, drawn):
    classes = 3_000
    matrix = csr_array((np.ones(classes, int), (range(classes), range(classes))), shape=(classes, classes)).tolil()
    for i in range(20):
        matrix[100 * i + 7, 100 * i + 3] = 5 + i
    matrix[2_999, 2_999] = 9  # no confusion: the largest class comes after those
    names = [f"class {i}" for i in range(classes)]
    plot.save_confusion_figure(tmp_path / "c.png", matrix.tocsr(), names)
    axes = drawn().axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    confused = {f"class {100 * i + j}" for i in range(20) for j in (3, 7)}
    assert len(shown) == 60 and confused | {"class 2999"} <= set(shown)
    assert shown == sorted(shown, key=names.index)
    assert axes.get_title().endswith("the 60 most confused of 3,000 classes; c.csv has all")
    at = shown.index("class 1907"), shown.index("class 1903")
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_array()).reshape(60, 60)[at], 24 / 25)


def test_a_failed_picture_is_a_line_and_leaves_no_older_one(tmp_path):
    def fail(path):
        raise MemoryError

    lines = []
    (tmp_path / "c.png").write_bytes(b"older")
    plot.try_drawing(lines.append, fail, tmp_path / "c.png")
    assert lines == [f"{tmp_path / 'c.png'}: could not be drawn (MemoryError); the numbers are complete"]
    assert not list(tmp_path.iterdir())
    plot.try_drawing(lines.append, plot.save_confusion_figure, tmp_path / "c.png", np.eye(2, dtype=int), "ab")
    assert len(lines) == 1 and (tmp_path / "c.png").exists()


def test_confusion_refuses_names_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 2\) for 3 names"):
        plot.save_confusion_figure(tmp_path / "c.png", np.eye(2, dtype=int), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        ([], 1),
        ([{"step": 1, "loss": 2.0}], 1),
        (run(1, validation=False), 3),
        (run(4), 3),
        (run(300), 3),
        ([{"step": 5, "split": "test", "top1": 0.5, "loss": 1.0}], 2),
        ([{"step": 1, "loss": math.nan, "grad_norm": math.inf}, {"step": 2, "loss": None}, {"other": 1}], 1),
    ],
    ids=["none", "loss", "one", "few", "many", "test", "broken"],
)
def test_curves_of_any_run(tmp_path, drawn, rows, panels):
    plot.save_training_curves(tmp_path / "k.png", rows)
    assert frame_is_white(tmp_path / "k.png")
    assert len([axes for axes in drawn().axes if axes.get_ylabel() != "learning rate (dashed)"]) == panels


def test_curves_of_folds_are_one_line_each_in_one_colour(tmp_path, drawn):
    plot.save_training_curves(tmp_path / "k.png", [row for fold in range(1, 6) for row in run(100, fold, seed=fold)])
    loss, accuracy = drawn().axes[:2]
    train = [line for line in loss.lines if line.get_color() == plot._COLOURS["train"]]
    assert len(train) == 5 and len(loss.lines) == 15
    assert [t.get_text() for t in accuracy.get_legend().get_texts()] == [
        "validation: 100.0%, mean of 5 folds",
        "test: 75.0%, mean of 5 folds",
    ]


def test_curves_show_the_number_that_a_run_is_judged_by(tmp_path, drawn):
    rows = [{"step": s, "split": "test", "top1": 0.1, "mean_average_precision": s / 10} for s in (1, 2)]
    plot.save_training_curves(tmp_path / "k.png", rows, "mean_average_precision")
    score = drawn().axes[1]
    assert score.get_ylabel() == "mean average precision"
    np.testing.assert_array_equal(score.lines[0].get_ydata(), [0.1, 0.2])
    assert [t.get_text() for t in score.get_legend().get_texts()] == ["test: 20.0%"]


def test_curves_draw_the_numbers_in_order_and_the_later_row_counts(tmp_path, drawn):
    rows = [{"step": 3, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 3, "loss": 0.5}, {"step": 2, "loss": 2.0}]
    plot.save_training_curves(tmp_path / "k.png", rows)
    (line,) = drawn().axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 3.0], [2, 2.0], [3, 0.5]])


def test_the_running_mean_of_a_long_curve_stays_within_it(tmp_path, drawn):
    rows = [{"step": s, "loss": 1.0 + (s % 2)} for s in range(200)]
    plot.save_training_curves(tmp_path / "k.png", rows)
    raw, mean = drawn().axes[0].lines
    assert len(raw.get_ydata()) == len(mean.get_ydata()) == 200
    assert np.abs(mean.get_ydata() - 1.5).max() < 0.1


def test_matplotlib_waits_until_something_is_drawn(tmp_path):
    code = (
        "import sys; from datar_jax.training import plots as plot; import numpy;"
        "assert 'matplotlib' not in sys.modules;"
        f"plot.save_confusion_figure({str(tmp_path / 'c.png')!r}, numpy.eye(2, dtype=int), 'ab');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
