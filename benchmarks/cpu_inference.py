"""Inference cost of each variant on one CPU core: file sizes, memory, time of the first and later predictions.

    python benchmarks/cpu_inference.py [--only=datar_nano,datar_tiny] [--answers=30] [--starts=3]

Models are untrained: the front end of configs/folder.py (16 kHz, 20 ms hop, 64 mel bins; 128 where the model's windows
are larger than 64 allow, which is all but datar_nano), ten classes, a window of 10 s, random weights, exported as
safetensors. Each is asked about one synthetic recording of 10 s (WAV, 44.1 kHz, mono) by
`datar_jax.load(folder)(file)`, in fresh processes on one core, with nothing compiled yet and then with what the first
of them compiled, and by `datar-jax predict`. An answer is from the file to probabilities: read, resample,
log-mel, network. Prints tables in Markdown. Linux, for the choice of a core; elsewhere the system chooses.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECONDS, RATE, CLASSES = 10.0, 44_100, 10
FORMS = ("float32", "bfloat16", "int8")
TARGETS = "datar_nano answers 50 times as fast as the sound lasts, and first within 8 s of its start with a warm cache"
COSTS = (
    *("model", "parameters", "G MACs", *(f"{form}, MB" for form in FORMS)),
    *("answer, ms: least", "median", "CPU", "times real time", "memory, MiB"),
)
STARTS = (
    *("model", "first answer cold, s", "warm, s: least", "median", "CPU"),
    *("imports", "load", "first call", "`predict`, s: least", "CPU"),
)
FIRST = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import json, resource, time
import datar_jax
from datar_jax.compilation_cache import keep_compiled
datar_jax.load
imported = time.time()
keep_compiled()
model = datar_jax.load(sys.argv[1])
loaded = time.time()
model(sys.argv[2])
first, cpu = time.time(), time.process_time()
answers = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter(), time.process_time()
    model(sys.argv[2])
    answers.append((time.perf_counter() - began[0], time.process_time() - began[1]))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps([imported, loaded, first, cpu, answers, memory]))
"""
PREDICT = """
import os, runpy, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
sys.argv[0] = "datar_jax"
runpy.run_module("datar_jax", run_name="__main__")
"""


class AudioClassifier(NamedTuple):
    """What needs no clock."""

    parameters: int
    macs: int
    bytes: list[int]  # of the weights in each of FORMS


class Start(NamedTuple):
    """A fresh process; seconds from when it was asked for."""

    imported: float
    loaded: float
    first: float
    cpu: float  # seconds of CPU time up to the first answer
    answers: list[tuple[float, float]]  # those that follow: seconds, seconds of CPU time
    memory: float  # MiB, largest resident


