"""A preparation that is stopped, or that meets another one: the same bytes in the end, and one line."""

import concurrent.futures
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from datar_jax.cli.main import main
from datar_jax.config import ConfigError
from datar_jax.data.prepare import build as room
from datar_jax.data.prepare.encode import encode_all
from datar_jax.data.sources.base import DataError
from datar_jax.filesystem import StoragePath
from tests.data.prepare.small_dataset import RECIPE, content, opened, run


@pytest.mark.parametrize("stop", [0, 3, 4, 6])
def test_stopped_and_started_again_it_ends_in_the_same_bytes(small, tmp_path, stop):
    run(small, tmp_path / "whole")

    def break_off(done, total):
        del total
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "out", progress=break_off)
    assert not (tmp_path / "out" / "corpus.json").exists(), "what is not whole has no card"
    with pytest.raises(ConfigError, match=r"holds no corpus\.json"):
        opened(tmp_path / "out")
    seen = []
    run(small, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert seen[0][0] == {0: 0, 3: 0, 4: 3, 6: 5}[stop], "finished shards are not made again"
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.array_record")}
    run(small, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.array_record")} == before


def test_two_processes_write_the_same_bytes_as_one(small, tmp_path):
    run(small, tmp_path / "one")
    run(small, tmp_path / "two", dataclasses.replace(RECIPE, workers=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_one_folder_is_written_by_one_preparation(small, tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def wait(done, total):
        del total
        if done == 1:
            entered.set()
            assert leave.wait(60)

    first = threading.Thread(target=run, args=(small, tmp_path / "out"), kwargs={"progress": wait})
    first.start()
    try:
        assert entered.wait(60)
        with pytest.raises(ConfigError, match=rf"out': another process \({os.getpid()} on .+\) is writing there"):
            run(small, tmp_path / "out")
    finally:
        leave.set()
        first.join()
    assert opened(tmp_path / "out")[0].card.here == 6


def test_a_full_disk_is_one_line_and_loses_nothing(small, tmp_path, monkeypatch):
    take, taken = StoragePath.move_from, []

    def full(self, file):
        if taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(file)
        take(self, file)

    monkeypatch.setattr(StoragePath, "move_from", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\); .*the same command, which"):
        run(small, tmp_path / "out")
    monkeypatch.undo()
    seen = []
    run(small, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert seen[0] == (3, 7)
    run(small, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_worker_that_dies_is_reported(small, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "encode_clips", die)
    with pytest.raises(DataError, match="a worker process died"):
        run(small, tmp_path / "out")


def die(*_):
    os._exit(9)


def test_what_a_killed_preparation_left_is_taken_away(small, tmp_path):
    run(small, tmp_path / "whole")
    (tmp_path / "out" / ".writing-1").mkdir(parents=True)
    (tmp_path / "out" / ".writing-1" / "train-00000-of-00003.array_record").write_bytes(b"half of it")
    run(small, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


KILLED = """
import os, signal
from datar_jax.data.prepare.encode import encode_all

def cook(clips):
    return ["" for _ in clips]

if __name__ == "__main__":
    for _ in encode_all([None] * 999, cook, 2):
        print("at work", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    # What they print to is closed when the last of them has ended.
    command = [sys.executable, tmp_path / "killed.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"at work\n")


def test_processes_do_not_hear_ctrl_c():
    assert set(encode_all([None] * 3, _blocked, 1)) == {"SIGINT"}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_second_ctrl_c_waits_until_the_processes_have_ended(monkeypatch):
    masks = []

    class Pool(concurrent.futures.ProcessPoolExecutor):
        def shutdown(self, **how):
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            super().shutdown(**how)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    encoded = encode_all([None] * 99, _blocked, 1)
    next(encoded)
    with pytest.raises(KeyboardInterrupt):
        encoded.throw(KeyboardInterrupt)
    assert masks == [{signal.SIGINT}]


def _blocked(clips):
    return [" ".join(each.name for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())) for _ in clips]


def test_ctrl_c_is_one_line_and_help_is_help(small, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "build_dataset", stop)
    options = [f"--lists={tmp_path}", f"--audio={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert main(["prepare", "esc50", *options]) == 130
    assert capsys.readouterr().err == "datar-jax: interrupted; the same command continues\n"
    assert main(["--help"]) == 0
    assert "prepare" in capsys.readouterr().out
    assert main([]) == 2
    assert "--help" in capsys.readouterr().out
