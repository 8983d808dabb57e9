"""Input pipeline: reads the lists, opens the source, drops unusable clips, computes statistics and the window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from rich.console import Console
from rich.progress import Progress

from datar_jax.config import Config, ConfigError, check_windows
from datar_jax.data.dataset import Dataset
from datar_jax.data.loader import TrainBatches, train_batches
from datar_jax.data.prepared import read_statistics
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.array_record import open_shards
from datar_jax.data.sources.base import ClipSource, bad_clips_report, default_window_frames, statistics, usable
from datar_jax.data.sources.feature_cache import prepare
from datar_jax.data.splits import Split, check_classes, check_heads, split
from datar_jax.filesystem import place
from datar_jax.models.spec import Task
from datar_jax.training.distributed import wait_for_all

STATISTICS_CLIPS = 2048  # clips of prepared data to compute statistics from, where none are stored for the front end


@dataclass(frozen=True)
class FoldData:
    """Data that one model is trained and evaluated on."""

    source: ClipSource
    dataset: Dataset
    split: Split
    mean: float  # of the training spectrograms, decibels
    std: float

    def train_batches(self, task: Task) -> TrainBatches:
        """Endless batches of this process."""
        train = task.config.train
        return train_batches(
            self.source,
            self.dataset,
            self.split.train,
            task.frames,
            train.batch_size,
            train.seed,
            task.config.data,
            jax.process_index(),
            jax.process_count(),
        )


@dataclass(frozen=True)
class InputPipeline:
    """Data of a run: one data set, opened once, and a split for each fold."""

    config: Config  # with the number of classes of the data
    dataset: Dataset
    source: ClipSource
    splits: dict[int, Split]  # by fold; usable clips only
    frames: int  # of the window

    @classmethod
    def open(
        cls, config: Config, workdir: Path, console: Console, check: Callable[[Config, list[int]], None]
    ) -> InputPipeline:
        """Reads the lists, divides them, and opens the clips.

        Args:
          config: settings of the run.
          workdir: holds the cache, unless `data.cache` is set.
          console: for notes and progress.
          check: called with the resolved configuration and the folds before any audio is read; may raise.

        Raises:
          ConfigError: settings that contradict the data.
          DataError: too many clips are unusable.
        """
        dataset = read_dataset(config.data)
        config = resolve(config, dataset)
        folds = list(dataset.folds) if config.data.fold == 0 else [config.data.fold]
        splits = {fold: split(dataset, config.data, fold) for fold in folds}
        for note in dict.fromkeys([*dataset.notes, *(note for each in splits.values() for note in each.notes)]):
            console.print(note, markup=False, soft_wrap=True)
        check(config, folds)
        source = open_source(config, dataset, workdir, console)
        splits = {fold: usable_split(dataset, source, each, console) for fold, each in splits.items()}
        frames = config.audio.frames(config.data.window_seconds) if config.data.window_seconds else 0
        frames = frames or max(default_window_frames(source, each.train, config.audio) for each in splits.values())
        seconds = frames * config.audio.hop_length / config.audio.sample_rate
        check_windows(config, frames, f"a window of {seconds:g} s")
        return cls(config, dataset, source, splits, frames)

    def statistics(self, fold: int) -> tuple[float, float]:
        """Mean and standard deviation of the training spectrograms of a fold, decibels."""
        return training_statistics(self.config, self.dataset, self.source, self.splits[fold].train)


def resolve(config: Config, dataset: Dataset) -> Config:
    """Returns the configuration with the number of classes of the data.

    Raises:
      ConfigError: the settings contradict the data.
    """
    classes = len(dataset.labels)
    if config.model.num_classes not in (0, classes):
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: the data have {classes} classes; give {classes}, or 0"
        )
    if config.data.fold == 0 and not dataset.folds:
        raise ConfigError("data.fold=0: these data have no folds to cross-validate over; give 1")
    check_heads(config.data, dataset)
    model = msgspec.structs.replace(config.model, num_classes=classes)
    return msgspec.structs.replace(config, model=model)


def open_source(config: Config, dataset: Dataset, workdir: Path, console: Console) -> ClipSource:
    """Opens all clips, decoded once, and reports the unusable ones.

    The first process goes first: the others reuse its cache where they share a disk.
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
    """Opens the feature cache of a folder or a list of sounds; shows a progress bar while it is computed."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=len(dataset))
        return prepare(
            dataset,
            config.audio,
            cache,
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda line: console.print(line, markup=False, soft_wrap=True),
        )


def training_statistics(config: Config, dataset: Dataset, store: ClipSource, train: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the training spectrograms: of all clips, or of a sample of prepared data."""
    if dataset.card:
        parts = {clip.split or f"fold {clip.fold}" for clip in (dataset.clips[i] for i in train)}
        known = read_statistics(place(config.data.root, "data.root"), config.audio, sorted(parts))
        if known:
            return known
        train = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), STATISTICS_CLIPS)).astype(int))]
    return statistics(store, train)


def usable_split(dataset: Dataset, store: ClipSource, each: Split, console: Console) -> Split:
    """A split without the unusable clips."""
    kept: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        kept[name], lost = usable(store, getattr(each, name))
        if lost:
            console.print(f"{lost} {name} clips cannot be used and are left out", markup=False)
    check_classes(dataset, kept["train"], kept["test"])
    return replace(each, **kept)
