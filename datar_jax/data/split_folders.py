"""Recognizes folders that are named as splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_TRAIN = {"train", "training", "tr"}
_VALIDATION = {"val", "valid", "validation", "cv"}
_TEST = {"test", "testing", "tt", "eval", "evaluation"}
_DEV = {"dev", "devel", "development"}  # a validation split beside a training one, else the training split
_ALL = _TRAIN | _VALIDATION | _TEST | _DEV
_BESIDE = {"", "data", "split", "audio", "wav", "clips", "sounds", "clean", "other"}  # as in train_data, test-clean-100


class Levels(NamedTuple):
    """Which folders of all paths are which, 0 for the first."""

    split: int
    label: int  # the class; beyond the folders of some path where that lies in none


def split_levels(names: Sequence[str]) -> Levels | None:
    """Finds the folders that are named as splits; None if there are none.

    All names at that depth must be those of splits, and two of them: a class of its own may well be called train.
    """
    folders = [name.split("/")[:-1] for name in names]
    depth = min(map(len, folders), default=0)
    for level in range(depth):
        words = {_word(each[level]) for each in folders}
        if len(words) > 1 and words <= _ALL and words & (_TRAIN | _DEV):
            others = [i for i in range(max(depth, 2)) if i != level]
            several = (i for i in others if i < depth and len({each[i] for each in folders}) > 1)
            return Levels(level, next(several, others[0]))
    return None


def beside_splits(names: Sequence[str]) -> list[str]:
    """First folders that are no splits, beside two that are and hold folders of the same names; usually none."""
    inside: dict[str, set[str]] = {}
    for first, second, *_ in (each for name in names if len(each := name.split("/")) > 2):
        inside.setdefault(first, set()).add(second.lower())
    train, test = (
        set().union(*(inside[folder] for folder in inside if _word(folder) in words))
        for words in (_TRAIN | _DEV, _TEST | _VALIDATION)
    )
    return sorted({name.split("/")[0] for name in names if not _word(name.split("/")[0])}) if train & test else []


def split_names(folders: Iterable[str]) -> dict[str, str]:
    """The split of each folder. Where none is for testing, the one for validation is."""
    words = {folder: _word(folder) for folder in sorted(folders)}
    train = _TRAIN if _TRAIN & set(words.values()) else _TRAIN | _DEV
    no_test = not _TEST & set(words.values())
    return {
        folder: "train" if word in train else "test" if no_test or word in _TEST else "validation"
        for folder, word in words.items()
    }


def _word(folder: str) -> str:
    """The word of a split in the name of a folder, as in Train, test_set or 00-dev; empty if it is named otherwise."""
    words = [word.removesuffix("set") for word in re.findall(r"[^\W\d_]+", folder.lower())]
    meant = [word for word in words if word not in _BESIDE]
    return meant[0] if len(meant) == 1 and meant[0] in _ALL else ""
