"""`predict`: classes and events of sound files."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from datar_jax.atomic_files import output_writer, text_of
from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import (
    discard_output,
    fraction,
    is_utf8,
    make_parser,
    path,
    positive_int,
    print_notes,
    probability,
    report,
    seconds,
)
from datar_jax.config import ConfigError
from datar_jax.progress import Progress
from datar_jax.wording import count

if TYPE_CHECKING:
    from datar_jax.inference.classifier import AudioClassifier
    from datar_jax.inference.events import EventSettings
    from datar_jax.inference.writers import Writer

USAGE = (
    "datar-jax predict MODEL FILE_OR_FOLDER... [--top=5] [--format=table|jsonl|csv] [--out=FILE] "
    "[--events=FILE.csv] [--audacity=DIR] [--onset=0.5] [--offset=0.4] [--min-duration-on=0] [--min-duration-off=0.3] "
    "[--overlap=0.75] [--batch=32]"
)
SUMMARY = """Prints the best classes of every sound, scored as in evaluation: a clip longer than the model's window is
cut into views whose scores are averaged. Overlapping windows also give a timeline of events with onset,
offset and score. Sounds may be hours long. Files that cannot be read are reported and skipped; the exit
status is then 1. --out and --events get their names at the end; if it is interrupted, what there is stays
as FILE.partial. --format=csv: a cell that a spreadsheet might run begins with a quote (docs/guides/inference.md).
A StableHLO or ONNX file is a program of its author, which this runs: give only models that you trust."""
EXAMPLE = "datar-jax predict runs/quickstart runs/quickstart-data/alarm --top=3"


def main(arguments: list[str]) -> int:
    """Predicts classes and events.

    Raises:
      ConfigError: an invalid option, or a model that cannot be used.
    """
    parser = make_parser("predict", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("paths", metavar="FILE_OR_FOLDER", nargs="+", help="sound files, or folders of them")
    parser.add_argument("--top", type=positive_int, default=5, help="number of best classes (5)")
    parser.add_argument("--format", choices=("table", "jsonl", "csv"), default="table", help="jsonl includes events")
    parser.add_argument("--out", type=path, help="file to write instead of standard output")
    parser.add_argument("--events", type=path, metavar="FILE.csv", help="file of all events, one per row")
    parser.add_argument("--audacity", type=path, metavar="DIR", help="folder of label tracks, one per sound")
    parser.add_argument("--onset", type=probability, default=0.5, help="score that starts an event (0.5)")
    parser.add_argument("--offset", type=probability, help="score below which it ends (0.8 of --onset)")
    parser.add_argument("--min-duration-on", type=seconds, default=0.0, help="shorter events are dropped, s (0)")
    parser.add_argument("--min-duration-off", type=seconds, default=0.3, help="shorter gaps are closed, s (0.3)")
    parser.add_argument("--overlap", type=fraction, default=0.75, help="overlap of neighboring windows (0.75)")
    parser.add_argument("--batch", type=positive_int, default=32, help="windows per batch (32)")
    given = parser.parse_args(arguments)

    from datar_jax.backend import require_backend
    from datar_jax.compilation_cache import keep_compiled
    from datar_jax.inference.classifier import load
    from datar_jax.inference.events import EventSettings

    offset = 0.8 * given.onset if given.offset is None else given.offset
    if offset > given.onset:
        raise ConfigError(f"--offset={offset:g}: give at most --onset ({given.onset:g})")
    rules = EventSettings(given.onset, offset, given.min_duration_off, given.min_duration_on)
    _check_outputs(given)
    keep_compiled()
    require_backend()
    failed = 0
    try:
        with Progress() as progress:
            progress.stage("reading the model")
            model = load(given.model)
            with progress.aside():
                print_notes(model.notes)
            failed = _predict(given, model, rules, progress)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    except BrokenPipeError:  # the reader of a pipe closed it, as `head` does
        discard_output()
    except OSError as error:
        outputs = " or ".join(map(str, filter(None, (given.out or "standard output", given.events, given.audacity))))
        raise ConfigError(f"{error.filename or outputs}: {error.strerror}") from None
    if failed:
        report(f"{count(failed, 'sound')} could not be used")
    return 1 if failed else 0


def _predict(given: argparse.Namespace, model: AudioClassifier, rules: EventSettings, progress: Progress) -> int:
    """Writes the answers for all sounds; returns how many could not be used."""
    from datar_jax.compilation_cache import compiling
    from datar_jax.inference.predict import predict_files
    from datar_jax.inference.windows import FailedFile, iter_audio_files
    from datar_jax.inference.writers import EventsCsv, LabelTracks

    failed = 0
    with contextlib.ExitStack() as files:
        writers = [_writer(given, model, files)]
        if given.events:
            writers.append(EventsCsv(files.enter_context(_text(given.events))))
        if given.audacity:
            writers.append(LabelTracks(given.audacity))
        progress.stage("looking for sounds")
        sounds = list(iter_audio_files(given.paths))
        counter = progress.counter("classifying", "sound", compiling(model.description.config.model.spec))
        watch = partial(counter, total=len(sounds))
        for answer in predict_files(model, sounds, rules, given.overlap, given.batch, watch):
            with progress.aside():
                if isinstance(answer, FailedFile):
                    failed += 1
                    report(f"{answer.path}: {answer.reason}")
                else:
                    print_notes(answer.notes, answer.path)
                for writer in writers:
                    writer.write(answer)
        sys.stdout.flush()
    return failed


def _check_outputs(given: argparse.Namespace) -> None:
    """Refuses to overwrite a sound, or to write two outputs into one file."""
    for option, file in (("--out", given.out), ("--events", given.events)):
        if file and file.is_file() and (sound := next((p for p in given.paths if _same(file, p)), None)):
            raise ConfigError(f"{option}={file}: would overwrite the sound {sound}")
        if file and file.suffix.lower() in SUFFIXES:
            raise ConfigError(f"{option}={file}: ends like a sound file, but is text; give another ending")
    if given.out and given.out == given.events:
        raise ConfigError(f"--events={given.events}: --out writes there too; give another file")


def _same(path: Path, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(path, other)


def _writer(given: argparse.Namespace, model: AudioClassifier, files: contextlib.ExitStack) -> Writer:
    """The writer of the chosen format."""
    from datar_jax.inference.writers import JsonLines, ScoresCsv, Terminal
    from datar_jax.terminal import Console

    file = files.enter_context(_text(given.out)) if given.out else sys.stdout
    if isinstance(file, io.TextIOWrapper) and is_utf8(file):
        file.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 are kept byte for byte
    if given.format == "jsonl":
        return JsonLines(file, model.labels, model.heads, given.top)
    if given.format == "csv":
        return ScoresCsv(file, model.labels, model.heads, given.top)
    return Terminal(Console(file=file), model.labels, model.heads, given.top)


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name at the end; of an interrupted prediction it stays as `NAME.partial`."""
    with output_writer(path, keep=True) as file:
        text = text_of(file)
        try:
            yield text
        finally:
            text.detach()
