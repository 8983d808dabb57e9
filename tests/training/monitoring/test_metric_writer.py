"""What a run writes about itself survives a cut-off line, a restart and a full disk."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from datar_jax import metrics
from datar_jax.training.monitoring.console import ProgressConsole, show_result
from datar_jax.training.monitoring.metric_writer import MetricWriter, read_rows
from datar_jax.training.trainer import _summarize
from tests.helpers import head


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(MetricWriter, "say", lambda self, line: lines.append(line))
    return lines


def report(folder: Path, step: int = 0, scored: bool = False) -> MetricWriter:
    made = MetricWriter(folder, ProgressConsole(quiet=True))
    made.begin(step, 100, scored)
    return made


def train(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step}


def validation(step: int) -> dict[str, Any]:
    return {"step": step, "split": "validation", "top1": 0.5}


def test_a_run_goes_on_with_the_rows_that_led_to_its_state(tmp_path: Path, said: list[str]) -> None:
    rows = [train(1), train(2), validation(2), train(3), train(4), validation(4), {"step": 4, "split": "test"}]
    for step, scored, kept in ((4, True, rows[:6]), (4, False, rows[:5]), (3, False, rows[:4]), (0, False, [])):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        one = report(tmp_path, step, scored)
        assert one.rows() == kept
        one.row(train(5))
        one.end()
        assert read_rows(tmp_path / "metrics.jsonl") == ([*kept, train(5)], [])
        said.clear()


def test_a_line_cut_off_at_the_end_is_dropped_and_a_damaged_one_is_reported(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\xff\x00\n{"step": 2}\n[3]\n{"step": 3}\n{"step": 4, "lo')
    report(tmp_path, 9).end()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert said == [f"{path}: left out what is no row, in line 2, 4"]
    report(tmp_path, 9).end()
    assert len(said) == 1


class Crowded:
    """A file on a disk with little room."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_rows_wait_for_room(tmp_path: Path, said: list[str]) -> None:
    one = report(tmp_path)
    crowded = Crowded(one._file, 30)
    one._file = crowded  # type: ignore[assignment]
    for step in range(1, 5):
        one.row(train(step))
    told = [line for line in said if "metrics.jsonl" in line]
    assert len(told) == 1 and told[0].endswith("cannot be written (No space left on device); rows wait for room")
    assert read_rows(tmp_path / "metrics.jsonl") == ([train(1)], []), "whole rows only"
    assert one.rows() == [train(step) for step in range(1, 5)]
    crowded.room = 10_000
    one.row(train(5))
    one.end()
    assert read_rows(tmp_path / "metrics.jsonl") == ([train(step) for step in range(1, 6)], [])


def test_a_full_disk_ends_the_events_and_not_the_run(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = report(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventsWriter, "write_event", full)
    for step in range(1, 99):
        one.row(train(step))
    one.sync()
    one.end()
    assert [line for line in said if "tensorboard" in line] == [
        f"{tmp_path / 'tensorboard'}: cannot be written (No space left on device); metrics.jsonl has all from here on"
    ]
    assert len(read_rows(tmp_path / "metrics.jsonl")[0]) == 98


def test_events_of_a_later_start_take_back_those_of_an_earlier_one(tmp_path: Path, said: list[str]) -> None:
    one = report(tmp_path, 3)
    one.row(train(4))
    one.end()
    content = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    events, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("Q", content, at)
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 16 + length
    assert events[1].session_log.status == SessionLog.START and events[1].step == 4
    assert events[2].step == 4 and events[2].summary.value[0].tag == "train/loss"


def test_a_number_that_the_clips_do_not_define_is_null_and_a_dash(tmp_path: Path) -> None:
    console = ProgressConsole(record=True, width=200)
    one = MetricWriter(tmp_path, console)
    one.begin(0, 100)
    one.row({"step": 5, "split": "test", **metrics.evaluate(np.full((3, 2), 0.25), np.zeros((3, 2)), "multi")})
    one.end()
    assert '"roc_auc": null, "d_prime": null' in (tmp_path / "metrics.jsonl").read_text()
    assert "mean average precision -  loss 0.288" in console.export_text()


def test_folds_without_a_number_are_left_out_of_its_mean() -> None:
    rest = {"clips": 3, "steps": 4, "train_seconds": 1.0}
    folds = [{"roc_auc": None, "mean_average_precision": None, "d_prime": None, **rest}]
    folds += [{"roc_auc": a, "mean_average_precision": a, "d_prime": None, **rest} for a in (0.5, 0.9)]
    result = _summarize(folds, [1, 2, 3], "mean_average_precision")
    assert result["roc_auc"] == pytest.approx(0.7) and result["d_prime"] is None and result["clips"] == 9
    assert result["mean_average_precision_std"] == pytest.approx(0.4 / 2**0.5)


@pytest.mark.parametrize(
    ("labels", "heads", "told", "untold"),
    [
        ("single", (), ["top-1 75.0% (deviation over folds 2.5%)", "top-5 100.0%", "d-prime"], ["verb", "action"]),
        ("multi", (), ["mean average precision", "(deviation over folds 0.025)", "area under the ROC"], ["top-"]),
        (
            "single",
            (head("verb", 2), head("noun", 3)),
            ["verb top-1", "noun d-prime", "action top-1 25.0% (dev"],
            ["action d"],
        ),
    ],
)
def test_the_last_table_states_every_number_there_is(
    tmp_path: Path, labels: Any, heads: Any, told: list[str], untold: list[str]
) -> None:
    true = np.concatenate([np.eye(2)[[0, 1, 0, 1]], np.eye(3)[[0, 1, 2, 0]]], 1) if heads else np.eye(3)[[0, 1, 2, 0]]
    score = 0.5 * true + 0.25
    score[0, -1] = 0.9
    score[1:3, 0] = score[1:3, 0] if not heads else [0.9, 0.1]
    numbers = metrics.evaluate(score, true, labels, heads)
    rest = {"parameters": 1, "macs_per_clip": 1, "steps": 1, "train_seconds": 1.0, "clips_per_second": 1.0}
    (tmp_path / "curves.png").touch()
    console = ProgressConsole(record=True, width=200)
    show_result(console, {**numbers, **rest, f"{metrics.primary_metric(labels, heads)}_std": 0.025}, tmp_path)
    text = console.export_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert len([line for line in lines if line.startswith("In ")]) == 1
    assert len(lines) == len(numbers) - 2 + 5 + 1, "a line each, but clips and classes share one"
    assert all(any(part in line for line in lines) for part in told)
    assert not any(part in text for part in untold)
    assert "result.json, curves.png, config.json" in text, "the pictures that there are"
