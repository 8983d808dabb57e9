"""Many processes are one run: who started them, and two of them doing what one does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import train
from datar_jax.config import ConfigError
from datar_jax.data.synthetic_sounds import render
from datar_jax.training import distributed
from datar_jax.training.distributed import Cluster, surroundings
from datar_jax.training.monitoring.metric_writer import read_rows

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "given, message",
    [
        ({"coordinator": "node0:8476"}, "belong together"),
        ({"processes": 2, "process": 0}, "belong together"),
        ({"coordinator": "node0", "processes": 2, "process": 0}, "--coordinator=node0: give HOST:PORT"),
        ({"coordinator": "node0:8476", "processes": 0, "process": 0}, "--processes=0: give 1 or more"),
        ({"coordinator": "node0:8476", "processes": 2, "process": 2}, "--process=2: give 0 to 1"),
    ],
)
def test_half_a_cluster_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(**given)


@pytest.mark.parametrize(
    "environment, name",
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "a TPU pod"),
        ({"JAX_COORDINATOR_ADDRESS": "node0:8476"}, "JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_a_cluster_is_known_by_its_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    monkeypatch.setattr(distributed.glob, "glob", lambda _: [])  # no chips in this machine
    assert surroundings(environment) == name


def test_a_lone_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "surroundings", lambda: "")
    distributed.start(Cluster(), "train", pytest.fail)  # jax would raise: a backend exists already
    monkeypatch.setattr(distributed, "surroundings", lambda: "SLURM")
    with pytest.raises(ConfigError, match=r"started by SLURM, but the other processes were not found .*; give --coord"):
        distributed.start(Cluster(), "train", pytest.fail)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds, ten clips each, of several lengths: the last evaluation batch is not full."""
    root = tmp_path_factory.mktemp("sounds")
    for target, kind in enumerate(("alarm", "rain")):
        (root / kind).mkdir()
        for i in range(13):
            sound = render(kind, np.random.default_rng([target, i]), 1.0 if i % 4 else 0.6, 8000)
            soundfile.write(root / kind / f"{i:02d}.wav", sound, 8000)
    return root


def command(root: Path, workdir: Path, **fields: str) -> list[str]:
    given = {
        "data.root": str(root),
        "model.dims": "16",
        "model.heads": "2",
        "model.spec": "D",
        "model.deformable.groups": "2",
        "model.deformable.strides": "2",
        "model.deformable.kernels": "3",
        "model.stem": "patch",
        "model.mlp": "plain",
        "model.local_perception": "false",
        "audio.n_mels": "32",
        "audio.sample_rate": "8000",
        "augment.freq_width": "4",
        "train.batch_size": "8",
        "train.eval_batch_size": "8",
        "train.epochs": "10",
        "train.log_every_steps": "1",
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    fixed = [f"--config={ROOT / 'configs' / 'folder.py'}", f"--workdir={workdir}"]
    return fixed + [f"--config.{name}={value}" for name, value in given.items()]


def two_processes(
    arguments: list[str],
    expected: tuple[int, int] = (0, 0),
    when: Callable[[], bool] | None = None,
    signal_to: tuple[int, int] = (1, signal.SIGTERM),
) -> list[str]:
    """Runs train.py twice at a time, with four devices each; what they said.

    Once `when` says so, one of them (process, signal) gets a signal.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "NPROC": "8",  # threads of a CPU client; fewer than twice its devices can deadlock a collective
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    running = [
        subprocess.Popen(
            [
                *(sys.executable, ROOT / "train.py", *arguments),
                *(f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    try:
        while when and all(process.poll() is None for process in running):
            if when():
                running[signal_to[0]].send_signal(signal_to[1])
                break
            time.sleep(0.05)
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert tuple(process.returncode for process in running) == expected, "\n".join(said)
    return said


@pytest.mark.slow
def test_two_processes_do_what_one_does(sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight devices, in one process or in two: the same steps, the same scores, one set of files.

    The two divide the state over the four devices of each, and the one goes on from what they left.
    """
    assert train.main(command(sounds, tmp_path / "one")) == 0
    first, second = two_processes(command(sounds, tmp_path / "two", mesh__fsdp="4"))
    assert "top-1" in first and "top-1" not in second, "one process speaks"

    one, two = (read_rows(tmp_path / name / "metrics.jsonl")[0] for name in ("one", "two"))
    assert len(one) >= 20 and [row["step"] for row in two] == [row["step"] for row in one]
    for field in ("loss", "grad_norm", "learning_rate"):
        alone, shared = ([row[field] for row in rows if field in row] for rows in (one, two))
        np.testing.assert_allclose(shared, alone, rtol=1e-4)  # sums in another order, carried on by 20 updates
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    for field in ("clips", "top1", "mean_average_precision", "steps", "parameters"):
        assert results[0][field] == results[1][field]

    assert train.main(command(sounds, tmp_path / "two")) == 0
    assert "finished already" in capsys.readouterr().out
    again = json.loads((tmp_path / "two" / "result.json").read_text())
    assert again["clips"] == results[1]["clips"] and again["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)


@pytest.mark.slow
def test_one_process_that_is_asked_to_end_ends_both_with_one_checkpoint(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one process goes on from there."""
    workdir = tmp_path / "stopped"
    arguments = command(sounds, workdir, train__epochs="60")
    rows = workdir / "metrics.jsonl"
    said = two_processes(arguments, (75, 75), lambda: rows.exists() and rows.read_text().count("\n") > 3)
    steps = {re.search(r"stopped at step (\d+) of (\d+)", text).groups() for text in said}  # type: ignore[union-attr]
    assert len(steps) == 1, "both at the same step"
    step, last = map(int, steps.pop())
    assert 3 < step < last and (workdir / "checkpoints" / str(step)).is_dir()
    assert train.main(arguments) == 0
    assert f"continues at step {step}" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(rows)[0] if "split" not in row] == list(range(1, last + 1))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_with_one_line(sounds: Path, tmp_path: Path, killed: int) -> None:
    arguments = command(sounds, tmp_path / "run", train__epochs="600")
    rows = tmp_path / "run" / "metrics.jsonl"
    expected = (-signal.SIGKILL, 75) if killed == 0 else (75, -signal.SIGKILL)
    said = two_processes(
        arguments, expected, lambda: rows.exists() and rows.read_text().count("\n") > 3, (killed, signal.SIGKILL)
    )[1 - killed]
    line = f"train.py: process {killed} is gone; the same command continues at the newest checkpoint\n"
    assert said.endswith(line) and said.count("gone") == 1
    assert not re.search(r"^([EF]\d{4} |\*\*\*|Traceback)", said, re.MULTILINE), "nothing of jax's own"
