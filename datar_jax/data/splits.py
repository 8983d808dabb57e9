"""Divides clips into training, validation and test splits.

Pure functions of the data set's lists. A clip's split never depends on which other clips there are, except where the
lists say so, and that no class gives its last training clip to validation.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import os
import stat
from collections.abc import Sequence

import numpy as np

from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.dataset import SPLITS, Clip, Dataset
from datar_jax.labels import head_slices
from datar_jax.wording import count


@dataclasses.dataclass(frozen=True)
class Splits:
    """Clip indices of each split, int64, ascending and disjoint."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    notes: tuple[str, ...] = ()  # one line each


def split(dataset: Dataset, config: DataConfig, fold: int = 0) -> Splits:
    """Divides a data set into training, validation and test clips.

    Lists and a column `split` are obeyed; else folds, where there are any; else a stable hash of each clip's group, so
    that a clip keeps its split on every machine and when files are added.

    Args:
      dataset: what to divide.
      config: how.
      fold: the fold to test on; 0 means `config.fold`. Only data with folds use it.

    Raises:
      ConfigError: no such fold, a split or the training clips of a class are missing, or a group stands on two splits.
    """
    each = divide(dataset, config, fold)
    return dataclasses.replace(each, notes=check_classes(dataset, each.train, each.test))


def divide(dataset: Dataset, config: DataConfig, fold: int = 0) -> Splits:
    """As `split`, but a split may be empty: a trained model can be evaluated on clips that nobody could train on.

    Raises:
      ConfigError: no such fold, or a group stands on two splits.
    """
    files = [] if dataset.card else _real_paths(dataset)
    keys = _keys(dataset, files)
    if any(clip.split for clip in dataset.clips):
        splits = [clip.split or "" for clip in dataset.clips]
    elif dataset.folds:
        splits = _splits_by_fold(dataset, config, fold or config.fold)
    else:
        splits = ["test" if _draw(key) < config.test_fraction * 2**64 else "train" for key in keys]
    if not dataset.card and not dataset.folds and "validation" not in splits:
        splits = _with_validation(dataset, keys, splits, config.validation_fraction)
    if config.validation_fold and not dataset.folds:
        raise ConfigError(f"data.validation_fold={config.validation_fold}: these data have no folds; give 0")
    _refuse_straddling(dataset, splits, bool(config.group))
    _refuse_overlaps(dataset, files, splits)
    train, validation, test = (np.flatnonzero(np.array(splits) == split) for split in SPLITS)
    return Splits(train, validation, test)


