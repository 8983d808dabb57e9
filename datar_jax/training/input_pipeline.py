"""Input pipeline: reads the lists, opens the clips, drops unusable ones, computes statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

from datar_jax.config import Config, ConfigError
from datar_jax.data.dataset import SPLITS, Dataset
from datar_jax.data.duplicates import copies_note
from datar_jax.data.identity import FileContent, look_at_files
from datar_jax.data.loader import TrainBatches, train_batches
from datar_jax.data.prepared import read_statistics
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.array_record import open_shards
from datar_jax.data.sources.base import ClipSource, bad_clips_report, default_window_frames, statistics, usable
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.data.splits import Splits, check_classes, check_heads, split
from datar_jax.filesystem import StoragePath, storage_path
from datar_jax.models.spec import ModelSpec
from datar_jax.training.distributed import wait_for_all
from datar_jax.training.monitoring.console import ProgressConsole
from datar_jax.wording import count

STATISTICS_CLIPS = 2048  # clips whose statistics are computed where prepared data have none for this front end


@dataclass(frozen=True)
class LabelledData:
    """Clips, classes and splits from the lists of a data set, before any sound is read.

    Attributes:
      config: of the run, with the number of classes.
      dataset: its clips.
      splits: training, validation and test clips by test fold.
    """

    config: Config
    dataset: Dataset
    splits: dict[int, Splits]

    @classmethod
    def read(cls, config: Config) -> LabelledData:
        """Reads the lists; `data.fold=0` gives the splits of all folds.

        Raises:
          ConfigError: settings that contradict the data, or lists that cannot be used.
        """
        dataset = read_dataset(config.data)
        config = with_classes(config, dataset)
        folds = list(dataset.folds) if config.data.fold == 0 else [config.data.fold]
        return cls(config, dataset, {fold: split(dataset, config.data, fold) for fold in folds})

    @cached_property
    def content(self) -> FileContent:
        """What is known of the clips' files without reading them."""
        return look_at_files(self.dataset, self.root)

    @property
    def root(self) -> StoragePath | None:
        """The folder of prepared data; None for sound files."""
        return storage_path(self.config.data.root, "data.root") if self.dataset.card else None

    @property
    def notes(self) -> list[str]:
        """What a user should know of the lists and splits, each note once."""
        return list(dict.fromkeys([*self.dataset.notes, *(n for each in self.splits.values() for n in each.notes)]))


@dataclass(frozen=True)
class InputPipeline:
    """The opened data of a run.

    Attributes:
      source: the clips, decoded or in shards.
      splits: usable clips by test fold.
      frames: length of the window that the model sees.
    """

    config: Config
    dataset: Dataset
    source: ClipSource
    splits: dict[int, Splits]
    frames: int

    @classmethod
    def open(
        cls, data: LabelledData, workdir: Path, console: ProgressConsole, content: FileContent | None = None
    ) -> InputPipeline:
        """Opens the clips (decoding them on the first call), drops unusable ones and chooses the window.

        `content` is what is known of their files, with checksums where those have been compared.

        Raises:
          DataError: too many unusable clips.
        """
        config, dataset = data.config, data.dataset
        source = open_source(config, dataset, workdir, console, content or data.content)
        splits = {fold: usable_split(dataset, source, each, console) for fold, each in data.splits.items()}
        for note in dict.fromkeys(copies_note(dataset, source, each) for each in splits.values()):
            if note:
                console.say(note)
        frames = config.audio.frames(config.data.window_seconds) if config.data.window_seconds else 0
        frames = frames or max(default_window_frames(source, each.train, config.audio) for each in splits.values())
        return cls(config, dataset, source, splits, frames)

    def fold(self, fold: int, known: tuple[float, float] | None = None) -> FoldPipeline:
        """The data of one test fold.

        Args:
          fold: key of `splits`.
          known: mean and deviation (dB) of a pretrained model's spectrograms; otherwise those of the training split.
        """
        each = self.splits[fold]
        mean, std = known or normalization_statistics(self.config, self.dataset, self.source, each.train)
        return FoldPipeline(self.source, self.dataset, each, mean, std)


@dataclass(frozen=True)
class FoldPipeline:
    """The data that one fold is trained and evaluated on."""

    source: ClipSource
    dataset: Dataset
    split: Splits
    mean: float  # of the training spectrograms, decibels
    std: float

    def train_batches(self, spec: ModelSpec) -> TrainBatches:
        """Endless training batches of this process."""
        train = spec.config.train
        return train_batches(
            self.source,
            self.dataset,
            self.split.train,
            spec.frames,
            train.batch_size,
            train.seed,
            spec.config.data,
            jax.process_index(),
            jax.process_count(),
        )


def with_classes(config: Config, dataset: Dataset) -> Config:
    """The configuration with the number of classes that the data have.

    Raises:
      ConfigError: another number was given, or folds that the data do not have.
    """
    classes = len(dataset.labels)
    if classes == 1 and config.data.labels == "single":
        raise ConfigError(
            f"{dataset.source}: {dataset.labels[0]!r} is the only class, which needs no recognizer; give two or more, "
            "each in a folder of its own or with a label of its own"
        )
    if config.model.num_classes not in (0, classes):
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: the data have {classes} classes; give {classes}, or 0"
        )
    if config.data.fold == 0 and not dataset.folds:
        raise ConfigError("data.fold=0: these data have no folds to cross-validate over; give 1")
    check_heads(config.data, dataset)
    model = msgspec.structs.replace(config.model, num_classes=classes)
    return msgspec.structs.replace(config, model=model)


def open_source(
    config: Config, dataset: Dataset, workdir: Path, console: ProgressConsole, content: FileContent | None = None
) -> ClipSource:
    """Opens all clips, decoding them on the first call, and reports unusable ones.

    The first process decodes; the others wait, and find its cache where they share its disk.
    """
    cache = Path(config.data.cache).expanduser() if config.data.cache else workdir / "cache"
    if jax.process_index():
        wait_for_all("sounds")
    if dataset.card:
        root = storage_path(config.data.root, "data.root")
        store: ClipSource = open_shards(root, dataset.card, dataset.clips, config.audio, cache)
    else:
        decoding = console.progress.counter("decoding", "clip", "opening the sounds")
        store = open_cache(dataset, config.audio, cache, decoding, console.say, content)
    if not jax.process_index():
        wait_for_all("sounds")
    if report := bad_clips_report(store, config.data.max_bad_fraction):
        console.print(report, soft_wrap=True)
    return store


def normalization_statistics(
    config: Config, dataset: Dataset, store: ClipSource, train: np.ndarray
) -> tuple[float, float]:
    """Mean and deviation (dB) of the training spectrograms; of prepared data the stored ones, or those of a sample."""
    if dataset.card:
        parts = {clip.split or f"fold {clip.fold}" for clip in (dataset.clips[i] for i in train)}
        known = read_statistics(storage_path(config.data.root, "data.root"), config.audio, sorted(parts))
        if known:
            return known
        train = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), STATISTICS_CLIPS)).astype(int))]
    return statistics(store, train)


def usable_split(dataset: Dataset, store: ClipSource, each: Splits, console: ProgressConsole) -> Splits:
    """The split without unusable clips."""
    clips: dict[str, Any] = {}
    for name in SPLITS:
        clips[name], dropped = usable(store, getattr(each, name))
        if dropped:
            console.say(f"{count(dropped, f'{name} clip')} cannot be used and left out")
    check_classes(dataset, clips["train"], clips["test"])
    return replace(each, **clips)
