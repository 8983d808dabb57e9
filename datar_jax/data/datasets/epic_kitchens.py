"""EPIC-KITCHENS-100: actions in long recordings from kitchens, by verb and noun (Damen et al., IJCV 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datar_jax.data.csv_table import Table
from datar_jax.data.datasets.annotations import SkippedRows, build_annotations, find_list, require_list
from datar_jax.data.datasets.base import Annotations, DatasetSpec, FilePatterns, Segment
from datar_jax.labels import Head

NAMING = FilePatterns(cut=("{id}",), whole=("{recording}",))


def read(folder: Path) -> Annotations:
    """Reads the training and the validation list and the classes of verbs (97) and of nouns (300).

    The published test list has no labels (they are kept for a challenge): validation is our test.

    Raises:
      ConfigError: a list is not there or cannot be used; names file, row and column.
    """
    left = SkippedRows()
    paths = {
        require_list(folder, "EPIC_100_train.csv"): "train",
        require_list(folder, "EPIC_100_validation.csv"): "test",
    }
    classes = [require_list(folder, f"EPIC_100_{word}_classes.csv") for word in ("verb", "noun")]
    verbs, nouns = (_classes(path) for path in classes)
    segments = (s for path, split in paths.items() for s in _segments(path, split, len(verbs), len(nouns)))
    notes = ["EPIC_100_validation.csv is the test split"]
    if test := find_list(folder, "EPIC_100_test_timestamps.csv"):
        notes.append(f"{test.name} has no labels: it is not read")
    return build_annotations(
        segments, [Head("verb", verbs), Head("noun", nouns)], "single", [*paths, *classes], left, notes
    )


def _classes(path: Path) -> tuple[str, ...]:
    """Names by number, which a list of classes states in order."""
    table = Table(path, ("id", "key"), None)
    names: list[str] = []
    for _ in table.rows():
        if table.whole("id", 0) != len(names):
            table.fail("id", f"{len(names)} comes next")
        names.append(table.text("key"))
    return tuple(names)


def _segments(path: Path, split: str, verbs: int, nouns: int) -> Iterator[Segment]:
    """The rows of a list; a verb and the first noun are the labels."""
    needed = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
    table = Table(path, needed, None)
    shared: dict[str, str] = {}
    labels: dict[tuple[int, int], tuple[int, int]] = {}
    for row in table.rows():
        verb, noun = table.whole("verb_class", 0), table.whole("noun_class", 0)
        if verb >= verbs or noun >= nouns:
            table.fail("verb_class" if verb >= verbs else "noun_class", "no such class in its list of classes")
        yield Segment(
            table.text("narration_id"),
            labels.setdefault((verb, verbs + noun), (verb, verbs + noun)),
            split,
            None,
            NAMING,
            shared.setdefault(table.text("video_id"), row["video_id"]),
            table.clock("start_timestamp"),
            table.clock("stop_timestamp"),
            path.name,
            table.row,
        )


CORPUS = DatasetSpec(
    title="EPIC-KITCHENS-100",
    read=read,
    lists="EPIC_100_train.csv, _validation.csv, _verb_classes.csv and _noun_classes.csv of "
    "github.com/epic-kitchens/epic-kitchens-100-annotations",
    terms="lists and recordings CC BY-NC 4.0: not for commercial use",
    sample_rate=24_000,  # of the baseline's audio (Kazakos et al., ICASSP 2021)
)
