"""Metrics of classification scores, computed on the host in float64.

Shapes: N clips, S classes. A target is positive where it is above zero. Shares are between 0 and 1. With several heads,
the classes are those of all heads, one head after another. A number that the clips do not define, such as the ROC of a
class that none of them has, is None, and no mean counts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datar_jax.labels import Heads, Labels, head_slices

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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
    target = np.asarray(target_N) > 0
    return _rank(np.asarray(score_N, np.float64), target)[0] if target.any() else None


def mean_average_precision(score_NxS: ArrayLike, target_NxS: ArrayLike) -> float | None:
    """Average precision, averaged over the classes that occur; None where none does."""
    return mean(class_rankings(score_NxS, target_NxS)[0])


def roc_auc(score_N: ArrayLike, target_N: ArrayLike) -> float | None:
    """Area under the receiver operating characteristic of one class; clips with equal scores are ranked together.

    Returns:
      The share of pairs of a positive and a negative clip in which the positive has the higher score, equal ones by
      half; None where there is no such pair.
    """
    target = np.asarray(target_N) > 0
    return _rank(np.asarray(score_N, np.float64), target)[1] if target.any() else None


def mean_roc_auc(score_NxS: ArrayLike, target_NxS: ArrayLike) -> float | None:
    """Area under the ROC, averaged over the classes that some clips have and some have not; None where none is such."""
    return mean(class_rankings(score_NxS, target_NxS)[1])


def class_rankings(score_NxS: ArrayLike, target_NxS: ArrayLike) -> tuple[list[float | None], list[float | None]]:
    """Average precision and area under the ROC of every class; None where the clips do not define them."""
    score, target = _pair(score_NxS, target_NxS)
    occurs = set(np.flatnonzero(target.any(axis=0)).tolist())
    ranked = [_rank(score[:, s], target[:, s]) if s in occurs else (None, None) for s in range(score.shape[1])]
    return [precision for precision, _ in ranked], [auc for _, auc in ranked]


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


def confusion(score_NxS: ArrayLike, target_NxS: ArrayLike) -> csr_array:
    """Counts of (true class, best-scored class) for clips that have one class each.

    Returns:
      A sparse (S, S) array of int64, which holds at most one number a clip; rows are the truth.
    """
    from scipy.sparse import csr_array

    score, target = _pair(score_NxS, target_NxS)
    cells = np.argmax(target, axis=1), np.argmax(score, axis=1)
    return csr_array((np.ones(len(score), np.int64), cells), shape=(score.shape[1],) * 2)


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
    loss_N = np.empty(len(score))
    for rows in _blocks(score):
        kept = np.clip(score[rows], _TINY, 1 - _TINY)
        if labels == "single":
            loss_N[rows] = -np.sum(np.log(kept, where=target[rows], out=np.zeros_like(kept)), axis=1)
        else:
            loss_N[rows] = -np.where(target[rows], np.log(kept), np.log1p(-kept)).mean(axis=1)
    return loss_N


def _head_metrics(score: NDArray[np.float64], target: NDArray[np.bool_], labels: Labels) -> dict[str, float | None]:
    """Metrics of one set of classes."""
    precision_S, auc_S = class_rankings(score, target)
    auc = mean(auc_S)
    ranked = {"mean_average_precision": mean(precision_S), "roc_auc": auc, "d_prime": d_prime(auc)}
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
    """The k highest scores of each row, the first of equal ones first, and their targets; k is small."""
    order = np.empty((len(score_NxM), min(k, score_NxM.shape[1])), np.int64)
    for rows in _blocks(score_NxM):
        left = score_NxM[rows].copy()
        for rank in range(order.shape[1]):
            order[rows, rank] = best = left.argmax(axis=1)
            left[np.arange(len(left)), best] = -np.inf
    return np.take_along_axis(score_NxM, order, axis=1), np.take_along_axis(target_NxM, order, axis=1)


def _rank(score_N: NDArray[np.float64], target_N: NDArray[np.bool_]) -> tuple[float, float | None]:
    """Average precision and area under the ROC (None without a negative) of one class that has a positive."""
    ordered, positive = np.sort(score_N), np.sort(score_N[target_N])
    below, hits_below = np.searchsorted(ordered, positive), np.searchsorted(positive, positive)
    precision = np.mean((len(positive) - hits_below) / (len(ordered) - below))  # at each positive, ties included
    if not (negatives := len(ordered) - len(positive)):
        return float(precision), None
    up_to, hits_up_to = (np.searchsorted(values, positive, "right") for values in (ordered, positive))
    won = np.sum(below - hits_below + up_to - hits_up_to)  # in halves of a pair
    return float(precision), float(won / (2 * len(positive) * negatives))


def _blocks(score_NxS: NDArray[np.float64]) -> Iterator[slice]:
    """Slices of rows of about 32 MiB each, so that what is computed of them is small beside the scores."""
    size = max(1, (1 << 22) // max(score_NxS.shape[1], 1))
    return (slice(start, start + size) for start in range(0, len(score_NxS), size))


def _pair(score: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Checked (scores, positives) of equal shape (N, S)."""
    score, target = np.asarray(score, np.float64), np.asarray(target) > 0
    if score.ndim != 2 or score.shape != target.shape or not score.size:
        raise ValueError(f"scores {score.shape} and targets {target.shape}: both must be (clips, classes), not empty")
    if not np.isfinite(score).all():
        bad = int(np.flatnonzero(~np.isfinite(score).all(axis=1))[0])
        raise ValueError(f"scores of clip {bad} are not finite: the model diverged or its weights are damaged")
    return score, target
