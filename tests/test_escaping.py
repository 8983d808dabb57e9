"""Hostile names over all outputs: a terminal, CSV, JSON lines, label tracks, the model card and figures."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import markdown_it
import numpy as np
import pytest
import yaml
from msgspec.structs import replace
from rich.text import Text

import datar_jax
from datar_jax import config as c
from datar_jax.checkpoints.model_info import ModelError, ModelInfo
from datar_jax.checkpoints.provenance import DataProvenance, Provenance
from datar_jax.cli.options import print_line, print_notes, report, report_error
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.sources.base import DataError
from datar_jax.escaping import csv_cell, from_csv_cell, markdown, printable, read_csv
from datar_jax.export.model_card import model_card
from datar_jax.inference.embeddings import Embedded, NumpyFiles, embedding_files
from datar_jax.inference.events import Event
from datar_jax.inference.predict import Prediction
from datar_jax.inference.windows import FailedFile
from datar_jax.inference.writers import EventsCsv, JsonLines, LabelTracks, ScoresCsv, Terminal
from datar_jax.metrics import confusion
from datar_jax.terminal import Console
from datar_jax.training.error_analysis import (
    save_worst_clips_figure,
    worst_clips,
    write_confusions_csv,
    write_worst_clips_csv,
)
from datar_jax.training.evaluate import by_class, table_of
from datar_jax.training.monitoring.console import ProgressConsole
from datar_jax.training.monitoring.metric_writer import MetricWriter
from datar_jax.training.plots import save_confusion_figure
from tests.hostile import TEXTS

N = len(TEXTS)
SCORES = np.full(N, 1 / N)
PREDICTION = Prediction("a.wav", 1.0, SCORES, tuple(Event(name, 0.0, 1.0, 0.5) for name in TEXTS))
ANSWERS = [PREDICTION, *(Prediction(name, 1.0, SCORES, ()) for name in TEXTS)]
DATASET = Dataset(tuple(Clip(name, name, (i,)) for i, name in enumerate(TEXTS)), TEXTS)
TARGET = np.eye(N)
TAKEN = np.roll(TARGET, 1, axis=1) * 0.9 + 0.1 / N  # each class for the one before


def predicted(writer: Callable[..., object], *given: object) -> str:
    file = io.StringIO(newline="")
    made = writer(file, *given)
    for answer in ANSWERS:
        made.write(answer)
    return file.getvalue()


def embedded(folder: Path) -> str:
    with embedding_files(NumpyFiles, folder) as writer:
        for name in TEXTS:
            writer.write(Embedded(name, 1.0, np.zeros(2), np.zeros((1, 2)), np.zeros((1, 2), np.float32)))
    return read(folder / "clips.csv")


def read(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")


def hardest(folder: Path) -> str:
    write_worst_clips_csv(folder / "a.csv", worst_clips(DATASET, np.arange(N), TAKEN, TARGET, "single"))
    return read(folder / "a.csv")


def confusions(folder: Path) -> str:
    write_confusions_csv(folder / "a.csv", confusion(TAKEN, TARGET), TEXTS)
    return read(folder / "a.csv")


# Each with its columns of names.
TABLES = {
    "predict --events": (lambda _: predicted(EventsCsv), ["label"]),
    "predict --format=csv": (lambda _: predicted(ScoresCsv, TEXTS, (), N), ["path", "label"]),
    "embed": (embedded, ["path"]),
    "hardest.csv": (hardest, ["clip", "truth", "predicted_instead"]),
    "confusion.csv": (confusions, ["true", "predicted"]),
}


@pytest.mark.parametrize("table", TABLES)
def test_csv_is_one_line_a_row_runs_nowhere_and_reads_back(tmp_path: Path, table: str) -> None:
    write, columns = TABLES[table]
    text = write(tmp_path)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == len(text.split("\n")) - 1, "one line a row"
    for row in rows:
        for cell in row:
            assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]", cell)
            try:
                float(cell)
            except ValueError:
                assert not re.match(r"[^\w'!-~]*[=+@\uff1d\uff0b\uff0d\uff20\-]", cell), cell
                assert not re.search(r";\s*[=+@-]", cell), cell
    back = list(read_csv(io.StringIO(text, newline="")))
    for column in columns:
        assert {row[column] for row in back} >= set(TEXTS), column


@pytest.mark.parametrize("name", TEXTS)
def test_a_cell_reads_back(name: str) -> None:
    assert from_csv_cell(csv_cell(name)) == name


def test_plain_names_are_written_as_they_are() -> None:
    for name in ("dog, barking", "Vögel", "雨", "می‌خواهم", "a-b.wav", "sounds/dog 1.wav", "a=b", "x;y"):
        assert csv_cell(name) == name
    assert markdown("Dog, barking (outside)") == "Dog, barking (outside)"


def printed(show: Callable[[ProgressConsole], object], terminal: bool) -> str:
    file = io.StringIO()
    show(ProgressConsole(file=file, width=300, force_terminal=terminal, color_system=None, legacy_windows=False))
    return file.getvalue()


def prediction_table(console: Console) -> None:
    writer = Terminal(console, TEXTS, (), N)
    for answer in [*ANSWERS, *(FailedFile(name, name) for name in TEXTS)]:
        writer.write(answer)


CONSOLE = {
    "predict": prediction_table,
    "evaluate": lambda console: console.print(table_of(by_class(TAKEN, TARGET, DATASET, "single"))),
    "train": lambda console: [MetricWriter(Path(), console).say(name) for name in TEXTS],
    "text": lambda console: [console.print(Text(name, style="bold")) for name in TEXTS],
}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("output", CONSOLE)
def test_a_console_prints_lines_without_control_characters(output: str, terminal: bool) -> None:
    text = printed(CONSOLE[output], terminal)
    text = re.sub(r"\x1b\[\d*m", "", text) if terminal else text
    assert all(line.isprintable() for line in text.split("\n")), text
    assert "[red]markup[/red]" in text and ":warning:" in text


def test_messages_are_printable_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for name in TEXTS:
        report(name)
        print_line(name)
        print_notes((name,), name)
        for kind in (c.ConfigError, ModelError):
            report_error(kind(f"{name}: no tensor {name}"))
    lists = DataError("first", *TEXTS)
    report_error(lists)
    output = capsys.readouterr()
    for text, lines in ((output.out, N), (output.err, 4 * N + 1 + N)):
        assert text.count("\n") == lines
        assert all(line.isprintable() for line in text.split("\n"))


def test_a_message_is_one_line_on_a_console() -> None:
    text = printed(lambda console: [console.say(name) for name in TEXTS], False)
    assert text.count("\n") == len(TEXTS)


PRINTING = {"cli/options.py", "cli/main.py", "cli/estimate.py", "data/synthetic.py"}  # the last three: own texts only


def test_nothing_passes_by_the_escaping_functions() -> None:
    package = Path(datar_jax.__file__).parent
    for path in package.rglob("*.py"):
        name, text = path.relative_to(package).as_posix(), path.read_text()
        assert ("csv.writer(" not in text and "DictWriter(" not in text) or name == "escaping.py", name
        assert "rich.console import Console" not in text and "rich.print" not in text, name
        calls = {node.func.id for node in ast.walk(ast.parse(text)) if isinstance(getattr(node, "func", 0), ast.Name)}
        assert "print" not in calls or name in PRINTING, name
        assert not re.search(r"std(?:out|err)\.write\(", text), name


def test_json_lines_hold_no_control_characters() -> None:
    lines = predicted(JsonLines, TEXTS, (), N).split("\n")[:-1]
    assert all(line.isascii() and line.isprintable() for line in lines)
    rows = [json.loads(line) for line in lines]
    assert [row["path"] for row in rows[1:]] == list(TEXTS)
    assert [event["label"] for event in rows[0]["events"]] == list(TEXTS)


def test_a_label_track_has_three_fields_a_line(tmp_path: Path) -> None:
    tracks = LabelTracks(tmp_path)
    tracks.write(PREDICTION)
    lines = (tmp_path / "a.wav.txt").read_text().split("\n")[:-1]
    assert len(lines) == N
    for line in lines:
        assert line.count("\t") == 2 and all(field.isprintable() for field in line.split("\t"))


def card(name: str) -> str:
    """A model card whose every text is one name."""
    config = c.Config(data=c.DataConfig(root="x"), model=c.ModelConfig(num_classes=2))
    before = Provenance(source=name, data=DataProvenance(name=name, fold=1))
    data = DataProvenance(name=name, kind=name, fold=1, clips_sha256=name, clips={name: 2, "tests": 3})
    model = ModelInfo(
        config=config,
        labels=(name, name),
        head_sizes={name or "a": 1, "other": 1},
        frames=10,
        mean_db=0.0,
        std_db=1.0,
        provenance=Provenance(
            program=name,
            data=data,
            pretraining=replace(before, pretraining=before),
            numbers={"clips": 3, "macs_per_clip": 1, f"{name}_top1": 0.5},
        ),
    )
    return model_card(model, 10, "onnx", "float32", {"weights": name, "data": name})


@pytest.mark.parametrize("name", TEXTS)
def test_a_model_card_shows_names_and_obeys_none(name: str) -> None:
    _, front, body = card(name).split("---\n", 2)
    plain_front, plain_body = card("plain").split("---\n", 2)[1:]
    wanted = yaml.safe_load(plain_front)
    found = yaml.safe_load(front)
    assert found.keys() == wanted.keys() and isinstance(found["license"], str)
    assert {**found, "license": ""} == {**wanted, "license": ""}
    assert found["license"] == (printable(name) or "other")
    assert all(line.isprintable() for line in (*front.split("\n"), *body.split("\n")))

    def structure(text: str) -> list[str]:
        kinds = []
        for token in markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
            inner = [child.type for child in token.children or ()]
            kinds += [token.type, *(kind for kind in inner if kind not in ("text", "code_inline", "softbreak"))]
        return kinds

    assert structure(body) == structure(plain_body)
    words = re.sub(r"(`+) .*? \1|`[^`]*`", "", body)  # what some readers make links of
    assert "www." not in words and "//" not in words and "@" not in words


def test_figures_draw_every_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_confusion_figure(tmp_path / "c.svg", confusion(TAKEN, TARGET), TEXTS)
        for start in range(0, N, 20):
            answers = worst_clips(DATASET, np.arange(N), TAKEN, TARGET, "single")[start:]
            save_worst_clips_figure(tmp_path / f"h{start}.svg", answers)
    for path in tmp_path.glob("*.svg"):
        ElementTree.parse(path)
