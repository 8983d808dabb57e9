"""Shared by all readers of official lists: finds lists, counts skipped rows, keeps one segment per id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from datar_jax.config import ConfigError
from datar_jax.data.csv_table import Table
from datar_jax.data.datasets.base import Annotations, FilePatterns, Segment
from datar_jax.labels import Head
from datar_jax.wording import count

# Clips of YouTube videos, as the scripts that download them name them; `-` may be an id's first character.
YOUTUBE = FilePatterns(
    cut=(
        "{recording}_{start:06d}_{end:06d}",
        "{recording}_{start:06d}",
        "{recording}_{start_text}_{end_text}",
        "{recording}_{start_text}",
        "{recording}_{start}_{end}",
        "{recording}_{start}",
        "{recording}_{start_ms}_{end_ms}",
    ),
    whole=("{recording}",),
)


def find_list(folder: Path, *patterns: str) -> Path | None:
    """The file below `folder` that the first fitting pattern matches; None if none does.

    Raises:
      ConfigError: no such folder, or a pattern that matches several files.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the one that holds the lists")
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ConfigError(f"{folder}: holds {found[0]} and {found[1]}; give the folder of one of them")
        if found:
            return found[0]
    return None


def require_list(folder: Path, *patterns: str) -> Path:
    """As `find_list`, but the file must be there.

    Raises:
      ConfigError: as `find_list`, or it is not there.
    """
    found = find_list(folder, *patterns)
    if found is None:
        raise ConfigError(f"{folder}: holds no {' or '.join(patterns)}; give the folder that does")
    return found


class SkippedRows:
    """Counts skipped rows by list and reason."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[int]] = {}  # count, first row

    def add(self, source: str, row: int, reason: str) -> None:
        self._rows.setdefault((source, reason), [0, row])[0] += 1

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{source}: {count(rows, 'row is', 'rows are')} left out, {reason} (the first: row {row})"
            for (source, reason), (rows, row) in self._rows.items()
        )


def has_spreadsheet_error(table: Table, column: str, left: SkippedRows) -> bool:
    """Whether a spreadsheet replaced an id by `#NAME?`, as it does with an id that starts with `-`.

    Raises:
      ConfigError: there is no id.
    """
    if table.text(column).startswith("#"):
        left.add(table.path.name, table.row, "a spreadsheet has replaced their id by an error such as #NAME?")
        return True
    return False


def build_annotations(
    segments: Iterable[Segment],
    heads: Sequence[Head],
    labels: Literal["single", "multi"],
    lists: Sequence[Path],
    left: SkippedRows,
    notes: Sequence[str] = (),
) -> Annotations:
    """Builds the annotations of a data set: one non-empty segment per id; skipped rows are counted in the notes.

    Raises:
      ConfigError: two rows say different things of one segment.
    """
    paths = {path.name: path for path in lists}
    kept: dict[str, Segment] = {}
    for segment in segments:
        if segment.end and segment.end <= segment.start:
            left.add(segment.source, segment.row, "they end where they start, or before")
            continue
        first = kept.setdefault(segment.id, segment)
        if first is segment:
            continue
        for field in ("split", "fold", "labels", "recording", "start", "end"):
            if getattr(first, field) != getattr(segment, field):
                where = paths.get(segment.source, segment.source)
                raise ConfigError(
                    f"{where}, row {segment.row}: {segment.id} has another {field} than in row {first.row} of "
                    f"{first.source}; keep one of them"
                )
        left.add(segment.source, segment.row, "they repeat an earlier row")
    return Annotations(tuple(kept.values()), tuple(heads), labels, tuple(lists), (*notes, *left.notes()))
