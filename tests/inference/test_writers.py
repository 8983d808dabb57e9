"""Answers written and read back: JSON lines, CSV, Audacity's labels, and what a person sees."""

import io
import json
import os

import numpy as np
import pytest

from datar_jax.escaping import read_csv
from datar_jax.inference.events import Event
from datar_jax.inference.predict import Prediction
from datar_jax.inference.windows import FailedFile
from datar_jax.inference.writers import EventsCsv, JsonLines, LabelTracks, ScoresCsv, Terminal, audacity, clock
from datar_jax.terminal import Console
from tests.helpers import head

LABELS = ("dog, barking", 'a "bell"\tand\nmore', "Vögel")
EVENTS = (
    Event(LABELS[0], 0.0, 3_600.1, 0.98765432),
    Event(LABELS[1], 441 * 7 / 44_100, 1 / 3, 0.5),
    Event(LABELS[2], 86_399.123456, 86_400.0, 1.0),
)
BYTES = os.fsdecode(b"odd \xff name,\n.wav")  # no UTF-8
ANSWERS = (
    Prediction("a/b.wav", 86_400.0, np.array([0.12345678, 0.5, 1.0]), EVENTS),
    FailedFile("gone.wav", "no such file"),
    Prediction(BYTES, 1 / 3, np.array([0.0, 0.25, 0.75]), ()),
)


def written(writer, *arguments):
    file = io.StringIO(newline="")
    made = writer(file, *arguments)
    for answer in ANSWERS:
        before = file.getvalue()
        made.write(answer)
        assert file.getvalue().startswith(before)
    file.seek(0)
    return file


def test_json_lines_come_back_as_they_were():
    lines = written(JsonLines, LABELS).getvalue().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0] == {
        "path": "a/b.wav",
        "seconds": 86_400.0,
        "scores": dict(zip(LABELS, [0.123457, 0.5, 1.0])),
        "events": [{**event._asdict(), "score": round(event.score, 6)} for event in EVENTS],
    }
    assert rows[1] == {"path": "gone.wav", "error": "no such file"}
    assert rows[2]["path"] == BYTES
    assert rows[2]["events"] == []
    assert all(line.isascii() for line in lines)


def test_events_come_back_from_csv_to_the_last_digit():
    rows = [list(row.values()) for row in read_csv(written(EventsCsv))]
    assert next(written(EventsCsv)) == "path,onset,offset,label,score\n"
    found = [Event(label, float(onset), float(offset), float(score)) for _, onset, offset, label, score in rows]
    assert found == [event._replace(score=round(event.score, 6)) for event in EVENTS]
    assert {path for path, *_ in rows} == {"a/b.wav"}


def test_the_best_scores_come_back_from_csv():
    rows = list(read_csv(written(ScoresCsv, LABELS, (), 2)))
    assert [(row["path"], row["label"], float(row["score"])) for row in rows] == [
        ("a/b.wav", LABELS[2], 1.0),
        ("a/b.wav", LABELS[1], 0.5),
        (BYTES, LABELS[2], 0.75),
        (BYTES, LABELS[1], 0.25),
    ]
    assert [float(row["seconds"]) for row in rows] == [86_400.0, 86_400.0, 1 / 3, 1 / 3]
    heads = read_csv(written(ScoresCsv, LABELS, (head("verb", 1), head("noun", 2)), 1))
    assert [row["label"] for row in heads] == [f"verb: {LABELS[0]}", f"noun: {LABELS[2]}"] * 2


def test_csv_of_odd_names_can_be_written_to_a_file(tmp_path):
    with open(tmp_path / "a.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        ScoresCsv(file, LABELS).write(ANSWERS[2])
    with open(tmp_path / "a.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert next(read_csv(file))["path"] == BYTES


def test_a_label_track_has_one_line_an_event_in_microseconds():
    text = "".join(audacity(EVENTS))
    assert text.endswith("\n")
    fields = [line.split("\t") for line in text.splitlines()]
    assert [(float(onset), float(offset), label) for onset, offset, label in fields] == [
        (0.0, 3_600.1, "dog, barking"),
        (0.07, 0.333333, 'a "bell" and more'),
        (86_399.123456, 86_400.0, "Vögel"),
    ]
    assert fields[0][0] == "0.000000"


def test_label_tracks_of_the_longest_names_are_named_apart(tmp_path):
    tracks = LabelTracks(tmp_path)
    paths = [f"{'x' * 250}{i}.wav" for i in range(2)] + [f"{'雨' * 83}a.wav", os.fsdecode(b"\xff" * 255)]
    for path in [*paths, "a.wav"]:
        tracks.write(Prediction(path, 1.0, np.zeros(3), EVENTS))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 5 and "a.wav.txt" in names
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".txt") for name in names)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"".join(audacity(EVENTS))}


def test_a_terminal_shows_every_file_and_every_event():
    file = io.StringIO()
    terminal = Terminal(Console(file=file, width=100), LABELS)
    for answer in ANSWERS:
        terminal.write(answer)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0] == 'a/b.wav  24:00:00.000  Vögel 100.0%, a "bell"\\tand\\nmore 50.0%, dog, barking 12.3%'
    assert lines[1].split() == ["onset", "offset", "label", "score"]
    assert lines[2].split() == ["0:00.000", "1:00:00.100", "dog,", "barking", "98.8%"]
    assert lines[4].split() == ["23:59:59.123", "24:00:00.000", "Vögel", "100.0%"]
    assert "gone.wav" not in file.getvalue(), "an error is given once, on standard error"
    assert lines[5].startswith("odd \\udcff name,\\n.wav  0:00.333")
    assert len(lines) == 6


def test_a_terminal_shows_the_best_of_each_head():
    file = io.StringIO()
    terminal = Terminal(Console(file=file, width=200), ("open", "shut", "door"), (head("verb", 2), head("noun", 1)))
    terminal.write(Prediction("[red]a.wav", 59.9996, np.array([0.3, 0.7, 1.0]), ()))
    assert file.getvalue().strip() == "[red]a.wav  1:00.000  verb: shut 70.0%, verb: open 30.0%, noun: door 100.0%"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00.000"), (59.9994, "0:59.999"), (60, "1:00.000"), (3_599.9996, "1:00:00.000"), (7_325.25, "2:02:05.250")],
)
def test_times_are_read_as_on_a_clock(seconds, expected):
    assert clock(seconds) == expected
