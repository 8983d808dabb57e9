"""Kinetics-Sounds: the clips of Kinetics-400 whose actions can be heard (Arandjelovic and Zisserman, ICCV 2017).

There is no one list. The first definition has 34 classes, of which Kinetics-400 as published has 31 under these or
clearer names; papers also count 32. Ours are the 31; `classes.txt` or `classes.csv` beside the lists replaces them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from datar_jax.config import ConfigError
from datar_jax.data.csv_table import Table, lines
from datar_jax.data.datasets.annotations import (
    YOUTUBE,
    SkippedRows,
    build_annotations,
    find_list,
    has_spreadsheet_error,
    require_list,
)
from datar_jax.data.datasets.base import Annotations, DatasetSpec, Segment
from datar_jax.labels import Head

CLASSES = (
    "blowing nose",
    "blowing out candles",
    "bowling",
    "chopping wood",
    "dribbling basketball",
    "laughing",
    "mowing lawn",
    "playing accordion",
    "playing bagpipes",
    "playing bass guitar",
    "playing clarinet",
    "playing drums",
    "playing guitar",
    "playing harmonica",
    "playing keyboard",
    "playing organ",
    "playing piano",
    "playing saxophone",
    "playing trombone",
    "playing trumpet",
    "playing violin",
    "playing xylophone",
    "ripping paper",
    "shoveling snow",
    "shuffling cards",
    "singing",
    "stomping grapes",
    "tap dancing",
    "tapping guitar",
    "tapping pen",
    "tickling",
)
_CLIP = re.compile(r"(.{11})_(\d{1,6})(?:_(\d{1,6}))?", re.ASCII)


def read(folder: Path) -> Annotations:
    """Reads `my_train.txt` and `my_test.txt` (clip, seconds, class number), or else the lists of Kinetics-400.

    The former are those of OGM-GE (Peng et al., CVPR 2022); their numbers are places in the alphabetical order of the
    31 names, which their authors do not say: it was inferred, and checked on ids that other data sets have too. Of
    the latter, `train.csv` and `val.csv` (or `validate.csv`) must be there; without a `test.csv` with labels,
    validation is our test, as papers on Kinetics have it. Rows of other classes are passed over, and counted.

    Raises:
      ConfigError: a list is not there or cannot be used; names file, row and column.
    """
    left = SkippedRows()
    classes, lists = _classes(folder)
    train = require_list(folder, "my_train.txt", "train.csv")
    if train.suffix == ".txt":
        paths = {train: "train", require_list(folder, "my_test.txt"): "test"}
        segments = [s for path, split in paths.items() for s in _clips(path, split, len(classes), left)]
        return build_annotations(segments, [Head("class", classes)], "single", [*paths, *lists], left)
    val, test = require_list(folder, "val.csv", "validate.csv"), find_list(folder, "test.csv")
    notes = []
    if test and "label" not in Table(test, (), None).columns:
        notes.append(f"{test.name} has no labels: it is not read")
        test = None
    if not test:
        notes.append(f"{val.name} is the test split")
    paths = {train: "train", val: "validation", test: "test"} if test else {train: "train", val: "test"}
    segments = [s for path, split in paths.items() for s in _actions(path, split, classes, left)]
    seen = {label for segment in segments for label in segment.labels}
    if missing := [name for i, name in enumerate(classes) if i not in seen]:
        notes.append(f"classes that no row has: {', '.join(missing)}")
    return build_annotations(segments, [Head("class", classes)], "single", [*paths, *lists], left, notes)


def _classes(folder: Path) -> tuple[tuple[str, ...], list[Path]]:
    """The names of the classes, in order, and the list that they were read from, if any."""
    path = find_list(folder, "classes.txt", "classes.csv")
    if path is None:
        return CLASSES, []
    if path.suffix == ".txt":
        names = [name for line in lines(path) if (name := line.strip())]
    else:
        names = [row["class"] for row in Table(path, ("class",), None).rows()]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{path}: {len(names)} names, {len(set(names))} different ones; give each class once")
    return tuple(names), [path]


def _clips(path: Path, split: str, classes: int, left: SkippedRows) -> Iterator[Segment]:
    """Rows of `{id}_{start}_{end}` or `{id}_{start}`, length in seconds, class number."""
    table = Table(path, (), None, ("clip", "seconds", "class"))
    for row in table.rows():
        if has_spreadsheet_error(table, "clip", left):
            continue
        found = _CLIP.fullmatch(row["clip"])
        if not found:
            table.fail("clip", "give {id}_{start}_{end} or {id}_{start}")
        label = table.whole("class", 0)
        if label >= classes:
            table.fail("class", f"there are {classes} classes, from 0; name others in classes.txt")
        start = int(found[2])
        end = int(found[3]) if found[3] else start + table.whole("seconds", 1)
        yield _segment(found[1], start, end, label, split, table)


def _actions(path: Path, split: str, classes: tuple[str, ...], left: SkippedRows) -> Iterator[Segment]:
    """Rows of Kinetics-400 whose label is one of the classes."""
    numbers = {name: i for i, name in enumerate(classes)}
    table = Table(path, ("label", "youtube_id", "time_start", "time_end"), None)
    for row in table.rows():
        if row["label"] not in numbers:
            left.add(path.name, table.row, "their action is none of the classes")
        elif not has_spreadsheet_error(table, "youtube_id", left):
            start, end = table.whole("time_start", 0), table.whole("time_end", 0)
            yield _segment(row["youtube_id"], start, end, numbers[row["label"]], split, table)


def _segment(video: str, start: int, end: int, label: int, split: str, table: Table) -> Segment:
    name = f"{video}_{start:06d}_{end:06d}"
    return Segment(name, (label,), split, None, YOUTUBE, video, float(start), float(end), table.path.name, table.row)


CORPUS = DatasetSpec(
    title="Kinetics-Sounds",
    read=read,
    lists="my_train.txt and my_test.txt of github.com/GeWu-Lab/OGM-GE_CVPR2022, "
    "or train.csv and val.csv of Kinetics-400 (github.com/cvdfoundation/kinetics-dataset)",
    terms="the lists of Kinetics CC BY 4.0, those of OGM-GE MIT; the videos stay with their owners",
)
