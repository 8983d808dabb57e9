"""What was heard, for people and for programs: a table, JSON lines, CSV, and the label tracks of Audacity.

Every writer takes one file's answer at a time and holds nothing of it. Times are seconds with all the digits that they
have (JSON, CSV) or in microseconds (Audacity), scores have six. Files with names that are no UTF-8 are told as they are
called: open what CSV is written to with `errors="surrogateescape"` and `newline=""`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datar_jax.datasets import printable
from datar_jax.listen import Failed, Heard, names
from datar_jax.metrics import parts
from datar_jax.timeline import Event

Heads = Sequence[tuple[str, int]]

BEST = 3  # classes of each head whose scores are shown in a terminal


class Writer(Protocol):
    """Writes answers where it was told to when it was made."""

    def write(self, answer: Heard | Failed) -> None:
        """Writes what is to be said of one file."""


class JsonLines:
    """One object a file: `path`, and `seconds`, `scores` by class and `events`, or `error`."""

    def __init__(self, file: TextIO, labels: Sequence[str], heads: Heads = ()) -> None:
        self._file, self._names = file, names(labels, heads)

    def write(self, answer: Heard | Failed) -> None:
        """As `Writer.write`."""
        row: dict[str, Any] = {"path": answer.path}
        if isinstance(answer, Failed):
            row["error"] = answer.reason
        else:
            row["seconds"] = answer.seconds
            row["scores"] = dict(zip(self._names, map(_score, answer.scores_S)))
            row["events"] = [{**event._asdict(), "score": _score(event.score)} for event in answer.events]
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


class EventsCsv:
    """One row an event: path, onset, offset, label, score. Of a file that failed there is none."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rows = file, csv.writer(file, lineterminator="\n")
        self._rows.writerow(["path", "onset", "offset", "label", "score"])

    def write(self, answer: Heard | Failed) -> None:
        """As `Writer.write`."""
        if isinstance(answer, Heard):
            self._rows.writerows([answer.path, e.onset, e.offset, e.label, _score(e.score)] for e in answer.events)
            self._file.flush()


class ScoresCsv:
    """One row a file: path, seconds, and the score of each class. Of a file that failed there is none."""

    def __init__(self, file: TextIO, labels: Sequence[str], heads: Heads = ()) -> None:
        self._file, self._rows = file, csv.writer(file, lineterminator="\n")
        self._rows.writerow(["path", "seconds", *names(labels, heads)])

    def write(self, answer: Heard | Failed) -> None:
        """As `Writer.write`."""
        if isinstance(answer, Heard):
            self._rows.writerow([answer.path, answer.seconds, *map(_score, answer.scores_S)])
            self._file.flush()


class Terminal:
    """For each file its length, the best classes of each head, and a table of its events."""

    def __init__(self, console: Console, labels: Sequence[str], heads: Heads = ()) -> None:
        self._console, self._names, self._heads = console, names(labels, heads), heads

    def write(self, answer: Heard | Failed) -> None:
        """As `Writer.write`."""
        head = Text(printable(answer.path), style="bold")
        if isinstance(answer, Failed):
            self._console.print(head.append(f"  {answer.reason}", style="not bold red"), soft_wrap=True)
            return
        best = ", ".join(f"{printable(self._names[s])} {answer.scores_S[s]:.1%}" for s in self._best(answer))
        self._console.print(head.append(f"  {clock(answer.seconds)}  {best}", style="not bold"), soft_wrap=True)
        if answer.events:
            self._console.print(_table(answer.events))

    def _best(self, answer: Heard) -> Iterator[int]:
        for part in parts(self._heads).values():
            of_head = range(len(self._names))[part]
            yield from sorted(of_head, key=lambda s: -answer.scores_S[s])[:BEST]


def audacity(events: Iterable[Event]) -> Iterator[str]:
    """The lines of an Audacity label track (File > Import > Labels), each with its end.

    One track belongs to one recording: write a file for each.
    """
    for event in events:
        yield f"{event.onset:.6f}\t{event.offset:.6f}\t{_one_line(event.label)}\n"


def clock(seconds: float) -> str:
    """Seconds as a person reads them along a recording: 1:02:03.450, to the millisecond."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest / 1000:06.3f}"


def _table(events: Iterable[Event]) -> Table:
    table = Table("onset", "offset", "label", "score", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (table.columns[0], table.columns[1], table.columns[3]):
        column.justify = "right"
    for event in events:
        label = Text(printable(event.label))
        table.add_row(clock(event.onset), clock(event.offset), label, f"{event.score:.1%}")
    return table


def _score(value: float) -> float:
    return round(float(value), 6)


def _one_line(label: str) -> str:
    """A label without tabs and line ends, which would end it."""
    return re.sub(r"\s+", " ", label).strip()
