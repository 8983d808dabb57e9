"""Grain pipelines: batches for training and evaluation.

Training batches are a pure function of (seed, batch number): the same on any number of threads, reading processes and
hosts. So the state of a run is one number, and a run may continue on other hardware. The global batch is the hosts'
parts one after another, in the order of their numbers.

Batches hold decibels as they are (padding: the floor), `frames` valid columns, and multi-hot targets.
Shapes: B rows of this process, F mel bins, T window columns, S classes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from datar_jax.audio.framing import eval_window_starts
from datar_jax.audio.recording import Batch
from datar_jax.config import DataConfig
from datar_jax.data.dataset import Dataset
from datar_jax.data.sources.base import ClipSource, DataError

ENDLESS = 2**40  # batches


class _Labels:
    """The classes of each row of an index array, one row after another."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        of_row = [dataset.clips[i].labels for i in indices]
        self.classes = len(dataset.labels)
        self.counts_N = np.array([len(labels) for labels in of_row], np.int64)
        self.flat = np.array([label for labels in of_row for label in labels], np.int32)
        self._ends_N = np.cumsum(self.counts_N)

    def targets(self, rows_B: np.ndarray) -> np.ndarray:
        """Multi-hot rows: float32 (B, S)."""
        target_BxS = np.zeros((len(rows_B), self.classes), np.float32)
        for b, row in enumerate(rows_B):
            target_BxS[b, self.flat[self._ends_N[row] - self.counts_N[row] : self._ends_N[row]]] = 1
        return target_BxS


class TrainBatches(Iterator[Batch]):
    """Endless training batches with an exact state; `train_batches` builds it."""

    def __init__(
        self,
        batches: grain.MapDataset[Batch],
        clips: Callable[[int], np.ndarray],
        path: str,
        config: DataConfig,
        identity: dict[str, Any],
    ) -> None:
        self._batches, self._clips, self._path = batches, clips, path
        self._threads, self._workers = config.threads, config.workers
        self._identity = identity
        self._next = 0
        self._reader: Any = None

    def __next__(self) -> Batch:
        if self._reader is None:
            self._reader = self._read_from(self._next)
        batch: Batch = next(self._reader)
        self._next += 1
        return batch

    def read(self, number: int) -> Batch:
        """This process's share of batch n, that of step n + 1; does not move the iterator."""
        return self._batches[number]

    def clips(self, number: int) -> np.ndarray:
        """Clips of global batch n: indices into the data set, int64 (batch size,)."""
        return self._clips(number)

    def source(self) -> str:
        """Description of the data source, for messages about stalls."""
        workers = f"{self._workers} reading processes" if self._workers else "this process"
        return f"{self._threads} threads of {workers} that read {self._path}"

    def get_state(self) -> dict[str, Any]:
        """What to store: plain values, the same on every process."""
        return {"next_batch": self._next, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called, with any number of threads, workers and processes.

        Raises:
          DataError: the state is of other data, another seed, window or batch size; names each difference.
        """
        found = {name: state.get(name) for name in self._identity}
        if found != self._identity:
            wrong = [f"{name} was {found[name]!r}, now {v!r}" for name, v in self._identity.items() if found[name] != v]
            raise DataError(f"the checkpoint was read from other batches ({'; '.join(wrong)}); resume with what it had")
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stops the reading threads and processes; the next batch starts them again."""
        if self._reader is not None and hasattr(self._reader, "close"):
            self._reader.close()
        self._reader = None

    def _read_from(self, start: int) -> Any:
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * self._threads)
        batches = self._batches[start:].to_iter_dataset(options)
        if self._workers:
            _parse_flags()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2))
        return iter(batches)


def train_batches(
    store: ClipSource,
    dataset: Dataset,
    indices: np.ndarray,
    window_frames: int,
    batch_size: int,
    seed: int,
    config: DataConfig,
    shard: int = 0,
    shards: int = 1,
) -> TrainBatches:
    """Endless shuffled batches of random crops; each epoch has its own order and its own crops.

    With `config.balanced_sampling` an epoch draws as many clips, but with replacement, and each with the probability
    that gives every class the same share: in proportion to the sum over its labels of 1 / clips of that label (as PSLA,
    Gong et al., 2021, section III-C).

    Args:
      store: the sounds.
      dataset: their labels.
      indices: usable training clips.
      window_frames: T; longer clips are cropped at a random position, shorter ones padded at the end.
      batch_size: over all processes.
      seed: of the order and the crops.
      config: threads and reading processes.
      shard: number of this process.
      shards: number of all processes.

    Returns:
      An iterator of dict(mel float32 (B, F, T), frames int32 (B,), target float32 (B, S)), B = batch_size / shards.
      Epochs are not cut to whole batches: a batch may hold the end of one and the start of the next.

    Raises:
      DataError: no clip, an unusable clip, or a batch size that the processes cannot share equally.
    """
    _check(store, indices, batch_size, shards)
    lengths = store.frames[indices]
    labels = _Labels(dataset, indices)
    order = _Order(seed, np.maximum(lengths - window_frames, 0), _rarity(labels) if config.balanced_sampling else None)
    gather = functools.partial(_gather, store, labels, indices, window_frames)
    batch = functools.partial(_train_batch, order, gather, batch_size, shard, shards)
    data = hashlib.blake2b(np.stack([indices, lengths]).astype("<i8").tobytes(), digest_size=8).hexdigest()
    identity = {"seed": seed, "batch_size": batch_size, "window_frames": window_frames, "data": data}
    if config.balanced_sampling:
        identity["balance"] = True

    def clips(number: int) -> np.ndarray:
        return indices[order(number * batch_size, (number + 1) * batch_size)[:, 0]]

    return TrainBatches(grain.MapDataset.range(ENDLESS).map(batch), clips, store.path, config, identity)


