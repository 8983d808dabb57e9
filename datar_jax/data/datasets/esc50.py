"""ESC-50: 2,000 environmental sounds of 5 s, 50 classes, five folds (Piczak, ACM Multimedia 2015)."""

from __future__ import annotations

from pathlib import Path

from datar_jax.data.csv_table import Table
from datar_jax.data.datasets.annotations import SkippedRows, build_annotations, require_list
from datar_jax.data.datasets.base import Annotations, DatasetSpec, Download, FilePatterns, Segment
from datar_jax.labels import Head

NAMING = FilePatterns(cut=("{id}", "{recording}"))  # the second without the target, as in the first release

# What a commit packs is the same for everybody, but not how: GitHub makes archives anew, so that no hash of one is
# published, and those that people measured of this one differ. Its content is known by the git blob id of
# meta/esc50.csv, a5e6b65627d6a8a9fe937a112836230bd54b380d (MD5 54a0d0055a10bb7df84ad340a148722e).
COMMIT = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"


def read(folder: Path) -> Annotations:
    """Reads `esc50.csv`: the folder may be `meta`, the one above it, or one that the archive was unpacked into.

    Raises:
      ConfigError: the list is not there or cannot be used; names file, row and column.
    """
    path = require_list(folder, "esc50.csv", "meta/esc50.csv", "*/meta/esc50.csv")
    table = Table(path, ("filename", "fold", "target", "category"), None)
    names: dict[int, str] = {}
    rows: list[tuple[str, int, int, int]] = []
    for row in table.rows():
        target = table.whole("target", 0)
        if names.setdefault(target, table.text("category")) != row["category"]:
            table.fail("category", f"target {target} is {names[target]!r} in an earlier row")
        rows.append((Path(table.text("filename")).stem, target, table.whole("fold", 1), table.row))
    targets = sorted(names)
    labels = {target: (i,) for i, target in enumerate(targets)}
    segments = (
        Segment(name, labels[target], None, fold, NAMING, name.rpartition("-")[0] or name, source=path.name, row=line)
        for name, target, fold, line in rows
    )
    return build_annotations(
        segments, [Head("class", tuple(names[t] for t in targets))], "single", [path], SkippedRows()
    )


CORPUS = DatasetSpec(
    title="ESC-50",
    read=read,
    lists="meta/esc50.csv of github.com/karolpiczak/ESC-50",
    terms="CC BY-NC 3.0: not for commercial use; the ten classes of ESC-10 CC BY 3.0",
    downloads=(
        Download(
            url=f"https://github.com/karolpiczak/ESC-50/archive/{COMMIT}.zip",
            name="ESC-50.zip",
            sha256="",
            size=645_832_161,
        ),
    ),
)
