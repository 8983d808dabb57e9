"""When one process of many is gone, the others end with status 75 and one line, whichever it was."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A store of files in place of that of jax; `abort` is what jax's runtime does when it loses the first process.
CHILD = """
import ctypes, hashlib, os, sys, time
from pathlib import Path
from datar_jax.training import peers
folder, number, ends, errors = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
class Store:
    def key_value_set(self, key, value):
        (folder / "partial").write_text(value)
        (folder / "partial").rename(folder / key.replace("/", "_"))
    def blocking_key_value_get(self, key, milliseconds):
        while not (folder / key.replace("/", "_")).exists():
            time.sleep(0.01)
        return (folder / key.replace("/", "_")).read_text()
peers.ERROR_SECONDS = errors
link = peers.Peers(Store(), "localhost", number, 3, f"program {number}")
while number == 0 and len(link._links) < 2:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.readline()
if ends == "waits":
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)  # as in a collective: no instruction of Python's runs
elif ends == "aborts":
    os.abort()
link.close(int(ends))
sys.exit(int(ends))
"""


def run(folder: Path, ends: list[str], kill: int | None = None, errors: float = 60) -> tuple[list[int], list[str]]:
    """Exit statuses and errors of three processes that end in some ways, or one of which is killed."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(number), how, str(errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, how in enumerate(ends)
    ]
    try:
        for child in children:
            assert child.stdout and child.stdout.readline() == "ready\n"
        for number, child in enumerate(children):
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
            if number == kill:
                child.kill()
        lines = [child.communicate(timeout=60)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], lines


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_the_others(tmp_path: Path, killed: int) -> None:
    statuses, lines = run(tmp_path, ["waits"] * 3, kill=killed)
    for number in range(3):
        assert statuses[number] == (-signal.SIGKILL if number == killed else 75)
        gone = rf"program {number}: process [{killed}0] is gone; the same command continues at the newest checkpoint\n"
        assert re.fullmatch("" if number == killed else gone, lines[number])


def test_a_process_whose_runtime_aborts_first_ends_in_the_same_way(tmp_path: Path) -> None:
    statuses, lines = run(tmp_path, ["waits", "aborts", "aborts"], kill=0)
    assert statuses == [-signal.SIGKILL, 75, 75]
    assert all(line.count("\n") == 1 and "process 0 is gone" in line for line in lines[1:])


def test_an_abort_without_a_loss_stays_one(tmp_path: Path) -> None:
    statuses, lines = run(tmp_path, ["waits", "waits", "aborts"])
    assert statuses == [75, 75, -signal.SIGABRT] and "jax aborts; with TF_CPP_MIN_LOG_LEVEL=3" in lines[2]


@pytest.mark.parametrize("ends", [["0", "75", "0"], ["2", "2", "2"]])
def test_processes_that_end_by_themselves_end_no_other(tmp_path: Path, ends: list[str]) -> None:
    assert run(tmp_path, ends) == ([int(status) for status in ends], [""] * 3)


@pytest.mark.parametrize("failed", [0, 2])
def test_an_error_of_one_process_ends_the_others_with_its_status(tmp_path: Path, failed: int) -> None:
    ends = ["2" if number == failed else "waits" for number in range(3)]
    statuses, lines = run(tmp_path, ends, errors=0.1)
    assert statuses == [2, 2, 2] and lines[failed] == ""
    assert all("has ended with status 2\n" in line for number, line in enumerate(lines) if number != failed)
