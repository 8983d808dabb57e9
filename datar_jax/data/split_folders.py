"""Recognizes folders that are named as splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TRAIN = {"train", "training", "tr"}
_VALIDATION = {"val", "valid", "validation", "cv"}
_TEST = {"test", "testing", "tt", "eval", "evaluation"}
_DEV = {"dev", "devel", "development"}  # a validation split beside a training one, else the training split
_ALL = _TRAIN | _VALIDATION | _TEST | _DEV


def split_level(names: Sequence[str]) -> int | None:
    """Which folder of all paths is named as a split, 0 for the first; None if there is none.

    All names must be those of splits, and two of them: a class of its own may well be called train.
    """
    for level in (0, 1):
        folders = {parts[level].lower() for name in names if len(parts := name.split("/")) > level + 1}
        deep = all(name.count("/") > level for name in names)
        if deep and len(folders) > 1 and folders <= _ALL and folders & (_TRAIN | _DEV):
            return level
    return None


def split_names(folders: Iterable[str]) -> dict[str, str]:
    """The split of each folder. Where none is for testing, the one for validation is."""
    folders = sorted(folders)
    low = {folder.lower() for folder in folders}
    train = _TRAIN if low & _TRAIN else _TRAIN | _DEV
    no_test = not low & _TEST
    return {
        folder: "train" if folder.lower() in train else "test" if no_test or folder.lower() in _TEST else "validation"
        for folder in folders
    }
