"""AudioSet: 10 s clips of YouTube videos, any number of 527 classes each (Gemmeke et al., ICASSP 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datar_jax.config import ConfigError
from datar_jax.data.csv_table import Table
from datar_jax.data.datasets.annotations import (
    YOUTUBE,
    SkippedRows,
    build_annotations,
    find_list,
    has_spreadsheet_error,
    require_list,
)
from datar_jax.data.datasets.base import Annotations, DatasetSpec, FilePatterns, Segment
from datar_jax.labels import Head

# Some scripts put a Y before the id, so that none begins with `-`.
NAMING = FilePatterns(
    cut=(*YOUTUBE.cut, *(f"Y{pattern}" for pattern in YOUTUBE.cut)),
    whole=("Y{recording}", *YOUTUBE.whole),
)
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")


def read(folder: Path) -> Annotations:
    """Reads the segments of evaluation (our test) and of training: balanced, unbalanced, or both, as they are there.

    As published, three lines of comment come first and a blank follows each comma; copies have a plain header or none.

    Raises:
      ConfigError: a list is not there or cannot be used; names file, row and column.
    """
    left = SkippedRows()
    names = require_list(folder, "class_labels_indices.csv")
    table = Table(names, ("index", "mid", "display_name"), None)
    classes: dict[str, str] = {}  # by mid, in order
    for row in table.rows():
        if table.whole("index", 0) != len(classes) or row["mid"] in classes:
            table.fail("index", f"{len(classes)} comes next, with a mid of its own")
        classes[row["mid"]] = table.text("display_name")
    train = [p for kind in ("balanced", "unbalanced") if (p := find_list(folder, f"{kind}_train_segments.csv"))]
    if not train:
        raise ConfigError(f"{folder}: holds neither balanced_train_segments.csv nor unbalanced_train_segments.csv")
    paths = {**dict.fromkeys(train, "train"), require_list(folder, "eval_segments.csv"): "test"}
    segments = (s for path, split in paths.items() for s in _segments(path, split, tuple(classes), left))
    notes = [f"training is {' and '.join(path.stem for path in train)}"]
    return build_annotations(segments, [Head("class", tuple(classes.values()))], "multi", [*paths, names], left, notes)


def _segments(path: Path, split: str, mids: tuple[str, ...], left: SkippedRows) -> Iterator[Segment]:
    """The rows of a list. Two million rows say the same times and, often, the same labels: those are shared."""
    table = Table(path, (), None, COLUMNS)
    numbers = {mid: i for i, mid in enumerate(mids)}
    labels: dict[str, tuple[int, ...]] = {}
    times: dict[str, float] = {}
    source = path.name
    for row in table.rows():
        video, start, end, text = row.values()
        if has_spreadsheet_error(table, "YTID", left):
            continue
        if text not in labels:
            found = [mid for part in text.split(",") if (mid := part.strip())]
            if unknown := [mid for mid in found if mid not in numbers]:
                table.fail("positive_labels", f"{unknown[0]!r} is not in class_labels_indices.csv")
            labels[text] = tuple(sorted({numbers[mid] for mid in found}))
        if not labels[text]:
            left.add(source, table.row, "they have no label")
            continue
        if start not in times:
            times[start] = table.real("start_seconds")
        if end not in times:
            times[end] = table.real("end_seconds")
        if times[start] < 0:
            table.fail("start_seconds", "give 0 or more")
        yield Segment(video, labels[text], split, None, NAMING, video, times[start], times[end], source, table.row)


CORPUS = DatasetSpec(
    title="AudioSet",
    read=read,
    lists="class_labels_indices.csv, eval_segments.csv, balanced_ and/or unbalanced_train_segments.csv of "
    "research.google.com/audioset",
    terms="lists CC BY 4.0, the ontology CC BY-SA 4.0; the videos stay with their owners",
)
