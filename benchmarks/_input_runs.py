"""What input_pipeline.py measures by the wall clock: processes and threads, a start, and waiting in a run."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import _input_stages as chain
from benchmarks._input_stages import BATCH, FRONT_ENDS, HOST, SECONDS
from benchmarks.robustness.fuzz_audio import megabytes
from datar_jax.config import DataConfig
from datar_jax.data.loader import train_batches
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.array_record import open_shards
from datar_jax.data.splits import split
from datar_jax.filesystem import storage_path
from datar_jax.training.monitoring.metric_writer import read_rows

ROOT = Path(__file__).resolve().parent.parent


def to_be_had(seconds: float = 1.0) -> float:
    """CPU seconds a second that as many threads as there are CPUs get."""
    zeros = bytes(1 << 22)
    processor, begun = time.process_time(), time.perf_counter()

    def busy() -> None:
        while time.perf_counter() < begun + seconds:
            hashlib.sha256(zeros)  # other threads run meanwhile

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in range(os.cpu_count() or 1):
            pool.submit(busy)
    return (time.process_time() - processor) / (time.perf_counter() - begun)


def scaling(folder: Path, front: str, workers: int, threads: tuple[int, ...], seconds: float = 1.5) -> list[float]:
    """Clips a second that come out of the pipeline once it runs, for each number of threads."""
    dataset, store = chain.opened(folder, folder, "pcm", FRONT_ENDS[front])
    rates = []
    for count in threads:
        with closing(chain.drawn(dataset, store, count, workers)) as batches:
            for _ in range(8 * (1 + workers) * count):  # more than lie ready
                next(batches)
            clips, start = 0, time.perf_counter()
            while time.perf_counter() < start + seconds:
                next(batches)
                clips += BATCH
            rates.append(clips / (time.perf_counter() - start))
    return rates


class Start(NamedTuple):
    """Seconds by the wall clock, and what they took."""

    lists: float
    sides: float
    shards: float
    first: float  # batch
    processor: float  # seconds of CPU time, of all
    memory: float  # MB at the highest, beyond jax


def start(folder: Path) -> Start:
    """What `train.py` does with prepared data before its first step."""
    jax.devices()
    Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
    memory, processor, marks = megabytes("VmRSS"), time.process_time(), [time.perf_counter()]
    config = DataConfig(root=str(folder), kind="prepared")
    dataset = read_dataset(config)
    marks.append(time.perf_counter())
    train = split(dataset, config).train
    marks.append(time.perf_counter())
    assert dataset.card
    store = open_shards(storage_path(str(folder), "data.root"), dataset.card, dataset.clips, HOST, folder)
    marks.append(time.perf_counter())
    with closing(train_batches(store, dataset, train, HOST.frames(SECONDS), BATCH, 0, config)) as batches:
        next(batches)
    marks.append(time.perf_counter())
    processor = time.process_time() - processor
    return Start(*np.diff(marks).tolist(), processor, megabytes("VmHWM") - memory)


def wait(root: Path, batch: int) -> list[dict[str, Any]]:
    """The rows of the steps of a short real run."""
    options = {
        "data.root": root,
        "data.kind": "prepared",
        "data.window_seconds": SECONDS,
        "model": "datar_tiny",
        "audio.n_mels": HOST.n_mels,
        "audio.hop_ms": HOST.hop_ms,
        "audio.window_ms": HOST.window_ms,
        "train.epochs": 1,
        "train.batch_size": batch,
        "train.eval_batch_size": batch,
        "train.log_every_steps": 1,
    }
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "train.py", "--config=configs/folder.py", f"--workdir={workdir}"]
        command += [f"--config.{field}={value}" for field, value in options.items()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"train.py ended with {done.returncode}: {done.stderr}")
        return [each for each in read_rows(Path(workdir) / "metrics.jsonl")[0] if "data_wait" in each]
