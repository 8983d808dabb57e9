"""Metrics against scikit-learn, scores with ties included."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as reference

from datar_jax import metrics
from datar_jax.labels import head_slices
from tests.helpers import head


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
            assert ours is None


@given(scored())
def test_mean_average_precision_leaves_out_classes_that_do_not_occur(case):
    score, target = case
    occurs = target.any(axis=0)
    ours = metrics.mean_average_precision(score, target)
    if occurs.any():
        wanted = reference.average_precision_score(target[:, occurs], score[:, occurs], average="macro")
        assert ours == pytest.approx(wanted, abs=1e-12)
    else:
        assert ours is None


def test_average_precision_by_hand():
    # ranks: hit, miss, hit -> (1/1 + 2/3) / 2; all tied -> the share of positives
    assert metrics.average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision([0.5] * 4, [1, 0, 0, 0]) == 0.25
    assert metrics.average_precision([], []) is None


@given(scored())
def test_roc_auc_is_that_of_sklearn_and_the_share_of_pairs_in_order(case):
    score, target = case
    divides = target.any(axis=0) & ~target.all(axis=0)
    for s in range(score.shape[1]):
        ours = metrics.roc_auc(score[:, s], target[:, s])
        if divides[s]:
            assert ours == pytest.approx(reference.roc_auc_score(target[:, s], score[:, s]), abs=1e-12)
            apart = np.subtract.outer(score[target[:, s] > 0, s], score[target[:, s] == 0, s])
            assert ours == pytest.approx((np.sign(apart) / 2 + 0.5).mean(), abs=1e-12)
        else:
            assert ours is None
    wanted = reference.roc_auc_score(target[:, divides], score[:, divides]) if divides.any() else None
    assert metrics.mean_roc_auc(score, target) == (wanted and pytest.approx(wanted, abs=1e-12))


def test_roc_auc_by_hand():
    # pairs of 0.9 and 0.5 with 0.5 and 0.1: three in order, one equal; turned around; no pair
    assert metrics.roc_auc([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0]) == 3.5 / 4
    assert metrics.roc_auc([0.9, 0.5, 0.5, 0.1], [0, 0, 1, 1]) == 0.5 / 4
    assert metrics.roc_auc([], []) is None
    half = np.arange(200_001)
    assert metrics.roc_auc(half, half % 2) == 0.5, "ten thousand million pairs are counted, not rounded"


@given(st.floats(1e-6, 1 - 1e-6))
def test_d_prime_is_the_distance_of_two_normal_distributions_with_that_area(auc):
    assert metrics.d_prime(auc) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-9)
    assert norm.cdf(metrics.d_prime(auc) / math.sqrt(2)) == pytest.approx(auc, abs=1e-12)


def test_d_prime_stays_finite():
    assert metrics.d_prime(0.5) == 0 and metrics.d_prime(None) is None
    assert 7.35 < metrics.d_prime(1.0) < 7.36
    assert metrics.d_prime(0.0) == pytest.approx(-metrics.d_prime(1.0))


def test_d_prime_is_that_of_the_mean_area():
    score, target = (
        np.array([[0.9, 0.6], [0.8, 0.7], [0.7, 0.8], [0.1, 0.9]]),
        np.array([[1, 0], [1, 0], [0, 0], [0, 1]]),
    )
    target[:, 1] = [0, 1, 0, 1]  # areas 1 and 3 of 4
    row = metrics.evaluate(score, target, "multi")
    assert row["roc_auc"] == 0.875
    assert row["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(0.875))


@given(scored(single=True))
def test_mean_class_accuracy_is_the_mean_recall_of_sklearn(case):
    score, target = case
    true, taken = target.argmax(axis=1), score.argmax(axis=1)
    wanted = reference.recall_score(true, taken, labels=np.unique(true), average="macro", zero_division=0)
    assert metrics.mean_class_accuracy(score, target) == pytest.approx(wanted, abs=1e-12)


def test_mean_class_accuracy_by_hand():
    # the common class is right three times of three, the rare one never; the third does not occur
    score = np.array([[0.8, 0.1, 0.1]] * 3 + [[0.1, 0.1, 0.8]])
    assert metrics.mean_class_accuracy(score, np.eye(3)[[0, 0, 0, 1]]) == 0.5


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


@st.composite
def answered(draw):
    """(scores, targets, heads) of two or three heads; few distinct scores, so that ties abound, or many."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    clips, levels = draw(st.integers(1, 12)), draw(st.sampled_from([2, 4, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    score = rng.integers(0, levels, (clips, sum(sizes))) / levels
    target = np.concatenate([np.eye(size)[rng.integers(0, size, clips)] for size in sizes], axis=1)
    return score, target, [*map(head, ("verb", "noun", "where"), sizes)]


@given(answered(), st.integers(1, 9))
def test_joint_top_k_is_the_rank_of_the_true_combination_among_all(case, k):
    score, target, heads = case
    hits = 0
    for row, true in zip(score, target > 0, strict=True):
        parts = list(head_slices(heads).values())
        ranked = [sorted(zip(-row[part], ~true[part], strict=True), key=lambda x: x[0]) for part in parts]
        ranked = [[(-minus, not wrong) for minus, wrong in part] for part in ranked]
        every = [(math.prod(s for s, _ in each), all(t for _, t in each)) for each in itertools.product(*ranked)]
        hits += any(right for _, right in sorted(every, key=lambda x: -x[0])[:k])
    assert metrics.joint_top_k(score, target, heads, k) == pytest.approx(hits / len(score))


