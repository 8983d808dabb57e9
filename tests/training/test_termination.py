"""SIGTERM is answered at once while there is nothing to save, wherever the main thread is; later, after the step."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# As inside a compiler: no handler of Python's runs until it returns, in minutes.
COMPILER = "hashlib.pbkdf2_hmac('sha256', b'', b'', {rounds})"
CHILD = """
import hashlib, signal
from datar_jax.training.termination import stop_requests, terminable
with terminable("program"):
    {block}
"""
STARTS_UP = f"print('ready', flush=True); {COMPILER.format(rounds=2 * 10**9)}"
FIRST_STEP = f"""
    with stop_requests() as signals:
        print('ready', flush=True); {COMPILER.format(rounds=2 * 10**9)}
"""
LATER_STEP = f"""
    with stop_requests() as signals:
        signals.hold()
        print('ready', flush=True)
        while not signals.numbers: {COMPILER.format(rounds=10**5)}
        print(signals.numbers)
"""
EVALUATES = f"""
    with stop_requests() as signals:
        signals.hold()
    print('ready', flush=True); {COMPILER.format(rounds=2 * 10**9)}
"""
ONE_OF_MANY = f"""
    with stop_requests(listens=False) as signals:
        signals.hold()
        print('ready', flush=True); {COMPILER.format(rounds=2 * 10**9)}
"""
AT_ONCE = "program: terminated; the same command continues at the newest checkpoint\n"
NEXT_STEP = "stopping after this step; once more stops at once\n"


@pytest.mark.parametrize(
    ("block", "status", "lines"),
    [
        (STARTS_UP, 75, AT_ONCE),
        (FIRST_STEP, 75, AT_ONCE),
        (LATER_STEP, 0, NEXT_STEP),
        (EVALUATES, 75, AT_ONCE),
        (ONE_OF_MANY, 75, AT_ONCE),
    ],
    ids=["start-up", "first step", "later step", "after the loop", "one of many processes"],
)
def test_sigterm(block: str, status: int, lines: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(block=block)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        output, error = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, error) == (status, lines)
    assert (str([int(signal.SIGTERM)]) in output) == (status == 0)
