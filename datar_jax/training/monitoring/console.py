"""The console of a run and its table of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.table import Table

from datar_jax.metrics import format_metric
from datar_jax.progress import Progress
from datar_jax.terminal import Console

if TYPE_CHECKING:
    from datar_jax.training.monitoring.metric_writer import Row


def show_result(console: ProgressConsole, result: Row, folder: Path) -> None:
    """Prints the table of results at the end of a run, and the files that it wrote."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = []
    for field, value in result.items():
        if metric := format_metric(field, value):
            deviation = format_metric(field, result[f"{field}_std"]) if f"{field}_std" in result else None
            rows.append((metric[0], metric[1] + (f" (deviation over folds {deviation[1]})" if deviation else "")))
    rows += [
        ("test clips, classes", f"{result['clips']}, {result['classes']}"),
        ("parameters", f"{result['parameters']:,}"),
        ("multiply-accumulates per clip", f"{result['macs_per_clip'] / 1e6:,.0f} M"),
        ("steps, seconds of training", f"{result['steps']:,}, {result['train_seconds']:.0f}"),
        ("training clips per second", f"{result['clips_per_second']:.0f}"),
    ]
    if data := result.get("data"):
        copy = f"{data['here']:,} of {data['listed']:,} clips, SHA-256 {data['clips_sha256'][:16]}"
        rows.append((f"this copy of {data['title']}", copy))
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    figures = sorted(path.name for path in (*folder.glob("*.png"), *folder.glob("*.csv")))
    own = "metrics.jsonl, tensorboard/, checkpoints/, model.json"
    console.say(
        f"In {folder}: result.json, {', '.join(figures)}, config.json, "
        + (f"and in each fold_N/ {own}" if "folds" in result else own),
    )


class ProgressConsole(Console):
    """Standard output of the first process, and below it the progress; plain text when it is not a terminal."""

    def __init__(self, **options: Any) -> None:
        quiet = jax.process_index() > 0
        super().__init__(**{"quiet": quiet, **options})
        self.progress = Progress(shown=not quiet)

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`, above the line of progress."""
        with self.progress.aside():
            super().print(*objects, **options)