def test_an_action_is_ranked_by_the_product_and_not_by_each_head():
    # true is the second of each head; products: .25, .15, .15, .10, .10, .09
    score, target = [[0.5, 0.3, 0.2, 0.5, 0.3, 0.2]], [[0, 1, 0, 0, 1, 0]]
    heads = (head("verb", 3), head("noun", 3))
    assert [metrics.joint_top_k(score, target, heads, k) for k in range(1, 8)] == [0, 0, 0, 0, 0, 1, 1]
    row = metrics.evaluate(score, target, "single", heads)
    assert (row["verb_top5"], row["noun_top5"], row["action_top5"]) == (1, 1, 0)


@given(answered())
def test_several_heads_have_the_numbers_of_each_alone_and_of_all_together(case):
    score, target, heads = case
    row = metrics.evaluate(score, target, "single", heads)
    losses, right = 0, True
    for name, part in head_slices(heads).items():
        alone = metrics.evaluate(score[:, part], target[:, part])
        kept = {key: value for key, value in alone.items() if key not in ("loss", "clips", "classes")}
        assert kept == {key.removeprefix(name): value for key, value in row.items() if key.startswith(name)}
        losses += alone["loss"]
        right = right & (score[:, part].argmax(axis=1) == target[:, part].argmax(axis=1))
    assert row["loss"] == pytest.approx(losses)
    assert row["action_top1"] == pytest.approx(right.mean()), "all right"
    assert row["action_top1"] <= row["action_top5"] <= 1
    assert "top1" not in row and (row["clips"], row["classes"]) == score.shape


@given(answered())
def test_several_heads_with_any_number_of_labels_have_the_numbers_over_all_classes_besides(case):
    score, target, heads = case
    row, whole = metrics.evaluate(score, target, "multi", heads), metrics.evaluate(score, target, "multi")
    assert whole.items() <= row.items() and "action_top1" not in row
    for name, part in head_slices(heads).items():
        assert row[f"{name}roc_auc"] == metrics.mean_roc_auc(score[:, part], target[:, part])


@given(scored(single=True))
def test_one_head_is_no_head(case):
    assert metrics.evaluate(*case, "single", [head("class", case[0].shape[1])]) == metrics.evaluate(*case)


@pytest.mark.parametrize("labels", ["single", "multi"])
@pytest.mark.parametrize("heads", [(), (head("class", 6),), (head("verb", 2), head("noun", 4))])
def test_what_a_run_is_judged_by_is_one_of_its_numbers(labels, heads):
    target = np.concatenate([np.eye(2)[[0, 1, 1]], np.eye(4)[[0, 2, 3]]], axis=1)
    name = metrics.primary_metric(labels, heads)
    single = "action_top1" if len(heads) == 2 else "top1"
    assert name == {"single": single, "multi": "mean_average_precision"}[labels]
    assert metrics.evaluate(target, target, labels, heads)[name] == 1


@pytest.mark.parametrize("labels", ["single", "multi"])
@pytest.mark.parametrize(
    ("target", "precision", "auc"),
    [
        ([[1.0]], 1, None),  # one clip of one class
        ([[1.0], [1.0]], 1, None),  # all positive
        ([[0.0, 1.0, 0.0]], 1, None),  # one clip
        ([[0.0, 1.0], [0.0, 1.0]], 1, None),  # a class without, a class with nothing else
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 1, 1),  # a class that does not occur counts nowhere
    ],
)
def test_what_is_said_of_little(labels, target, precision, auc):
    row = metrics.evaluate(target, target, labels)
    assert (row["mean_average_precision"], row["roc_auc"]) == (precision, auc)
    assert (row["d_prime"] is None) == (auc is None)
    assert all(math.isfinite(value) for value in row.values() if value is not None)
    assert {row.get("top1", 1), row.get("top5", 1), row.get("mean_class_accuracy", 1)} == {1}


def test_clips_without_any_label_have_a_loss_and_no_other_number():
    row = metrics.evaluate(np.full((3, 2), 0.25), np.zeros((3, 2)), "multi")
    assert (row["mean_average_precision"], row["roc_auc"], row["d_prime"]) == (None, None, None)
    assert row["loss"] == pytest.approx(-np.log(0.75))
    assert metrics.format_metric("verb_d_prime", None) == ("verb d-prime", "-")


@given(scored(single=True))
def test_confusion_is_that_of_sklearn(case):
    score, target = case
    classes = score.shape[1]
    ours = metrics.confusion(score, target).toarray()
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
    shares = {"mean_average_precision", "roc_auc"} | ({"top1", "top5", "mean_class_accuracy"} & set(row))
    assert ("top1" in row) == ("mean_class_accuracy" in row) == (labels == "single")
    assert {row[name] for name in shares} == {1}
    assert 0 <= row["loss"] < 1e-6 and row["d_prime"] > 7
    assert (row["clips"], row["classes"]) == (4, 3)
    json.dumps(row)  # plain numbers only


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_model_that_is_sure_and_wrong_has_a_finite_loss(labels):
    row = metrics.evaluate(np.eye(2)[[1, 0]], np.eye(2), labels)
    assert row["roc_auc"] == 0 and row["d_prime"] < -7
    if labels == "single":
        assert row["top1"] == row["mean_class_accuracy"] == 0 and row["top5"] == 1
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
