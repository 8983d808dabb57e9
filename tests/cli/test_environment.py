"""Commands in an environment that lacks something: a backend, UTF-8, a home folder's name."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datar_jax.cli.options import quiet_libraries

ROOT = Path(__file__).parent.parent.parent
EXPORT = ROOT / "tests" / "golden" / "version_0_1" / "export_params"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datar_jax", *arguments],
        cwd=ROOT,
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=300,
    )


@pytest.mark.parametrize("backend", ["cuda", "tpu", "nonsense"])
def test_a_missing_backend_is_named_with_its_remedy(tmp_path: Path, backend: str) -> None:
    result = run("predict", str(EXPORT), str(tmp_path), JAX_PLATFORMS=backend)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("datar-jax")]
    assert f"JAX_PLATFORMS='{backend}'" in line and "JAX_PLATFORMS=cpu" in line
    assert ("pip install" in line) == (backend != "nonsense") and "Traceback" not in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_terminal_cannot_write_are_escaped(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "雨.wav").write_text("no sound")
    (tmp_path / "über.wav").write_text("no sound")
    result = run("predict", str(EXPORT), str(tmp_path), PYTHONIOENCODING=encoding)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert r"\u96e8.wav" in result.stderr and "2 sounds could not be used" in result.stderr


def test_ctrl_c_in_a_callback_that_drops_it_still_interrupts() -> None:
    dropped = []

    def drops(*_: object) -> None:
        if not dropped:
            dropped.append(1)
            raise KeyboardInterrupt

    def work() -> None:
        with quiet_libraries():
            gc.callbacks.append(drops)  # from here on: a collection of its own accord would call it too
            gc.collect()
            for _ in range(3000):
                time.sleep(0.01)

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        gc.callbacks.remove(drops)
    assert dropped


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 75, "termin")]
)
def test_a_run_that_is_stopped_before_its_loop_ends_in_one_line(number: int, status: int, word: str) -> None:
    stopped = f"with train.terminable('datar-jax'):\n    os.kill(os.getpid(), {number:d})\n    os._exit(1)"
    program = f"import os, datar_jax.cli.train as train\n{stopped}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1) and f"datar-jax: {word}" in done.stderr
