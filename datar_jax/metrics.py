"""Metrics of classification scores, computed on the host in float64.

Shapes: N clips, S classes. A target is positive where it is above zero. Shares are between 0 and 1. With several heads,
the classes are those of all heads, one head after another. A number that the clips do not define, such as the ROC of a
class that none of them has, is None, and no mean counts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datar_jax.labels import Heads, Labels, head_slices

_TINY = 1e-7  # scores and areas are clipped this far from 0 and 1, where logarithm and quantile are infinite

# Name and format of each metric that `evaluate` returns, for any head.
METRIC_FORMATS = {
    "top1": ("top-1", ".1%"),
    "top5": ("top-5", ".1%"),
    "mean_class_accuracy": ("mean class accuracy", ".1%"),
    "mean_average_precision": ("mean average precision", ".3f"),
    "roc_auc": ("area under the ROC", ".3f"),
    "d_prime": ("d-prime", ".3f"),
    "loss": ("loss", ".3f"),
}


def primary_metric(labels: Labels, heads: Heads = ()) -> str:
    """The metric that checkpoints are ranked by, on the validation clips; higher is better."""
    if labels == "multi":
        return "mean_average_precision"
    return "action_top1" if len(heads) > 1 else "top1"


def format_metric(field: str, value: float | None) -> tuple[str, str] | None:
    """Name and text of a metric (`verb_top1`, 0.5 -> "verb top-1", "50.0%"; None -> "-"); None if it is no metric."""
    name = next((name for name in METRIC_FORMATS if f"_{field}".endswith(f"_{name}")), None)
    if name is None:
        return None
    words, form = METRIC_FORMATS[name]
    return f"{field.removesuffix(name).replace('_', ' ')}{words}", "-" if value is None else f"{value:{form}}"


def top_k(score_NxS: ArrayLike, target_NxS: ArrayLike, k: int) -> float:
    """Share of clips that have one of their labels among their k best scores; among equal scores the first class wins.

    Raises:
      ValueError: k is not between 1 and the number of classes, or the arrays do not fit.
    """
    score, target = _pair(score_NxS, target_NxS)
    if not 1 <= k <= score.shape[1]:
        raise ValueError(f"k={k}: give 1 to {score.shape[1]}, the number of classes")
    return float(_best(score, target, k)[1].any(axis=1).mean())


def joint_top_k(score_NxS: ArrayLike, target_NxS: ArrayLike, heads: Heads, k: int) -> float:
    """Share of clips whose labels, one of each head, are together among the k most probable combinations.

    A combination's probability is the product of its classes', as EPIC-KITCHENS-100 is scored (Damen et al., 2022; its
    code for the action recognition challenge). What its baselines log while they train is another number for k > 1:
    clips whose verb and noun are each among their own k best. Among equal products, the combination with the better
    class of the first head wins; of one class, that of the next head.
    """
    score, target = _pair(score_NxS, target_NxS)
    n = len(score)
    product, right = np.ones((n, 1)), np.ones((n, 1), bool)
    for part in head_slices(heads).values():  # the k best combinations hold none but the k best classes of each head
        best, true = _best(score[:, part], target[:, part], k)
        product = (product[:, :, None] * best[:, None, :]).reshape(n, -1)
        right = (right[:, :, None] & true[:, None, :]).reshape(n, -1)
    return float(_best(product, right, k)[1].any(axis=1).mean())


def average_precision(score_N: ArrayLike, target_N: ArrayLike) -> float | None:
    """Area under the precision-recall steps of one class; clips with equal scores are ranked together.

    Returns:
      The sum over distinct scores of precision times the recall gained there; None where nothing is positive.
    """
    score, target = np.asarray(score_N, np.float64), np.asarray(target_N) > 0
    if not target.any():
        return None
    clips, hits = _runs(score, target)
    return float(np.sum(hits / clips * np.diff(hits, prepend=0)) / hits[-1])


def mean_average_precision(score_NxS: ArrayLike, target_NxS: ArrayLike) -> float | None:
    """Average precision, averaged over the classes that occur; None where none does."""
    score, target = _pair(score_NxS, target_NxS)
    return mean([average_precision(score[:, s], target[:, s]) for s in range(score.shape[1])])


def roc_auc(score_N: ArrayLike, target_N: ArrayLike) -> float | None:
    """Area under the receiver operating characteristic of one class; clips with equal scores are ranked together.

    Returns:
      The share of pairs of a positive and a negative clip in which the positive has the higher score, equal ones by
      half; None where there is no such pair.
    """
    score, target = np.asarray(score_N, np.float64), np.asarray(target_N) > 0
    if target.all() or not target.any():
        return None
    clips, hits = _runs(score, target)
    misses = clips - hits
    won = np.sum(np.diff(misses, prepend=0) * (2 * hits - np.diff(hits, prepend=0)))  # in halves of a pair
    return float(won / (2 * hits[-1] * misses[-1]))


def mean_roc_auc(score_NxS: ArrayLike, target_NxS: ArrayLike) -> float | None:
    """Area under the ROC, averaged over the classes that some clips have and some have not; None where none is such."""
    score, target = _pair(score_NxS, target_NxS)
    return mean([roc_auc(score[:, s], target[:, s]) for s in range(score.shape[1])])


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers that are defined; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def d_prime(auc: float | None) -> float | None:
    """Deviations between two normal distributions whose ROC has that area: sqrt(2) times its normal quantile.

    As in work on AudioSet (Hershey et al., 2017; the code of AST), it is taken of the mean area over the classes, and
    is no mean itself. It lies between -7.36 and 7.36: the area is kept 1e-7 from 0 and 1.
    """
    if auc is None:
        return None
    return math.sqrt(2) * NormalDist().inv_cdf(min(max(auc, _TINY), 1 - _TINY))


def mean_class_accuracy(score_NxS: ArrayLike, target_NxS: ArrayLike) -> float:
    """Recall of each class, averaged over the classes that occur; for one class a clip."""
    matrix = confusion(score_NxS, target_NxS)
    clips_S = matrix.sum(axis=1)
    occurs_S = clips_S > 0
    return float(np.mean(matrix.diagonal()[occurs_S] / clips_S[occurs_S]))


def confusion(score_NxS: ArrayLike, target_NxS: ArrayLike) -> NDArray[np.int64]:
    """Counts of (true class, best-scored class) for clips that have one class each.

    Returns:
      An (S, S) array; rows are the truth.
    """
    score, target = _pair(score_NxS, target_NxS)
    classes = score.shape[1]
    cell_N = np.argmax(target, axis=1) * classes + np.argmax(score, axis=1)
    return np.bincount(cell_N, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def evaluate(
    score_NxS: ArrayLike, target_NxS: ArrayLike, labels: Labels = "single", heads: Heads = ()
) -> dict[str, float | None]:
    """Computes all metrics of one split.

    Args:
      score_NxS: probabilities, averaged over the windows of each clip.
      target_NxS: 0 or 1.
      labels: whether a clip has one class of each head or any number of classes.
      heads: each of several adds its metrics under its name (`verb_top1`), next to those of all heads together.

    Returns:
      mean_average_precision, roc_auc and d_prime; with one label also top1, top5 (of as many classes as there are, if
      fewer than 5) and mean_class_accuracy. Of several heads together action_top1 and action_top5 with one label of
      each, and with any number of labels the three numbers over all classes. One that the clips do not define is None.
      In any case loss (mean negative log likelihood: summed over the heads, or averaged over the classes where there
      are any number), clips and classes.

    Raises:
      ValueError: no clips, shapes that differ, or scores that are not finite.
    """
    score, target = _pair(score_NxS, target_NxS)
    loss = clip_losses(score, target, labels).mean()
    numbers = {
        f"{prefix}{name}": value
        for prefix, part in head_slices(heads).items()
        for name, value in _head_metrics(score[:, part], target[:, part], labels).items()
    }
    if len(heads) > 1 and labels == "single":
        numbers |= {f"action_top{k}": joint_top_k(score, target, heads, k) for k in (1, 5)}
    elif len(heads) > 1:
        numbers |= _head_metrics(score, target, labels)
    return {**numbers, "loss": float(loss), "clips": len(score), "classes": score.shape[1]}


def clip_losses(score_NxS: ArrayLike, target_NxS: ArrayLike, labels: Labels) -> NDArray[np.float64]:
    """Negative log likelihood of each clip, `(N,)`: summed over the heads, or averaged over any number of labels."""
    score, target = _pair(score_NxS, target_NxS)
    kept = np.clip(score, _TINY, 1 - _TINY)
    if labels == "single":
        return -np.sum(target * np.log(kept), axis=1)
    return -np.where(target, np.log(kept), np.log1p(-kept)).mean(axis=1)


def _head_metrics(score: NDArray[np.float64], target: NDArray[np.bool_], labels: Labels) -> dict[str, float | None]:
    """Metrics of one set of classes."""
    auc = mean_roc_auc(score, target)
    ranked = {
        "mean_average_precision": mean_average_precision(score, target),
        "roc_auc": auc,
        "d_prime": d_prime(auc),
    }
    if labels == "multi":
        return ranked
    return {
        "top1": top_k(score, target, 1),
        "top5": top_k(score, target, min(5, score.shape[1])),
        "mean_class_accuracy": mean_class_accuracy(score, target),
        **ranked,
    }


def _best(
    score_NxM: NDArray[np.float64], target_NxM: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The k highest scores of each row, the first of equal ones first, and their targets."""
    order = np.argsort(-score_NxM, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score_NxM, order, axis=1), np.take_along_axis(target_NxM, order, axis=1)


def _runs(score: NDArray[np.float64], target: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many clips, and positives among them, there are down to the end of each run of equal scores, best first."""
    order = np.argsort(-score)  # not stable, and much faster: the order within a run is not used
    score, target = score[order], target[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))
    return last + 1, np.cumsum(target, dtype=np.int64)[last]


def _pair(score: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Checked (scores, positives) of equal shape (N, S)."""
    score, target = np.asarray(score, np.float64), np.asarray(target) > 0
    if score.ndim != 2 or score.shape != target.shape or not score.size:
        raise ValueError(f"scores {score.shape} and targets {target.shape}: both must be (clips, classes), not empty")
    if not np.isfinite(score).all():
        bad = int(np.flatnonzero(~np.isfinite(score).all(axis=1))[0])
        raise ValueError(f"scores of clip {bad} are not finite: the model diverged or its weights are damaged")
    return score, target
