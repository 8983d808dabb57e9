"""How good a set of scores is, counted on the host in float64.

Shapes: N clips, S classes. A target is positive where it is above zero. Shares are between 0 and 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TINY = 1e-7  # a score is kept this far from 0 and 1 before its logarithm is taken


def top_k(score_NxS: ArrayLike, target_NxS: ArrayLike, k: int) -> float:
    """Share of clips that have one of their labels among their k best scores; among equal scores the first class wins.

    Raises:
      ValueError: k is not between 1 and the number of classes, or the arrays do not fit.
    """
    score, target = _pair(score_NxS, target_NxS)
    if not 1 <= k <= score.shape[1]:
        raise ValueError(f"k={k}: give 1 to {score.shape[1]}, the number of classes")
    best_Nxk = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(target, best_Nxk, axis=1).any(axis=1).mean())


def average_precision(score_N: ArrayLike, target_N: ArrayLike) -> float:
    """Area under the precision-recall steps of one class; clips with equal scores are ranked together.

    Returns:
      The sum over distinct scores of precision times the recall gained there; 0 where nothing is positive.
    """
    score, target = np.asarray(score_N, np.float64), np.asarray(target_N) > 0
    if not target.any():
        return 0.0
    order = np.argsort(-score, kind="stable")
    score, target = score[order], target[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True))  # the last clip of every run of equal scores
    hits = np.cumsum(target)[last].astype(np.float64)
    return float(np.sum(hits / (last + 1) * np.diff(hits, prepend=0.0)) / hits[-1])


def mean_average_precision(score_NxS: ArrayLike, target_NxS: ArrayLike) -> float:
    """Average precision, averaged over the classes that occur; 0 where none does."""
    score, target = _pair(score_NxS, target_NxS)
    occurs = np.flatnonzero(target.any(axis=0))
    return float(np.mean([average_precision(score[:, s], target[:, s]) for s in occurs])) if occurs.size else 0.0


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
    score_NxS: ArrayLike, target_NxS: ArrayLike, labels: Literal["single", "multi"] = "single"
) -> dict[str, float]:
    """All the numbers reported for one split.

    Args:
      score_NxS: probabilities, averaged over the windows of each clip.
      target_NxS: 0 or 1.
      labels: whether a clip has one class or several; decides what the loss counts.

    Returns:
      top1, top5 (of as many classes as there are, if fewer than 5), mean_average_precision, loss (mean negative log
      likelihood; over the classes too when they are several), clips and classes.

    Raises:
      ValueError: no clips, shapes that differ, or scores that are not finite.
    """
    score, target = _pair(score_NxS, target_NxS)
    clips, classes = score.shape
    kept = np.clip(score, _TINY, 1 - _TINY)
    if labels == "single":
        loss = -np.sum(target * np.log(kept), axis=1).mean()
    else:
        loss = -np.where(target, np.log(kept), np.log1p(-kept)).mean()
    return {
        "top1": top_k(score, target, 1),
        "top5": top_k(score, target, min(5, classes)),
        "mean_average_precision": mean_average_precision(score, target),
        "loss": float(loss),
        "clips": clips,
        "classes": classes,
    }


def _pair(score: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Checked (scores, positives) of equal shape (N, S)."""
    score, target = np.asarray(score, np.float64), np.asarray(target) > 0
    if score.ndim != 2 or score.shape != target.shape or not score.size:
        raise ValueError(f"scores {score.shape} and targets {target.shape}: both must be (clips, classes), not empty")
    if not np.isfinite(score).all():
        bad = int(np.flatnonzero(~np.isfinite(score).all(axis=1))[0])
        raise ValueError(f"scores of clip {bad} are not finite: the model diverged or its weights are damaged")
    return score, target