def main() -> None:
    variants = ("datar_nano", "datar_tiny", "datar_small", "datar_base")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(variants))
    parser.add_argument("--answers", type=int, default=30, help="after the first")
    parser.add_argument("--starts", type=int, default=3, help="with what was compiled before")
    given = parser.parse_args()
    if unknown := sorted(set(given.only.split(",")) - set(variants)):
        parser.error(f"--only: no {', '.join(unknown)}; there are {', '.join(variants)}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    costs, starts = [], []
    began = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        noise_N = 0.1 * np.random.default_rng(0).standard_normal(round(SECONDS * RATE))
        soundfile.write(folder / "sound.wav", noise_N, RATE, "PCM_16")
        for name in given.only.split(","):
            # In a process of its own: a small process has small children, whose memory is measured.
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                model = pool.submit(make, name, folder / name).result()
            cost, start = measure(name, model, folder, given)
            costs.append(cost)
            starts.append(start)
            print(f"{name}: {', '.join(cost[1:] + start[1:])}", file=sys.stderr, flush=True)
    print(f"Target: {TARGETS}. Load average {began:.1f} to {os.getloadavg()[0]:.1f} on {os.cpu_count()} threads.\n")
    print(table(COSTS, costs), table(STARTS, starts), sep="\n\n")


def make(name: str, folder: Path) -> AudioClassifier:
    """Exports an untrained model in every form, to `folder/FORM`."""
    import jax
    import msgspec

    from configs.folder import get_config
    from datar_jax.checkpoints.model_info import MODEL_FILE, ModelInfo, write_model_info
    from datar_jax.checkpoints.pretrained import SAFETENSORS, structure_checksum
    from datar_jax.checkpoints.safetensors import save_safetensors
    from datar_jax.config import MODELS
    from datar_jax.export.exporter import export
    from datar_jax.models.datar import DATAR
    from datar_jax.models.flops import count_parameters, macs_per_clip

    config, model = get_config(), msgspec.structs.replace(MODELS[name](), num_classes=CLASSES)
    mels = max(config.audio.n_mels, 32 * model.window.sizes[-1][0])  # a map has a 32nd of the rows in the last stage
    config = msgspec.structs.replace(config, audio=msgspec.structs.replace(config.audio, n_mels=mels), model=model)
    frames, labels = config.audio.frames(SECONDS), tuple(f"class {i}" for i in range(CLASSES))
    network = DATAR(config.model, CLASSES, config.audio.n_mels, frames)
    mel = jax.ShapeDtypeStruct((1, config.audio.n_mels, frames), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), mel)["params"]
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        weight = rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        return weight + 1 if path[-1].key == "scale" else weight

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    first = folder / FORMS[0]
    first.mkdir(parents=True)
    description = ModelInfo(config=config, labels=labels, frames=frames, mean_db=-40.0, std_db=15.0)
    write_model_info(
        first / MODEL_FILE, msgspec.structs.replace(description, structure=structure_checksum(description, params))
    )
    save_safetensors(first / SAFETENSORS, params, "float32")
    written = [first / SAFETENSORS]
    written += [export(first, folder / form, "safetensors", form) for form in FORMS[1:]]  # type: ignore[arg-type]
    macs = macs_per_clip(config.model, CLASSES, config.audio.n_mels, frames)
    return AudioClassifier(count_parameters(params), macs, [path.stat().st_size for path in written])


def measure(name: str, model: AudioClassifier, folder: Path, given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """A row of each table."""
    export, sound, cache = folder / name / FORMS[0], folder / "sound.wav", folder / f"{name}.cache"
    cold = start(export, sound, cache, 0)
    warm = [start(export, sound, cache, given.answers) for _ in range(given.starts)]
    walls, cpus = zip(*(answer for each in warm for answer in each.answers))
    quickest = min(warm, key=lambda each: each.first)
    predicted = [predict(export, sound, cache) for _ in range(given.starts)]
    costs = [
        f"{model.parameters / 1e6:.2f} M",
        f"{model.macs / 1e9:.2f}",
        *(f"{size / 1e6:.1f}" for size in model.bytes),
    ]
    costs += [f"{1000 * seconds:.1f}" for seconds in (min(walls), median(walls), median(cpus))]
    costs += [f"{SECONDS / median(walls):,.0f}", f"{max(each.memory for each in warm):.0f}"]
    parts = quickest.imported, quickest.loaded - quickest.imported, quickest.first - quickest.loaded
    seconds = [cold.first, quickest.first, median(each.first for each in warm), min(each.cpu for each in warm), *parts]
    seconds += [min(wall for wall, _ in predicted), min(cpu for _, cpu in predicted)]
    return [name, *costs], [name, *(f"{number:.2f}" for number in seconds)]


def start(export: Path, sound: Path, cache: Path, answers: int) -> Start:
    """A fresh process up to its first answer, and some more."""
    began = time.time()
    told = child(FIRST, cache, export, sound, answers)
    imported, loaded, first, *rest = json.loads(told.splitlines()[-1])
    return Start(imported - began, loaded - began, first - began, *rest)


def predict(export: Path, sound: Path, cache: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a whole `datar-jax predict`."""
    began, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child(PREDICT, cache, "predict", export, sound)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.time() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def child(program: str, cache: Path, *arguments: object) -> str:
    """What a program says, in a process whose compiled programs are kept in `cache`."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
