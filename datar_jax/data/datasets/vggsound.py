"""VGGSound: 10 s clips of YouTube videos in 309 classes (Chen et al., ICASSP 2020)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from datar_jax.data.csv_table import Table
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

CLASSES = 309
SECONDS = 10.0
_FILE = re.compile(r"(.{11})_(\d{6})(?:\.\w+)?", re.ASCII)


def read(folder: Path) -> Annotations:
    """Reads `vggsound.csv` (id, second, class, split), or else `train.csv` and `test.csv` (file, class).

    No numbers of the classes are published: ours are those of the sorted names, which `stat.csv` lists if it is there.

    Raises:
      ConfigError: a list is not there or cannot be used; names file, row and column.
    """
    left = SkippedRows()
    first = require_list(folder, "vggsound.csv", "train.csv")
    paths = [first, require_list(folder, "test.csv")] if first.stem == "train" else [first]
    stat = find_list(folder, "stat.csv")
    known = {row["class"] for row in Table(stat, (), None, ("class", "clips", "group")).rows()} if stat else set()
    rows = [row for path in paths for row in _rows(path, known, left)]
    classes = sorted(known or {row[1] for row in rows})
    labels = {name: (i,) for i, name in enumerate(classes)}
    segments = (
        Segment(
            f"{video}_{second:06d}",
            labels[name],
            split,
            None,
            YOUTUBE,
            video,
            float(second),
            second + SECONDS,
            source,
            line,
        )
        for split, name, video, second, source, line in rows
    )
    notes = [f"{len(classes)} classes, not {CLASSES}: is a list cut short?"] if len(classes) != CLASSES else []
    lists = [*paths, stat] if stat else paths
    return build_annotations(segments, [Head("class", tuple(classes))], "single", lists, left, notes)


def _rows(path: Path, known: set[str], left: SkippedRows) -> Iterator[tuple[str, str, str, int, str, int]]:
    """Split, class, video and second of every row, with the name of the list and the line."""
    split = "" if path.stem == "vggsound" else path.stem  # a list of one split has file names in place of ids
    table = Table(path, (), None, ("id", "class") if split else ("id", "second", "class", "split"))
    for row in table.rows():
        if has_spreadsheet_error(table, "id", left):
            continue
        name = table.text("class")
        if known and name not in known:
            table.fail("class", "give a class of stat.csv")
        if split:
            found = _FILE.fullmatch(row["id"])
            if not found:
                table.fail("id", "give {id}_{second, six digits}.mp4")
            yield split, name, found[1], int(found[2]), path.name, table.row
        else:
            if row["split"] not in ("train", "test"):
                table.fail("split", "give train or test")
            yield row["split"], name, row["id"], table.whole("second", 0), path.name, table.row


CORPUS = DatasetSpec(
    title="VGGSound",
    read=read,
    lists="vggsound.csv, or train.csv and test.csv; stat.csv if at hand: data/ of github.com/hche11/VGGSound",
    terms="lists CC BY 4.0; the videos stay with their owners",
)
