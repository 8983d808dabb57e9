"""Writes metrics of a run: JSON lines, TensorBoard events, and lines or a line of progress for a person."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from datar_jax.atomic_files import atomic_write
from datar_jax.metrics import format_metric
from datar_jax.training.monitoring.console import ProgressConsole
from datar_jax.wording import count

LINE_SECONDS = 10.0  # at least so long between two plain lines

Row = dict[str, Any]


class MetricWriter:
    """Writes the metrics of one work directory and shows them.

    Rows carry `step` and any numbers; evaluation rows also `split`. On a terminal the line of progress shows the last
    row; elsewhere a plain line appears now and then. Nothing is written before `begin`. A disk that is full is said
    once; rows then wait in memory for room.
    """

    def __init__(self, folder: Path, console: ProgressConsole, name: str = "") -> None:
        self._folder, self._path = folder, folder / "metrics.jsonl"
        self._file: BinaryIO | None = None
        self._size = 0  # of the file, in bytes of whole rows
        self._waiting = b""  # rows that are not in the file yet
        self._events: _TensorBoardWriter | None = None
        self._console, self._name = console, name
        self._last_line, self._note = 0.0, ""
        self._steps, self._count = 0, console.progress.count

    def begin(self, step: int, steps: int, scored: bool = False, before: str = "") -> None:
        """Opens the files; removes rows after the restored step.

        Args:
          step: that of the state the run goes on with.
          steps: of the whole run.
          scored: whether that state has its score of the validation clips already.
          before: what is done until the first step.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep(step, scored)
        self._file = self._path.open("ab", buffering=0)
        self._size = self._path.stat().st_size
        self._events = _TensorBoardWriter(self._folder / "tensorboard", step)
        self._steps, self._count = steps, self._console.progress.counter(self._prefix() + "training", "step", before)

    def advance(self, step: int) -> None:
        """Shows how many steps are done."""
        self._count(step, self._steps, self._note)

    def scoring(self, split: str, before: str) -> Callable[[int, int], None]:
        """A callback for clips of a split that are scored, and how many there are; `before` is done first."""
        what = f"{self._prefix()}scoring {split} clips"
        return self._console.progress.counter(what, "clip", f"{what}: {before}")

    def row(self, row: Row) -> None:
        """Writes one row everywhere and shows it."""
        first = not self._waiting
        self._waiting += (json.dumps(row) + "\n").encode()
        if (why := self._write()) and first:
            self.say(f"{self._path}: cannot be written ({why}); rows wait for room")
        if self._events and (why := self._events.add(row)):
            self._events = None
            self.say(f"{self._folder / 'tensorboard'}: cannot be written ({why}); metrics.jsonl has all from here on")
        now = time.monotonic()
        if "split" in row:
            self.say(f"{self._prefix()}{_sentence(row)}")
        elif self._console.is_terminal:
            self._note = _sentence(row)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(f"{self._prefix()}step {row['step']}/{self._steps}  {_sentence(row)}")

    def say(self, line: str) -> None:
        """Prints one line."""
        self._console.say(line)

    def sync(self) -> None:
        """Flushes to disk, so that a checkpoint that follows can rely on it."""
        try:
            if self._file:
                os.fsync(self._file.fileno())
        except OSError as error:
            self.say(f"{self._path}: cannot be written ({error.strerror})")
        if self._events:
            self._events.sync()

    def end(self) -> None:
        """Closes the files."""
        self._console.progress.stage("")
        if self._events:
            self._events.sync()
        if self._file:
            if why := self._write():
                self.say(f"{self._path}: {count(self._waiting.count(10), 'row')} could not be written ({why})")
            self._file.close()

    def rows(self) -> list[Row]:
        """All rows so far."""
        return read_rows(self._path)[0] + [json.loads(line) for line in self._waiting.splitlines()]

    def _write(self) -> str:
        """Writes pending rows; returns the reason if that fails."""
        assert self._file, "begin comes first"
        left = self._waiting
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._size)
            return str(error.strerror)
        self._size += len(self._waiting)
        self._waiting = b""
        return ""

    def _keep(self, step: int, scored: bool) -> None:
        """Keeps the rows that led to the state of `step`. Later ones are made anew, so are scores of test clips."""

        def made(row: Row) -> bool:
            split = row.get("split")
            return row["step"] < step or (row["step"] == step and (split is None or (split == "validation" and scored)))

        rows, damaged = read_rows(self._path)
        if damaged:
            self.say(f"{self._path}: left out what is no row, in line {', '.join(map(str, damaged))}")
        kept = "".join(json.dumps(row) + "\n" for row in rows if row.get("split") != "test" and made(row))
        atomic_write(self._path, kept.encode())

    def _prefix(self) -> str:
        return f"{self._name}: " if self._name else ""


class NullWriter(MetricWriter):
    """The writer of every process but the first: does nothing."""

    def __init__(self) -> None:
        """Opens no file."""

    def begin(self, step: int, steps: int, scored: bool = False, before: str = "") -> None:
        """No file."""

    def advance(self, step: int) -> None:
        """No step."""

    def scoring(self, split: str, before: str) -> Callable[[int, int], None]:
        """No progress."""
        return lambda done, total: None

    def row(self, row: Row) -> None:
        """No row."""

    def say(self, line: str) -> None:
        """No line."""

    def sync(self) -> None:
        """Nothing to put on the disk."""

    def end(self) -> None:
        """Nothing to close."""

    def rows(self) -> list[Row]:
        """None."""
        return []


class _TensorBoardWriter:
    """TensorBoard events, written in this thread: tensorboardX's own thread would hang after a full disk."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._why = ""
        try:
            self._writer = EventsWriter(str(folder / "events"))
            # Readers forget what an earlier start wrote about later steps.
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step + 1, session_log=start, wall_time=time.time()))
        except OSError as error:
            self._why = str(error.strerror)

    def add(self, row: Row) -> str:
        """Writes the numbers of a row; the reason if that, or anything before it, failed."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        split, now = row.get("split", "train"), time.time()
        for field, value in row.items():
            if field not in ("step", "split") and isinstance(value, (int, float)) and not self._why:
                try:
                    event = Event(step=row["step"], summary=scalar(f"{split}/{field}", value), wall_time=now)
                    self._writer.write_event(event)
                except OSError as error:
                    self._why = str(error.strerror)
        return self._why

    def sync(self) -> None:
        """Puts the events on the disk."""
        if not self._why:
            try:
                self._writer.flush()
            except OSError as error:
                self._why = str(error.strerror)


def read_rows(path: Path) -> tuple[list[Row], list[int]]:
    """Rows of a `metrics.jsonl`, and the line numbers of invalid ones, except a truncated last line."""
    rows, damaged = [], []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged[: -1 if damaged and damaged[-1] == text.count("\n") + 1 else None]


def _sentence(row: Row) -> str:
    forms = {"split": "{}"} | dict.fromkeys(("top1", "action_top1", "mean_average_precision", "loss"), "")
    forms |= {"learning_rate": "lr {:.1e}", "clips_per_second": "{:.0f} clips/s", "data_wait": "data wait {:.0%}"}
    return "  ".join(
        form.format(row[field]) if form else " ".join(format_metric(field, row[field]) or ())
        for field, form in forms.items()
        if field in row
    )