def check_classes(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """Refuses a split without enough clips to learn from; called again after unusable clips are dropped.

    Returns:
      One line that names the classes without a test clip, or nothing; of prepared data, those without a training clip
      too.

    Raises:
      ConfigError: a split is empty, or a class has no clip to learn from.
    """
    for name, indices in (("training", train), ("test", test)):
        if not len(indices):
            raise ConfigError(f"{dataset.source}: no {name} clip; change data.test_fraction, the lists or the folds")
    untaught, untested = (_classes_without(dataset, indices) for indices in (train, test))
    if untaught and dataset.card:  # published lists have such classes, and people's copies of them more
        few = ", ".join(untaught[:5]) + (", ..." if len(untaught) > 5 else "")
        return (
            f"no training clip of {count(len(untaught), 'class', 'classes')}, which cannot be learned ({few})",
            *_unheard(untested),
        )
    if untaught:
        raise ConfigError(
            f"{dataset.source}: no training clip of class {', '.join(untaught)}; "
            "add clips, take the class out, or change data.test_fraction, the lists or the folds"
        )
    return _unheard(untested)


def _unheard(untested: list[str]) -> tuple[str, ...]:
    names = ", ".join(untested[:20]) + (f" and {len(untested) - 20} more" if len(untested) > 20 else "")
    return (f"no test clip of class {names}: its score will be missing",) if untested else ()


def _classes_without(dataset: Dataset, indices: np.ndarray) -> list[str]:
    have = {label for i in indices for label in dataset.clips[i].labels}
    return [name for label, name in enumerate(dataset.labels) if label not in have]


def _splits_by_fold(dataset: Dataset, config: DataConfig, fold: int) -> list[str]:
    there = ", ".join(map(str, dataset.folds))
    if fold not in dataset.folds:
        raise ConfigError(f"data.fold={fold}: no such fold; the data have {there}")
    if config.validation_fold == fold:
        raise ConfigError(f"data.validation_fold={fold}: is the test fold; choose another of {there}")
    if config.validation_fold and config.validation_fold not in dataset.folds:
        raise ConfigError(f"data.validation_fold={config.validation_fold}: no such fold; the data have {there}")
    names = {fold: "test", config.validation_fold: "validation"}
    return [names.get(clip.fold or 0, "train") for clip in dataset.clips]


def _with_validation(dataset: Dataset, keys: Sequence[str], splits: Sequence[str], share: float) -> list[str]:
    """Moves a share of the training clips to validation, but for groups of classes that would be left without any."""
    chosen = [split == "train" and _draw(key, b"validation") < share * 2**64 for key, split in zip(keys, splits)]
    kept = zip(dataset.clips, splits, chosen)
    taught = {label for clip, split, taken in kept if split == "train" and not taken for label in clip.labels}
    rows = zip(dataset.clips, keys, chosen)
    lone = {key for clip, key, taken in rows if taken and not taught.issuperset(clip.labels)}
    return ["validation" if taken and key not in lone else split for key, split, taken in zip(keys, splits, chosen)]


def _keys(dataset: Dataset, files: Sequence[str]) -> list[str]:
    """What the hash divides by: the group of a clip, or the first name of its file, so that links stay together."""
    first: dict[str, str] = {}
    for clip, file in zip(dataset.clips, files):
        first[file] = min(first.get(file, clip.name), clip.name)
    names = [first[file] for file in files] or [clip.name for clip in dataset.clips]
    return [clip.group or name for clip, name in zip(dataset.clips, names)]


def _draw(key: str, purpose: bytes = b"") -> int:
    """A number from 0 to 2**64 that is a function of a group's name alone."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, person=purpose)
    return int.from_bytes(digest.digest(), "big")


def _refuse_straddling(dataset: Dataset, splits: Sequence[str], grouped: bool) -> None:
    """Refuses a group, or the same sound, in two splits."""
    first: dict[object, int] = {}
    for i, clip in enumerate(dataset.clips):
        key = clip.group if grouped else (clip.name, clip.start, clip.end)
        j = first.setdefault(key, i)
        if splits[i] != splits[j]:
            remedy = "move one, or change data.group" if grouped else "keep one"
            raise ConfigError(
                f"group {clip.group or clip.name!r} stands on two splits: {dataset.where(j)} is in {splits[j]}, "
                f"{dataset.where(i)} in {splits[i]}; {remedy}"
            )


def _refuse_overlaps(dataset: Dataset, files: Sequence[str], splits: Sequence[str]) -> None:
    """Refuses parts of one file that overlap in time and are in two splits.

    Raises:
      ConfigError: names both clips with their rows.
    """
    of_file: dict[str, list[int]] = collections.defaultdict(list)
    for i, file in enumerate(files):
        of_file[file].append(i)
    for clips in of_file.values():
        last: dict[str, int] = {}  # of each split, the clip that ends last
        for i in sorted(clips, key=lambda i: dataset.clips[i].start) if len(clips) > 1 else ():
            for split, j in last.items():
                if split != splits[i] and dataset.clips[i].start < _end(dataset.clips[j]):
                    raise ConfigError(
                        f"{dataset.where(j)} is in {split} and {dataset.where(i)} in {splits[i]}: they are the same "
                        "sound, or overlap in time; move one, or keep one"
                    )
            if splits[i] not in last or _end(dataset.clips[i]) > _end(dataset.clips[last[splits[i]]]):
                last[splits[i]] = i


def _real_paths(dataset: Dataset) -> list[str]:
    """The file of each clip without links and other spellings; folders are looked up once.

    One of several names of a file is the device and number of the file instead.
    """
    folders: dict[str, str] = {}
    paths = []
    for clip in dataset.clips:
        folder, name = os.path.split(clip.path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.normpath(os.path.join(folders[folder], name))
        with contextlib.suppress(OSError, ValueError):  # reported as it is decoded
            if stat.S_ISLNK((status := os.lstat(path)).st_mode):
                path = os.path.realpath(path)
                status = os.stat(path)
            if status.st_nlink > 1:
                path = f"{status.st_dev}:{status.st_ino}"
        paths.append(path)
    return paths


def _end(clip: Clip) -> float:
    return clip.end or math.inf


def check_heads(data: DataConfig, dataset: Dataset) -> None:
    """Checks that the heads partition the classes, and that single-label clips have one class of each.

    Raises:
      ConfigError: they do not.
    """
    names, sizes = [head.name for head in dataset.heads], [head.size for head in dataset.heads]
    for name in names:  # it becomes a part of names of numbers and files
        if not name.isidentifier() or len(name.encode()) > 64 or name == "action" or names.count(name) > 1:
            raise ConfigError(f"{dataset.source}: head {name[:80]!r}; give each a word of its own, other than 'action'")
    if sizes and (min(sizes) < 1 or sum(sizes) != len(dataset.labels)):
        raise ConfigError(f"{dataset.source}: heads of {sizes} classes share out {len(dataset.labels)} classes")
    if data.labels == "multi":
        return
    for prefix, part in head_slices(dataset.heads).items():
        answers = range(len(dataset.labels))[part]
        question = f" of the head {prefix[:-1]!r}" if prefix else ""
        for i, clip in enumerate(dataset.clips):
            if (count := sum(label in answers for label in clip.labels)) != 1:
                raise ConfigError(
                    f"data.labels='single': {dataset.where(i)} has {count} labels{question}; give it one, or 'multi'"
                )
