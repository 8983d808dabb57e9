"""Metrics against scikit-learn, scores with ties included."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from datar_jax import metrics


@st.composite
def scored(draw, single=False):
    """(scores, targets) of N clips and S classes; few distinct scores, so that ties abound, or many."""
    clips, classes = draw(st.integers(1, 30)), draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = draw(st.sampled_from([2, 4, 1000]))
    score = rng.integers(0, levels, (clips, classes)) / levels
    if single:
        target = np.eye(classes)[rng.integers(0, classes, clips)]
    else:
        target = (rng.uniform(size=(clips, classes)) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(float)
    return score, target


@given(scored())
def test_average_precision_is_that_of_sklearn(case):
    score, target = case
    for s in range(score.shape[1]):
        ours = metrics.average_precision(score[:, s], target[:, s])
        if target[:, s].any():
            assert ours == pytest.approx(reference.average_precision_score(target[:, s], score[:, s]), abs=1e-12)
        else:
            assert ours == 0


@given(scored())
def test_mean_average_precision_leaves_out_classes_that_do_not_occur(case):
    score, target = case
    occurs = target.any(axis=0)
    ours = metrics.mean_average_precision(score, target)
    if occurs.any():
        wanted = reference.average_precision_score(target[:, occurs], score[:, occurs], average="macro")
        assert ours == pytest.approx(wanted, abs=1e-12)
    else:
        assert ours == 0


def test_average_precision_by_hand():
    # ranks: hit, miss, hit -> (1/1 + 2/3) / 2; all tied -> the share of positives
    assert metrics.average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision([0.5] * 4, [1, 0, 0, 0]) == 0.25
    assert metrics.average_precision([], []) == 0


@given(scored(single=True), st.integers(1, 7))
def test_top_k_is_the_rank_of_the_true_class(case, k):
    score, target = case
    k = min(k, score.shape[1])
    hits = 0
    for row, true in zip(score, target.argmax(axis=1), strict=True):
        better = (row > row[true]).sum() + (row[:true] == row[true]).sum()
        hits += better < k
    assert metrics.top_k(score, target, k) == pytest.approx(hits / len(score))


@given(scored())
def test_top_k_grows_with_k_and_ends_at_the_labelled_share(case):
    score, target = case
    values = [metrics.top_k(score, target, k) for k in range(1, score.shape[1] + 1)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(target.any(axis=1).mean())


def test_top_1_of_several_labels_asks_for_one_of_them():
    assert metrics.top_k([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5]], [[1, 0, 1], [1, 0, 1]], 1) == 0.5


@given(scored(single=True))
def test_confusion_is_that_of_sklearn(case):
    score, target = case
    classes = score.shape[1]
    ours = metrics.confusion(score, target)
    wanted = reference.confusion_matrix(target.argmax(axis=1), score.argmax(axis=1), labels=range(classes))
    np.testing.assert_array_equal(ours, wanted)
    assert ours.dtype == np.int64
    assert np.trace(ours) / ours.sum() == pytest.approx(metrics.top_k(score, target, 1))


@given(scored(single=True))
def test_single_loss_is_log_loss(case):
    score, target = case
    score = score + 0.01
    score = score / score.sum(axis=1, keepdims=True)
    wanted = reference.log_loss(target.argmax(axis=1), score, labels=range(score.shape[1]))
    assert metrics.evaluate(score, target, "single")["loss"] == pytest.approx(wanted, rel=1e-9)


@given(scored())
def test_multi_loss_is_the_mean_over_cells(case):
    score, target = case
    score = 0.01 + 0.98 * score
    wanted = np.mean([-np.log(p if t else 1 - p) for p, t in zip(score.ravel(), target.ravel(), strict=True)])
    assert metrics.evaluate(score, target, "multi")["loss"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_perfect_model(labels):
    target = np.eye(3)[[0, 1, 2, 2]]
    row = metrics.evaluate(target, target, labels)
    assert (row["top1"], row["top5"], row["mean_average_precision"]) == (1, 1, 1)
    assert 0 <= row["loss"] < 1e-6
    assert (row["clips"], row["classes"]) == (4, 3)
    json.dumps(row)  # plain numbers only


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_model_that_is_sure_and_wrong_has_a_finite_loss(labels):
    row = metrics.evaluate(np.eye(2)[[1, 0]], np.eye(2), labels)
    assert row["top1"] == 0 and row["top5"] == 1
    assert 10 < row["loss"] < 20


def test_float32_scores_are_counted_in_float64():
    rng = np.random.default_rng(0)
    score = rng.dirichlet(np.ones(4), 50).astype(np.float32)
    target = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 50)]
    assert metrics.evaluate(score, target) == metrics.evaluate(score.astype(np.float64), target)


@pytest.mark.parametrize(
    ("score", "target", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), "not empty"),
        (np.zeros((2, 3)), np.zeros((2, 4)), r"\(2, 3\).*\(2, 4\)"),
        (np.array([[0.1, 0.9], [np.nan, 0.2]]), np.eye(2), "clip 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, target, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(score, target)


def test_top_k_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="k=3"):
        metrics.top_k(np.eye(2), np.eye(2), 3)
