"""What a run says while it runs: metrics as JSON lines and TensorBoard events, a progress bar or plain lines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 10.0  # at least so long between two plain lines

Row = dict[str, Any]


class _Numbers(ProgressColumn):
    """The numbers of the last logged step."""

    def render(self, task: Task) -> Text:
        return Text(_sentence(task.fields.get("row") or {}), no_wrap=True)


class Report:
    """Writes the metrics of one work directory and shows them.

    Rows carry `step` and any numbers; evaluation rows also `split`. On a terminal a bar shows the last row; elsewhere
    a plain line appears now and then.
    """

    def __init__(self, folder: Path, console: Console, name: str = "") -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"))
        self._console, self._name = console, name
        self._bar: Progress | None = None
        self._last_line = 0.0

    def begin(self, step: int, steps: int) -> None:
        """Starts the progress bar; rows of a run that got further before it was stopped are taken out again."""
        self._keep(step)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn(self._name or "training"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                _Numbers(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=steps, completed=step, row={})
            self._bar.start()
        else:
            self._steps = steps

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def row(self, row: Row) -> None:
        """Writes one row everywhere and shows it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        split = row.get("split", "train")
        for field, value in row.items():
            if field not in ("step", "split") and isinstance(value, (int, float)):
                self._events.add_scalar(f"{split}/{field}", value, row["step"])
        now = time.monotonic()
        if "split" in row:
            self.say(f"{self._prefix()}{_sentence(row)}")
        elif self._bar:
            self._bar.update(self._task, row=row)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(f"{self._prefix()}step {row['step']}/{self._steps}  {_sentence(row)}")

    def say(self, line: str) -> None:
        """One line for the reader."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Stops the bar and closes the files."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        self._events.close()
        self._file.close()

    def rows(self) -> list[Row]:
        """All rows written so far."""
        self._file.flush()
        return read_rows(self._path)

    def _keep(self, step: int) -> None:
        """Keeps the rows up to `step`, without a score of the test clips: that is made anew."""
        self._file.close()
        kept = [row for row in read_rows(self._path) if row["step"] <= step and row.get("split") != "test"]
        whole = self._path.with_suffix(".partial")
        whole.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        whole.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def _prefix(self) -> str:
        return f"{self._name}: " if self._name else ""


class Quiet(Report):
    """The report of any process but the first: nothing is said or written twice."""

    def __init__(self) -> None:
        """Opens no file."""

    def begin(self, step: int, steps: int) -> None:
        """No bar."""

    def advance(self, step: int) -> None:
        """No bar."""

    def row(self, row: Row) -> None:
        """No row."""

    def say(self, line: str) -> None:
        """No line."""

    def end(self) -> None:
        """Nothing to close."""

    def rows(self) -> list[Row]:
        """None."""
        return []


def read_rows(path: Path) -> list[Row]:
    """Rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _sentence(row: Row) -> str:
    forms = {
        "split": "{}",
        "top1": "top-1 {:.1%}",
        "loss": "loss {:.3f}",
        "learning_rate": "lr {:.1e}",
        "clips_per_second": "{:.0f} clips/s",
        "data_wait": "data wait {:.0%}",
    }
    return "  ".join(form.format(row[field]) for field, form in forms.items() if field in row)


def show_result(console: Console, result: Row, folder: Path) -> None:
    """The short table at the end of a run, and where everything lies."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    deviation = f" (deviation over folds {result['top1_std']:.1%})" if "top1_std" in result else ""
    rows = [
        ("top-1", f"{result['top1']:.1%}{deviation}"),
        ("top-5", f"{result['top5']:.1%}"),
        ("mean average precision", f"{result['mean_average_precision']:.3f}"),
        ("loss", f"{result['loss']:.3f}"),
        ("test clips, classes", f"{result['clips']}, {result['classes']}"),
        ("parameters", f"{result['parameters']:,}"),
        ("multiply-accumulates per clip", f"{result['macs_per_clip'] / 1e6:,.0f} M"),
        ("steps, seconds of training", f"{result['steps']:,}, {result['train_seconds']:.0f}"),
        ("training clips per second", f"{result['clips_per_second']:.0f}"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    own = "metrics.jsonl, tensorboard/, checkpoints/, normalisation.json"
    console.print(
        f"In {folder}: result.json, confusion.png, curves.png, config.json, labels.json, "
        + (f"and in each fold_N/ {own}" if "folds" in result else own),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def make_console() -> Console:
    """Standard output of the first process; plain text when it is not a terminal."""
    return Console(file=sys.stdout, highlight=False, quiet=jax.process_index() > 0)
