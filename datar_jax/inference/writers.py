"""Writers of predictions: table, JSON lines, CSV and Audacity label tracks.

Every writer takes one file's answer at a time and holds nothing of it. Times are seconds with all the digits that they
have (JSON, CSV) or in microseconds (Audacity), scores have six. File names that are not UTF-8 are kept as they are
called: open what CSV is written to with `errors="surrogateescape"` and `newline=""`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.table import Table
from rich.text import Text

from datar_jax.atomic_files import atomic_write
from datar_jax.escaping import CsvWriter, printable
from datar_jax.inference.events import Event
from datar_jax.inference.predict import Prediction
from datar_jax.inference.windows import FailedFile
from datar_jax.labels import Heads, class_names, head_slices
from datar_jax.terminal import Console

BEST = 5  # default number of best classes per head
LONGEST = 251  # bytes of a name before .txt: file systems take 255


class Writer(Protocol):
    """Writes predictions to its output."""

    def write(self, answer: Prediction | FailedFile) -> None:
        """Writes the prediction for one file, or its failure."""


class JsonLines:
    """One JSON object per file: `path`, and `seconds`, `scores` of the best classes and `events`, or `error`."""

    def __init__(self, file: TextIO, labels: Sequence[str], heads: Heads = (), top: int = BEST) -> None:
        self._file, self._names, self._heads, self._top = file, class_names(labels, heads), heads, top

    def write(self, answer: Prediction | FailedFile) -> None:
        """As `Writer.write`."""
        row: dict[str, Any] = {"path": answer.path}
        if isinstance(answer, FailedFile):
            row["error"] = answer.reason
        else:
            row["seconds"] = answer.seconds
            best = _best(answer, self._heads, self._top)
            row["scores"] = {self._names[s]: _score(answer.scores_S[s]) for s in best}
            row["events"] = [{**event._asdict(), "score": _score(event.score)} for event in answer.events]
        self._file.write(json.dumps(row).replace("\x7f", "\\u007f") + "\n")  # all else is escaped already
        self._file.flush()


class EventsCsv:
    """One row per event: path, onset, offset, label, score; none for a failed file."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._csv = file, CsvWriter(file, ["path", "onset", "offset", "label", "score"])

    def write(self, answer: Prediction | FailedFile) -> None:
        """As `Writer.write`."""
        if isinstance(answer, Prediction):
            for event in answer.events:
                self._csv.row([answer.path, event.onset, event.offset, event.label, _score(event.score)])
            self._file.flush()


class ScoresCsv:
    """One row per best class of a file: path, seconds, label, score; none for a failed file."""

    def __init__(self, file: TextIO, labels: Sequence[str], heads: Heads = (), top: int = BEST) -> None:
        self._file, self._csv = file, CsvWriter(file, ["path", "seconds", "label", "score"])
        self._names, self._heads, self._top = class_names(labels, heads), heads, top

    def write(self, answer: Prediction | FailedFile) -> None:
        """As `Writer.write`."""
        if isinstance(answer, Prediction):
            for s in _best(answer, self._heads, self._top):
                self._csv.row([answer.path, answer.seconds, self._names[s], _score(answer.scores_S[s])])
            self._file.flush()


class Terminal:
    """Prints length, best classes of each head and a table of events for each file; nothing of a failed file."""

    def __init__(self, console: Console, labels: Sequence[str], heads: Heads = (), top: int = BEST) -> None:
        self._console, self._names, self._heads, self._top = console, class_names(labels, heads), heads, top

    def write(self, answer: Prediction | FailedFile) -> None:
        """As `Writer.write`."""
        if isinstance(answer, FailedFile):
            return
        head = Text(printable(answer.path), style="bold")
        best = _best(answer, self._heads, self._top)
        classes = ", ".join(f"{printable(self._names[s])} {answer.scores_S[s]:.1%}" for s in best)
        self._console.print(head.append(f"  {clock(answer.seconds)}  {classes}", style="not bold"), soft_wrap=True)
        if answer.events:
            self._console.print(_table(answer.events))


class LabelTracks:
    """One Audacity label track per file, named after it, in one folder; none for a failed file.

    A track whose name would have more than 255 bytes is named after the beginning of the file's name and its hash.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, answer: Prediction | FailedFile) -> None:
        """As `Writer.write`."""
        if isinstance(answer, FailedFile):
            return
        name = Path(answer.path).name
        more = (f"{name}-{i}" for i in itertools.count(2))  # of files of one name in several folders
        name = next(each for each in itertools.chain([name], more) if each not in self._taken)
        self._taken.add(name)
        if len(os.fsencode(name)) > LONGEST:
            digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
            name = f"{os.fsencode(name)[:200].decode(errors='ignore')}~{digest}"
        atomic_write(self._folder / f"{name}.txt", "".join(audacity(answer.events)).encode())


def audacity(events: Iterable[Event]) -> Iterator[str]:
    """The lines of an Audacity label track (File > Import > Labels), each with its end.

    One track belongs to one recording: write a file for each.
    """
    for event in events:
        yield f"{event.onset:.6f}\t{event.offset:.6f}\t{_one_line(event.label)}\n"


def clock(seconds: float) -> str:
    """Formats seconds as 1:02:03.450, to the millisecond."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest / 1000:06.3f}"


def _best(answer: Prediction, heads: Heads, top: int) -> list[int]:
    """The best classes of each head, best first."""
    of_heads = (range(len(answer.scores_S))[part] for part in head_slices(heads).values())
    return [s for of_head in of_heads for s in sorted(of_head, key=lambda s: -answer.scores_S[s])[:top]]


def _table(events: Iterable[Event]) -> Table:
    table = Table("onset", "offset", "label", "score", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (table.columns[0], table.columns[1], table.columns[3]):
        column.justify = "right"
    for event in events:
        table.add_row(clock(event.onset), clock(event.offset), Text(printable(event.label)), f"{event.score:.1%}")
    return table


def _score(value: float) -> float:
    return round(float(value), 6)


def _one_line(label: str) -> str:
    """A label without tabs and line breaks, which would end it, and without control characters."""
    return printable(re.sub(r"\s+", " ", label).strip())
