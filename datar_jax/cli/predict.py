"""`predict`: what a model hears in files and folders."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from datar_jax.audio.decode import SUFFIXES
from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import folder, make_parser, say_notes, share, whole
from datar_jax.config import ConfigError

if TYPE_CHECKING:
    from datar_jax.inference.classifier import AudioClassifier
    from datar_jax.inference.events import EventSettings
    from datar_jax.inference.writers import Writer

USAGE = (
    "python -m datar_jax predict MODEL FILE_OR_FOLDER... [--top=5] [--format=table|jsonl|csv] [--out=FILE] "
    "[--events=FILE.csv] [--audacity=DIR] [--threshold=0.5] [--overlap=0.75] [--batch=32]"
)
SUMMARY = """Tells the best classes of every sound, as the run that trained the model evaluates: a clip longer
than the model's window is cut into views whose scores are averaged. Overlapping windows also make a
timeline of events with onset, offset and score. Sounds may be hours long. What cannot be read is said
in a line, the rest goes on, and the exit status is then 1."""
EXAMPLE = "python -m datar_jax predict runs/quickstart runs/quickstart-data/alarm --top=3"


def main(arguments: list[str]) -> int:
    """Predicts.

    Raises:
      ConfigError: an option or a model that cannot be used.
    """
    parser = make_parser("predict", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("paths", metavar="FILE_OR_FOLDER", nargs="+", help="sounds; folders at any depth")
    parser.add_argument("--top", type=whole, default=5, help="best classes that are told (5)")
    parser.add_argument("--format", choices=("table", "jsonl", "csv"), default="table", help="jsonl has events too")
    parser.add_argument("--out", type=folder, help="file to write, in place of the standard output")
    parser.add_argument("--events", type=folder, metavar="FILE.csv", help="file of all events, one a row")
    parser.add_argument("--audacity", type=folder, metavar="DIR", help="folder of label tracks, one a sound")
    parser.add_argument("--threshold", type=share, default=0.5, help="score that an event reaches somewhere (0.5)")
    parser.add_argument(
        "--overlap", type=share, default=0.75, help="share of a window that the next one repeats (0.75)"
    )
    parser.add_argument("--batch", type=whole, default=32, help="windows at a time (32)")
    given = parser.parse_args(arguments)

    from datar_jax.compilation_cache import keep_compiled
    from datar_jax.filesystem import printable
    from datar_jax.inference.classifier import load
    from datar_jax.inference.events import EventSettings
    from datar_jax.inference.predict import predict_files
    from datar_jax.inference.windows import FailedFile
    from datar_jax.inference.writers import LabelTracks

    rules = _rules(EventSettings, given.threshold)
    _check_outputs(given)
    keep_compiled()
    try:
        model = load(given.model)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    say_notes(model.notes)
    failed = 0
    try:
        with contextlib.ExitStack() as files:
            writers = [_writer(given, model, files)]
            if given.events:
                from datar_jax.inference.writers import EventsCsv

                writers.append(EventsCsv(files.enter_context(_text(given.events))))
            if given.audacity:
                writers.append(LabelTracks(given.audacity))
            for answer in predict_files(model, given.paths, rules, given.overlap, given.batch):
                if isinstance(answer, FailedFile):
                    failed += 1
                    print(f"datar_jax: {printable(answer.path)}: {answer.reason}", file=sys.stderr)
                for writer in writers:
                    writer.write(answer)
            sys.stdout.flush()
    except BrokenPipeError:  # as `head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        places = " or ".join(map(str, filter(None, (given.out or "standard output", given.events, given.audacity))))
        raise ConfigError(f"{error.filename or places}: {error.strerror}") from None
    if failed:
        print(f"datar_jax: {failed} sounds could not be used", file=sys.stderr)
    return 1 if failed else 0


def _rules(make: type[EventSettings], threshold: float) -> EventSettings:
    if not threshold:
        raise ConfigError("--threshold=0: give more than 0")
    return make(threshold=threshold, keep=0.8 * threshold)


def _check_outputs(given: argparse.Namespace) -> None:
    """Refuses to write over a sound, or two things into one file."""
    for option, path in (("--out", given.out), ("--events", given.events)):
        if path and path.is_file() and (sound := next((p for p in given.paths if _same(path, p)), None)):
            raise ConfigError(f"{option}={path}: would write over {sound}")
        if path and path.suffix.lower() in SUFFIXES:
            raise ConfigError(f"{option}={path}: ends like a sound; it is a text")
    if given.out and given.out == given.events:
        raise ConfigError(f"--events={given.events}: --out writes there too; give another file")


def _same(path: Path, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(path, other)


def _writer(given: argparse.Namespace, model: AudioClassifier, files: contextlib.ExitStack) -> Writer:
    """What writes the answers in the format that was asked for."""
    from rich.console import Console

    from datar_jax.inference.writers import JsonLines, ScoresCsv, Terminal

    file = files.enter_context(_text(given.out)) if given.out else sys.stdout
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="surrogateescape")  # names that are no UTF-8 stay what they are
    if given.format == "jsonl":
        return JsonLines(file, model.labels, model.heads, given.top)
    if given.format == "csv":
        return ScoresCsv(file, model.labels, model.heads, given.top)
    return Terminal(Console(file=file, highlight=False), model.labels, model.heads, given.top)


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A file of lines; names that are no UTF-8 stay what they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield file
