"""FSD50K: Freesound clips of 0.3 to 30 s, any number of 200 classes each (Fonseca et al., arXiv 2010.00475)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datar_jax.data.csv_table import Table
from datar_jax.data.datasets.annotations import SkippedRows, build_annotations, require_list
from datar_jax.data.datasets.base import Annotations, DatasetSpec, FilePatterns, Segment
from datar_jax.labels import Head

NAMING = FilePatterns(cut=("{id}",))
SPLITS = {"train": "train", "val": "validation"}


def read(folder: Path) -> Annotations:
    """Reads `dev.csv` (training and validation), `eval.csv` (our test) and `vocabulary.csv`.

    The folder may be `FSD50K.ground_truth` or the one above it.

    Raises:
      ConfigError: a list is not there or cannot be used; names file, row and column.
    """
    left = SkippedRows()
    names, dev, test = (
        require_list(folder, f"{name}.csv", f"FSD50K.ground_truth/{name}.csv") for name in ("vocabulary", "dev", "eval")
    )
    table = Table(names, (), None, ("index", "label", "mid"))
    numbers: dict[str, int] = {}
    for row in table.rows():
        if table.whole("index", 0) != len(numbers) or row["label"] in numbers:
            table.fail("index", f"{len(numbers)} comes next, with a label of its own")
        numbers[row["label"]] = len(numbers)
    segments = (s for path in (dev, test) for s in _segments(path, path == test, numbers, left))
    return build_annotations(segments, [Head("class", tuple(numbers))], "multi", [dev, test, names], left)


def _segments(path: Path, test: bool, numbers: dict[str, int], left: SkippedRows) -> Iterator[Segment]:
    """The rows of a list. Labels include what is above them in the ontology."""
    table = Table(path, ("fname", "labels") if test else ("fname", "labels", "split"), None)
    labels: dict[str, tuple[int, ...]] = {}
    for row in table.rows():
        text = row["labels"]
        if text not in labels:
            found = [name for part in text.split(",") if (name := part.strip())]
            if unknown := [name for name in found if name not in numbers]:
                table.fail("labels", f"{unknown[0]!r} is not in vocabulary.csv")
            labels[text] = tuple(sorted({numbers[name] for name in found}))
        if not labels[text]:
            left.add(path.name, table.row, "they have no label")
            continue
        if not test and row["split"] not in SPLITS:
            table.fail("split", "give train or val")
        split = "test" if test else SPLITS[row["split"]]
        yield Segment(table.text("fname"), labels[text], split, None, NAMING, source=path.name, row=table.row)


CORPUS = DatasetSpec(
    title="FSD50K",
    read=read,
    lists="dev.csv, eval.csv and vocabulary.csv of FSD50K.ground_truth.zip: zenodo.org/records/4060432",
    terms="CC BY 4.0 as a whole; each clip under its own licence: CC0, CC BY, CC BY-NC or CC Sampling+",
)
