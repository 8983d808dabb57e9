"""EPIC-SOUNDS: 44 classes of sounds in the recordings of EPIC-KITCHENS-100 (Huh et al., ICASSP 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datar_jax.data.csv_table import Table
from datar_jax.data.datasets.annotations import SkippedRows, build_annotations, find_list, require_list
from datar_jax.data.datasets.base import Annotations, DatasetSpec, FilePatterns, Segment
from datar_jax.labels import Head

RATE = 24_000  # Hz of the sample numbers in the lists
AGREEMENT = 0.01  # seconds by which sample numbers and timestamps of a row may differ; officially 4e-5
# No files by id: those of EPIC-KITCHENS-100 look alike (P01_11_0) and are other stretches of the same recordings.
NAMING = FilePatterns(whole=("{recording}",))


def read(folder: Path) -> Annotations:
    """Reads the training and the validation list; they name the classes themselves.

    The published test list has no labels (they are kept for a challenge): validation is our test.

    Raises:
      ConfigError: a list is not there or cannot be used; names file, row and column.
    """
    left = SkippedRows()
    paths = {
        require_list(folder, "EPIC_Sounds_train.csv"): "train",
        require_list(folder, "EPIC_Sounds_validation.csv"): "test",
    }
    names: dict[int, str] = {}
    segments = [s for path, split in paths.items() for s in _segments(path, split, names)]
    classes = [names.get(i, f"class {i}") for i in range(max(names, default=-1) + 1)]
    notes = ["EPIC_Sounds_validation.csv is the test split"]
    if test := find_list(folder, "EPIC_Sounds_recognition_test_timestamps.csv"):
        notes.append(f"{test.name} has no labels: it is not read")
    if len(names) < len(classes):
        notes.append(f"classes that no row has: {', '.join(str(i) for i in range(len(classes)) if i not in names)}")
    return build_annotations(segments, [Head("class", tuple(classes))], "single", list(paths), left, notes)


def _segments(path: Path, split: str, names: dict[int, str]) -> Iterator[Segment]:
    """The rows of a list; fills in the names of the classes by number."""
    table = Table(path, ("annotation_id", "video_id", "start_timestamp", "stop_timestamp", "class", "class_id"), None)
    samples = {"start_sample", "stop_sample"} <= table.columns
    shared: dict[str, str] = {}
    for row in table.rows():
        label = table.whole("class_id", 0)
        if label > 999 or names.setdefault(label, table.text("class")) != row["class"]:
            table.fail("class", f"class_id {label} is {names.get(label, 'no class')!r} in an earlier row")
        yield Segment(
            table.text("annotation_id"),
            (label,),
            split,
            None,
            NAMING,
            shared.setdefault(table.text("video_id"), row["video_id"]),
            _seconds(table, "start", samples),
            _seconds(table, "stop", samples),
            path.name,
            table.row,
        )


def _seconds(table: Table, end: str, samples: bool) -> float:
    """The start or stop of a row: by its sample number where there is one, which must agree with its timestamp."""
    clock = table.clock(f"{end}_timestamp")
    if not samples:
        return clock
    seconds = table.whole(f"{end}_sample", 0) / RATE
    if abs(seconds - clock) > AGREEMENT:
        table.fail(f"{end}_sample", f"{seconds:g} s at {RATE} Hz, but {end}_timestamp says {clock:g} s; correct one")
    return seconds


CORPUS = DatasetSpec(
    title="EPIC-SOUNDS",
    read=read,
    lists="EPIC_Sounds_train.csv and EPIC_Sounds_validation.csv of github.com/epic-kitchens/epic-sounds-annotations",
    terms="lists and recordings CC BY-NC 4.0: not for commercial use",
    sample_rate=RATE,
)