def eval_batches(
    store: ClipSource,
    dataset: Dataset,
    indices: np.ndarray,
    window_frames: int,
    batch_size: int,
    shard: int = 0,
    shards: int = 1,
) -> Iterator[Batch]:
    """Every clip once, in order: long ones as overlapping views, short ones padded.

    Args:
      store: the sounds.
      dataset: their labels.
      indices: usable clips.
      window_frames: T.
      batch_size: over all processes.
      shard: number of this process.
      shards: number of all processes.

    Yields:
      dict(mel float32 (B, F, T), frames int32 (B,), target float32 (B, S), clip int32 (B,) index into the data set,
      mask float32 (B,)), B = batch_size / shards, equally many on every process. Rows with mask 0 only fill the last
      batch: they repeat the first row, and must not be counted.

    Raises:
      DataError: as `train_batches`.
    """
    _check(store, indices, batch_size, shards)
    rows = batch_size // shards
    starts = [eval_window_starts(int(store.frames[i]), window_frames) for i in indices]
    rows_N = np.repeat(np.arange(len(indices)), list(map(len, starts)))
    drawn_Nx2 = np.stack([rows_N, np.concatenate(starts)], axis=1)
    lack = -len(drawn_Nx2) % batch_size
    mask = np.repeat(np.array([1, 0], np.float32), [len(drawn_Nx2), lack])
    drawn_Nx2 = np.concatenate([drawn_Nx2, np.repeat(drawn_Nx2[:1], lack, axis=0)])
    labels = _Labels(dataset, indices)

    def batches() -> Iterator[Batch]:
        for first in range(shard * rows, len(drawn_Nx2), batch_size):
            drawn = drawn_Nx2[first : first + rows]
            batch = _gather(store, labels, indices, window_frames, drawn)
            yield {**batch, "clip": indices[drawn[:, 0]].astype(np.int32), "mask": mask[first : first + rows]}

    return batches()


class _Order:
    """Endless order of crops: a function of (seed, epoch), drawn an epoch at a time.

    grain's own `shuffle` permutes without a table, which takes 0.1 ms per example when the data are few.
    """

    def __init__(self, seed: int, spare: np.ndarray, rarity: np.ndarray | None = None) -> None:
        # spare: columns of each clip beyond the window, 0 for short ones; rarity: as `_rarity`, None draws each once
        self._seed, self._spare, self._rarity = seed, spare, rarity
        self._drawn: dict[int, np.ndarray] = {}

    def __call__(self, first: int, last: int) -> np.ndarray:
        """Draws number `first` to `last` (exclusive): int64 (n, 2), row of the index array and first column."""
        size = len(self._spare)
        epochs = range(first // size, (last - 1) // size + 1)
        drawn = np.concatenate([self._epoch(epoch) for epoch in epochs])
        return drawn[first - epochs[0] * size : last - epochs[0] * size]

    def _epoch(self, epoch: int) -> np.ndarray:
        drawn = self._drawn.get(epoch)
        if drawn is None:
            rng = np.random.default_rng((self._seed, epoch))
            size = len(self._spare)
            if self._rarity is None:
                rows = rng.permutation(size)
            else:
                rows = np.searchsorted(self._rarity, rng.random(size), side="right")
            drawn = np.stack([rows, rng.integers(0, self._spare[rows] + 1)], axis=1)
            self._drawn = {**{e: d for e, d in self._drawn.items() if abs(e - epoch) <= 1}, epoch: drawn}
        return drawn


def _train_batch(
    order: _Order, gather: Callable[[np.ndarray], Batch], batch_size: int, shard: int, shards: int, number: int
) -> Batch:
    """This process's share of a global batch."""
    rows = batch_size // shards
    first = number * batch_size + shard * rows
    return gather(order(first, first + rows))


def _gather(
    store: ClipSource, labels: _Labels, indices: np.ndarray, window_frames: int, drawn_Bx2: np.ndarray
) -> Batch:
    """Sampled windows and their multi-hot targets."""
    rows_B, starts_B = drawn_Bx2.T
    return {**store.batch(indices[rows_B], starts_B, window_frames), "target": labels.targets(rows_B)}


def _rarity(labels: _Labels) -> np.ndarray:
    """Probability of each row under balanced drawing, summed up: float64 (N,), the last one 1.

    Clips without a label are drawn as often, together, as those of one class.
    """
    clips_S = np.bincount(labels.flat, minlength=labels.classes)
    weight_M = 1 / clips_S[labels.flat]
    background_N = labels.counts_N == 0
    row_M = np.repeat(np.arange(len(labels.counts_N)), labels.counts_N)
    weight_N = np.bincount(row_M, weight_M, len(labels.counts_N)) + background_N / max(1, background_N.sum())
    sums_N = np.cumsum(weight_N)
    return sums_N / sums_N[-1]


def _check(store: ClipSource, indices: np.ndarray, batch_size: int, shards: int) -> None:
    if not len(indices):
        raise DataError("no usable clip to read; check the split and the report of unusable sounds")
    if not store.frames[indices].all():
        raise DataError("unusable clips among those to read; take them out with `usable` first")
    if batch_size % shards:
        raise DataError(f"a batch of {batch_size} cannot be shared by {shards} processes; give a multiple of {shards}")


def _parse_flags() -> None:
    """Marks absl's flags as parsed: grain's worker processes read them, and only an absl main function parses them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
