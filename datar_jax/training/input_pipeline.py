"""What a run is made from: the clips of its data set opened, the unusable ones taken out, the rest measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from datar_jax.config import Config
from datar_jax.data.dataset import Dataset
from datar_jax.data.loader import TrainBatches, train_batches
from datar_jax.data.prepared import read_statistics
from datar_jax.data.sources.array_record import open_shards
from datar_jax.data.sources.base import ClipSource, bad_clips_report, statistics, usable
from datar_jax.data.sources.feature_cache import prepare
from datar_jax.data.splits import Split, check_classes
from datar_jax.filesystem import place
from datar_jax.models.spec import Task
from datar_jax.training.distributed import wait_for_all

SOME = 2048  # clips of prepared data that statistics are taken of, for a front end that they were not prepared for


@dataclass(frozen=True)
class InputPipeline:
    """What one split is trained and scored on."""

    store: ClipSource
    dataset: Dataset
    split: Split
    mean: float  # of the training spectrograms, decibels
    std: float

    def train_batches(self, task: Task) -> TrainBatches:
        """Endless batches of this process."""
        train = task.config.train
        return train_batches(
            self.store,
            self.dataset,
            self.split.train,
            task.frames,
            train.batch_size,
            train.seed,
            task.config.data,
            jax.process_index(),
            jax.process_count(),
        )


def open_source(config: Config, dataset: Dataset, workdir: Path, console: Console) -> ClipSource:
    """All clips, decoded once, with one report of what cannot be used.

    The first process goes ahead: where the others see its disk, they find what it left.
    """
    cache = Path(config.data.cache) if config.data.cache else workdir / "cache"
    if jax.process_index():
        wait_for_all("sounds")
    if dataset.card:
        root = place(config.data.root, "data.root")
        store: ClipSource = open_shards(root, dataset.card, dataset.clips, config.audio, cache)
    else:
        store = _decoded(config, dataset, cache, console)
    if not jax.process_index():
        wait_for_all("sounds")
    if report := bad_clips_report(store, config.data.max_bad_fraction):
        console.print(report, markup=False, soft_wrap=True)
    return store


def _decoded(config: Config, dataset: Dataset, cache: Path, console: Console) -> ClipSource:
    """The cache of a folder or a list of sounds, with a bar while it is computed."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=len(dataset))
        return prepare(
            dataset,
            config.audio,
            cache,
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda line: console.print(line, markup=False, soft_wrap=True),
        )


def normalisation(config: Config, dataset: Dataset, store: ClipSource, train: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of the training spectrograms: of all of them, or of some of a prepared data set's."""
    if dataset.card:
        parts = {clip.split or f"fold {clip.fold}" for clip in (dataset.clips[i] for i in train)}
        known = read_statistics(place(config.data.root, "data.root"), config.audio, sorted(parts))
        if known:
            return known
        train = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), SOME)).astype(int))]
    return statistics(store, train)


def usable_split(dataset: Dataset, store: ClipSource, each: Split, console: Console) -> Split:
    """A split without the clips that cannot be used."""
    sides: dict[str, Any] = {}
    for side in ("train", "validation", "test"):
        sides[side], lost = usable(store, getattr(each, side))
        if lost:
            console.print(f"{lost} {side} clips cannot be used and are left out", markup=False)
    check_classes(dataset, sides["train"], sides["test"])
    return replace(each, **sides)
