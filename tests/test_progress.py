"""The line of progress: what it says, that it moves on a terminal, and that it is quiet elsewhere."""

import io
import os
import pty
import time

import pytest

from datar_jax import progress
from datar_jax.progress import Progress


def lines_of(monkeypatch: pytest.MonkeyPatch, first: float, following: float) -> io.StringIO:
    monkeypatch.setattr(progress, "FIRST_LINE", first)
    monkeypatch.setattr(progress, "NEXT_LINE", following)
    monkeypatch.setattr(progress, "POLL", 0.01)
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    return written


def wait_for(text: str, where: io.StringIO) -> None:
    until = time.monotonic() + 20
    while text not in where.getvalue() and time.monotonic() < until:
        time.sleep(0.01)
    assert text in where.getvalue()


def test_the_line_has_what_is_done_and_the_time_that_is_left() -> None:
    line = Progress()
    line.stage("reading")
    assert line.text(line._since + 65) == "reading: 1:05"
    count = line.counter("scoring", "clip", "compiling (about 45 s the first time)")
    assert line.text(line._since + 3) == "compiling (about 45 s the first time): 0:03"
    count(10, 1000)
    assert line.text(line._since) == "scoring: 10 of 1,000 clips, 0:00"
    count(35.5, 1000, "loss 0.5")
    assert line.text(line._since + 10) == "scoring: 35 of 1,000 clips, 6:18 left  loss 0.5"
    line.counter("scoring", "clip")(20, 20)
    assert line.text(line._since + 4000) == "scoring: 20 of 20 clips, 1:06:40"
    line.stage("")


def test_elsewhere_than_on_a_terminal_a_plain_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written = lines_of(monkeypatch, 0.0, 1e9)
    with Progress() as line:
        line.stage("reading")
        wait_for("\n", written)
        time.sleep(0.1)
        assert written.getvalue() == "reading: 0:00\n", "the next line is not due"
        line.counter("scoring", "clip")(1, 3)
        wait_for("scoring: 1 of 3 clips, 0:00\n", written)
        line.stage("reading")
        time.sleep(0.1)
    assert written.getvalue().count("\n") == 2, "a line for each stage"
    written = lines_of(monkeypatch, 1e9, 1e9)
    with Progress() as line:
        line.stage("reading")
        time.sleep(0.1)
    assert written.getvalue() == "", "short work says nothing"


def test_all_processes_but_the_first_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = lines_of(monkeypatch, 0.0, 0.0)
    with Progress(shown=False) as line:
        line.stage("reading")
        time.sleep(0.1)
    assert written.getvalue() == ""


def test_on_a_terminal_the_line_moves_and_makes_room_for_other_output(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    shown = b""
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress() as line:
            line.stage("reading")
            while shown.count(b"reading") < 3:
                shown += os.read(ours, 4096)
            with line.aside():
                terminal.write("a note\n")
                terminal.flush()
        shown += os.read(ours, 4096)
    os.close(ours)
    assert {sign + b" reading: 0:00" in shown for sign in (b"|", b"/", b"-")} == {True}
    before, _, _ = shown.partition(b"a note\r\n")
    assert before.endswith(b"\r\x1b[K"), "the line was taken away before the note"
    assert shown.endswith((b"\r\x1b[K", b"a note\r\n")), "nothing of it is left"
