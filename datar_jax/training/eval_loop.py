"""Evaluation loop: scores every view of every clip once, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from datar_jax.data.dataset import Dataset
from datar_jax.data.loader import eval_batches
from datar_jax.data.sources.base import ClipSource
from datar_jax.models.spec import ModelSpec
from datar_jax.training.sharding import batch_sharding
from datar_jax.training.train_step import jit_eval_step


class TrainingError(RuntimeError):
    """Training that cannot go on; its text says what to do."""


class Interrupted(Exception):
    """A signal arrived while clips were scored."""


def score_clips(
    spec: ModelSpec,
    mesh: Mesh,
    store: ClipSource,
    dataset: Dataset,
    weights: Any,
    statistics: Any,
    indices: np.ndarray,
    asked: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets of clips, `(N, S)` each, in the order of `indices`; views of a clip are averaged.

    It breaks off with `Interrupted` as soon as a signal is in `asked`; `progress` is called with the clips that have a
    score, and how many there are.

    Raises:
      TrainingError: scores are not finite.
    """
    run = jit_eval_step(spec, mesh)
    sharding = batch_sharding(mesh)
    row = {int(clip): i for i, clip in enumerate(indices)}
    total = np.zeros((len(indices), spec.classes))
    target = np.zeros(total.shape, bool)
    views = np.zeros((len(indices), 1))
    size = spec.config.train.eval_batch_size
    loaded = eval_batches(
        store,
        dataset,
        indices,
        spec.frames,
        size,
        jax.process_index(),
        jax.process_count(),
    )
    for batch in loaded:
        if asked:
            raise Interrupted
        clips, mask, labels = (_all_processes(batch.pop(name)) for name in ("clip", "mask", "target"))
        sound = {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
        score = np.asarray(run(weights, statistics, sound), np.float64)
        for i in np.flatnonzero(mask):
            at = row[int(clips[i])]
            total[at] += score[i]
            target[at] = labels[i]
            views[at] += 1
        progress(int(np.count_nonzero(views)), len(indices))
    if not np.isfinite(total).all():
        raise TrainingError("the model's scores are not finite; lower optim.learning_rate and train anew")
    total /= views
    return total, target


def _all_processes(local: np.ndarray) -> np.ndarray:
    """Rows of every process, in the order of the global batch."""
    if jax.process_count() == 1:
        return local
    return np.asarray(multihost_utils.process_allgather(local, tiled=True))
