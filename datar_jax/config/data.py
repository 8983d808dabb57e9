"""Settings of the data set: where the labelled sounds are and how they are divided."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from datar_jax.config.base import ConfigError, Resumable, StrictStruct, require


class DataConfig(StrictStruct, frozen=True):
    """Where the labelled sounds are and how they are divided."""

    largest: ClassVar[dict[str, float]] = {
        "fold": 10_000,
        "validation_fold": 10_000,
        "window_seconds": 86_400,
        "workers": 1024,
        "threads": 1024,
    }

    root: Resumable[str] = ""  # folder that holds the data set
    kind: Literal["folder", "csv", "esc", "prepared"] = "folder"  # prepared: by `datar-jax prepare`
    # folder: class = sub-folder of root. A list file holds one path per line, relative to root.
    train_list: str = ""
    test_list: str = ""
    test_fraction: float = 0.2  # share of clips (of groups, with `group`) that the stable hash puts aside
    # folder, csv without folds: share of the training clips (groups) that checkpoints are chosen on, where the data
    # name no validation clips themselves; 0: the last step counts
    validation_fraction: float = 0.1
    group: str = ""  # regular expression on the path: clips with equal match (or first group) stay in one split
    # csv: columns path, label and optionally split or fold, start, end (seconds)
    manifest: str = "manifest.csv"
    # csv with folds, esc: 1.. tests on that fold, 0 runs the whole cross-validation
    fold: int = 1
    validation_fold: int = 0  # a fold inside the training folds that is scored during training; 0 means none
    subset: str = ""  # esc: "esc10" keeps the ten-class subset of a larger list
    labels: Literal["single", "multi"] = "single"  # one class per clip and head (softmax) or several (sigmoid)
    balanced_sampling: bool = False  # draw rare classes as often as common ones, with replacement
    window_seconds: float = 0.0  # length of what the model sees; 0 means what the data ask for
    max_bad_fraction: float = 0.01  # share of unusable files beyond which the run stops
    cache: Resumable[str] = ""  # folder of decoded features; empty means `cache` in the work directory
    workers: Resumable[int] = 0  # grain worker processes; 0 reads in this process
    threads: Resumable[int] = 2  # grain read threads per process

    def check(self) -> None:
        for name, reason in idle_fields(msgspec.structs.asdict(self)).items():
            value, default = getattr(self, name), DEFAULTS[name]
            require(value == default, f"data.{name}", value, f"has no effect: {reason}; leave it at {default!r}")
        require(0 < self.test_fraction < 1, "data.test_fraction", self.test_fraction, "give a share between 0 and 1")
        share, advice = self.validation_fraction, "give a share of the training clips below 1, or 0"
        require(0 <= share < 1, "data.validation_fraction", share, advice)
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "give 0 to 1")
        require(self.fold >= 0, "data.fold", self.fold, "give a fold number, or 0 for the whole cross-validation")
        require(self.validation_fold >= 0, "data.validation_fold", self.validation_fold, "give a fold number or 0")
        require(
            self.validation_fold == 0 or self.validation_fold != self.fold,
            "data.validation_fold",
            self.validation_fold,
            f"data.fold={self.fold} is the test fold; choose another one",
        )
        require(
            bool(self.train_list) == bool(self.test_list),
            "data.train_list" if self.test_list else "data.test_list",
            self.train_list if self.test_list else self.test_list,
            "give both lists, data.train_list and data.test_list, or neither",
        )
        require(self.window_seconds >= 0, "data.window_seconds", self.window_seconds, "give seconds, or 0")
        require(self.workers >= 0, "data.workers", self.workers, "give 0 or more processes")
        require(self.threads >= 1, "data.threads", self.threads, "give at least 1 thread")
        require(self.subset in ("", "esc10"), "data.subset", self.subset, "give 'esc10' or nothing")
        try:
            re.compile(self.group)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"data.group={self.group!r}: not a regular expression ({error})") from None


def idle_fields(values: Mapping[str, Any]) -> dict[str, str]:
    """Fields of `DataConfig` that do nothing beside the others, and why.

    Args:
      values: of the fields by name; one that is missing has its default.
    """
    kind, listed = values.get("kind", DEFAULTS["kind"]), values.get("train_list") and values.get("test_list")
    idle = {}
    if kind != "csv":
        idle["manifest"] = f"data.kind={kind!r} reads no manifest"
    if kind != "esc":
        idle["subset"] = f"data.kind={kind!r} has no subsets"
    if kind != "folder":
        idle |= dict.fromkeys(
            ("train_list", "test_list"), f"data.kind={kind!r} reads no lists, data.kind='folder' does"
        )
    else:
        idle |= dict.fromkeys(("fold", "validation_fold"), "data.kind='folder' has no folds")
    if kind in ("esc", "prepared"):
        idle["validation_fraction"] = (
            f"data.kind={kind!r} has the validation clips of its lists, or data.validation_fold"
        )
    if kind == "esc":
        idle["test_fraction"] = "data.kind='esc' tests on a fold"
    elif kind == "folder" and listed:
        idle["test_fraction"] = "data.test_list names the test clips"
    return idle


DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(DataConfig)}
