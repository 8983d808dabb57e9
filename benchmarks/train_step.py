"""Clips per second and multiply-accumulates of every variant, and where a train step's time goes.

    python benchmarks/train_step.py [--models=datar_nano,datar_tiny] [--seconds=5,10] [--batch=4] [--steps=5]

Random spectrograms of 128 mel bins at 10 ms, 50 classes. A train step is the real one: augmentation, gradient,
clipping, AdamW, average of the weights. Prints tables in Markdown. The parts are the shares of all operations' time in
a profile; operations that run side by side both count.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import msgspec

from benchmarks._settings import header, row
from datar_jax.config import MODELS, AugmentConfig, Config, MeshConfig, OptimConfig, TrainConfig
from datar_jax.models.flops import (
    count_parameters,
    macs_per_clip,
)
from datar_jax.models.spec import ModelSpec
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_step import init_state, jit_eval_step, jit_train_step

CLASSES = 50
PARTS = ("stem and downsampling", "L", "S", "D", "MLP", "norms and residuals", "augmentation", "optimizer", "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seconds", default="5,10")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    if unknown := sorted(set(given.models.split(",")) - set(MODELS)):
        parser.error(f"--models: no {', '.join(unknown)}; there are {', '.join(MODELS)}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {given.dtype}, batch {given.batch}\n")
    columns = ["model", "clip, s", "parameters", "GMACs a clip", "train, clips/s", "inference, clips/s", "compile, s"]
    print(header([*columns, *(f"{part}, %" for part in PARTS)]), flush=True)
    for name in given.models.split(","):
        for seconds in map(float, given.seconds.split(",")):
            print(row(name, f"{seconds:g}", *measure(name, seconds, given)), flush=True)


def measure(name: str, seconds: float, given: argparse.Namespace) -> list[str]:
    model = msgspec.structs.replace(MODELS[name](), dtype=given.dtype)
    augmented = AugmentConfig(roll=True, gain_db=6.0, freq_masks=2, freq_width=8, mixup=0.5)
    config = Config(
        model=model, augment=augmented, optim=OptimConfig(ema=0.999), train=TrainConfig(batch_size=given.batch)
    )
    spec = ModelSpec(config, CLASSES, config.audio.frames(seconds), 1000)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state(spec, mesh)
    batch = {
        "mel": 10 * jax.random.normal(jax.random.key(0), (given.batch, config.audio.n_mels, spec.frames)) - 40,
        "frames": jnp.full(given.batch, spec.frames, jnp.int32),
        "target": jax.nn.one_hot(jnp.arange(given.batch) % CLASSES, CLASSES),
    }
    step, score = jit_train_step(spec, mesh), jit_eval_step(spec, mesh)

    def train() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    def infer() -> None:
        jax.block_until_ready(score(state.params, state.statistics, {"mel": batch["mel"], "frames": batch["frames"]}))

    start = time.perf_counter()
    train()
    compiled = time.perf_counter() - start
    infer()
    rates = [given.batch / median(timed(run) for _ in range(given.steps)) for run in (train, infer)]
    shares = parts(step.lower(state, batch).compile().as_text(), profile(train), config)
    macs = macs_per_clip(model, CLASSES, config.audio.n_mels, spec.frames)
    cells = [f"{count_parameters(state.params) / 1e6:.1f} M", f"{macs / 1e9:.2f}"]
    cells += [f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{compiled:.0f}"]
    return cells + [f"{100 * shares[part] / sum(shares.values()):.0f}" for part in PARTS]


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def profile(run: Callable[[], None]) -> Counter[str]:
    """Nanoseconds of every operation of the compiled program."""
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines:
                    for event in line.events:
                        if "hlo_op" in dict(event.stats):
                            spent[event.name] += int(event.duration_ns)
    return spent


def parts(program: str, spent: Counter[str], config: Config) -> Counter[str]:
    """Sums the operations of each part, by the name of the module that they were traced in."""
    origin = dict(re.findall(r"%([\w.-]+) = .*?metadata=\{op_name=\"([^\"]*)\"", program))
    total: Counter[str] = Counter()
    for operation, nanoseconds in spent.items():
        total[part_of(origin.get(operation, ""), config)] += nanoseconds
    return total


def part_of(name: str, config: Config) -> str:
    if block := re.search(r"stage_(\d)_(\d+)/(\w+)", name):
        stage, index, module = int(block[1]), int(block[2]), block[3]
        if module == "mixer":
            return config.model.spec[stage][index]
        return "MLP" if module == "mlp" else "norms and residuals"
    if re.search(r"/(stem|down_\d)/", name):
        return "stem and downsampling"
    for scope, part in (("augment", "augmentation"), ("optimizer", "optimizer"), ("DATAR", "norms and residuals")):
        if scope in name:
            return part
    return "other"


if __name__ == "__main__":
    main()
