"""The console of a run and its table of results."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from datar_jax.metrics import METRIC_FORMATS
from datar_jax.training.monitoring.metric_writer import Row


def show_result(console: Console, result: Row, folder: Path) -> None:
    """The short table at the end of a run, and where everything lies."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = []
    for field, value in result.items():
        name = next((name for name in METRIC_FORMATS if f"_{field}".endswith(f"_{name}")), "")
        if name:
            words, form = METRIC_FORMATS[name]
            deviation = result.get(f"{field}_std")
            spread = "" if deviation is None else f" (deviation over folds {deviation:{form}})"
            rows.append((f"{field.removesuffix(name).replace('_', ' ')}{words}", f"{value:{form}}{spread}"))
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
    pictures = sorted(path.name for path in (*folder.glob("*.png"), *folder.glob("hardest.csv")))
    own = "metrics.jsonl, tensorboard/, checkpoints/, model.json"
    console.print(
        f"In {folder}: result.json, {', '.join(pictures)}, config.json, "
        + (f"and in each fold_N/ {own}" if "folds" in result else own),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def make_console() -> Console:
    """Standard output of the first process; plain text when it is not a terminal."""
    return Console(file=sys.stdout, highlight=False, quiet=jax.process_index() > 0)
