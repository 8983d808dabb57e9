"""Throughput of the input pipeline: one core, several processes and threads, start-up, and waiting in training.

    python benchmarks/input_pipeline.py [--root=SOUNDS] [--workdir=DIR] [--clips=200] [--parts=chain,scaling,start,wait]
        [--rounds=9] [--rows=100000,2000000] [--rates=datar_tiny=5000,...]

`SOUNDS` has one sub-folder per class; without it, recordings of five seconds at 44.1 kHz are synthesised and kept as
Ogg Vorbis. They are prepared as shards at 16 kHz, and decoded into the cache of a folder. Prints tables in Markdown.
Linux.

`chain` counts CPU time, in a process of its own that is held to one core and to one thread of numpy and XLA, so that
other work on the machine hardly affects ratios: every round runs each variant in turn, the first round is not
counted, and medians are reported. The other parts use the wall clock.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


from benchmarks import _input_stages as chain
from benchmarks import _sounds as sounds
from benchmarks._input_runs import scaling, start, to_be_had, wait
from benchmarks._input_stages import BATCH, FRONT_ENDS, HOST, ORIGINS, SECONDS, Costs
from benchmarks._settings import header, row
from datar_jax.config import MODELS
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.models.flops import macs_per_clip
from datar_jax.training.monitoring.accelerators import CHIPS

PARTS = ("chain", "scaling", "start", "wait")
STAGES = ("read", "decode", "resample", "mel")
TARGETS = {"host": 5, "device": 20}  # times the plain chain, from pcm shards
EXACT = 6  # passes in bfloat16 that make up a product at the highest precision
# docs/guides/tpu-estimate.md: 277 clips of 10 s a second on one v5e chip, so twice as many of 5 s.
PLANNED = {"datar_base": 2 * 277}
PACKAGES = ("jax", "grain", "array_record", "librosa", "numpy", "scipy", "soundfile")

Given = TypeVar("Given")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder of sounds; synthetic ones otherwise")
    parser.add_argument("--workdir", type=Path, help="where sounds and shards are kept; nowhere otherwise")
    parser.add_argument("--clips", type=int, default=200, help="how many are synthesised")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", default="100000,2000000", help="clips in the lists of `start`")
    parser.add_argument("--rates", default="", help="clips a second and chip, as datar_tiny=5000,datar_small=2500")
    given = parser.parse_args()
    rates = dict(pair.split("=") for pair in given.rates.split(",") if pair)
    for flag, asked, known in (("parts", given.parts.split(","), PARTS), ("rates", rates, MODELS)):
        if unknown := sorted(set(asked) - set(known)):
            parser.error(f"--{flag}: no {', '.join(unknown)}; there are {', '.join(known)}")
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    tell(f"{os.cpu_count()} CPUs, which may be the threads of fewer cores; {packages}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.workdir or Path(temporary)
        root = given.root or folder / "sounds"
        if not given.root:
            sounds.record(root, given.clips, SECONDS)
        for coding in ("pcm", "flac"):
            sounds.shard(root, folder / coding, EncodeOptions(HOST, coding, workers=os.cpu_count() or 1))
        for part in given.parts.split(","):
            if part == "chain":
                costs = in_child(chain.measure, root, folder, given.rounds, environment=chain.ONE_CORE)
                show_chain(costs)
                show_cores(costs, {name: float(rate) for name, rate in rates.items()})
            elif part == "scaling":
                show_scaling(folder)
            elif part == "start":
                show_start(folder, [int(rows) for rows in given.rows.split(",")])
            else:
                show_wait(folder)


def in_child(work: Callable[..., Given], *arguments: Any, environment: dict[str, str] | None = None) -> Given:
    """What a function returns in a fresh process."""
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def tell(text: str) -> None:
    """A paragraph."""
    print(textwrap.fill(text, 120, break_on_hyphens=False) + "\n", flush=True)


# One core


def show_chain(costs: Costs) -> None:
    spent, plain_ms = costs.spent, costs.spent["plain", "batch"]
    print("## One core\n")
    tell(f"CPU milliseconds a clip; windows of {SECONDS:g} s, {HOST.n_mels} mels, batches of {BATCH}.")
    titles = ["", "features", *STAGES, "the rest", "transfer", "ms a clip", "clips/s and core", "times the plain chain"]
    print(header(titles))
    cells = [f"{spent['plain', stage]:.2f}" if ("plain", stage) in spent else "" for stage in STAGES]
    print(row("plain chain", "librosa", *cells, "", "", f"{plain_ms:.2f}", f"{1e3 / plain_ms:.0f}", "1"))
    for origin, title in ORIGINS.items():
        for front in FRONT_ENDS:
            name = f"{origin} {front}"
            stages, whole = [spent.get((name, stage)) for stage in STAGES], costs.whole(name)
            cells = ["" if ms is None else f"{ms:.3f}" for ms in stages]
            cells += [f"{spent[name, 'batch'] - sum(filter(None, stages)):.3f}", f"{spent[name, 'transfer']:.3f}"]
            print(row(title, front, *cells, f"{whole:.3f}", f"{1e3 / whole:,.0f}", f"**{plain_ms / whole:.1f}**"))
    print()
    tell(
        "`the rest`: drawing, cutting, putting together; from a cache, reading too; a difference of medians. Samples "
        f"were decoded and resampled when they were prepared or cached, {spent['preparing', 'decode']:.2f} ms a clip, "
        "once. Augmentation is part of the step."
    )
    missed = [front for front, least in TARGETS.items() if plain_ms / costs.whole(f"pcm {front}") < least]
    wanted = ", ".join(f"{least} times the plain chain with {front} features" for front, least in TARGETS.items())
    tell(f"Target: {wanted}, from pcm shards: {'missed with ' + ' and '.join(missed) if missed else 'met'}.")
    on_device = spent["device", "mel"]
    microseconds = 1e6 * 2 * EXACT * costs.macs / CHIPS["v5e"].flops
    tell(
        f"Not the host's: features on the device are {costs.macs / 1e6:.0f} M multiply-accumulates a clip, in matrix "
        f"products; {microseconds:.0f} microseconds of a v5e chip at its peak, were each in {EXACT} passes. Where "
        f"this core is the device they take it {on_device:.2f} ms a clip, and the whole is "
        f"{plain_ms / (costs.whole('pcm device') + on_device):.1f} times the plain chain."
    )


def show_cores(costs: Costs, rates: dict[str, float]) -> None:
    """The cores that keep a host of eight v5e chips supplied; its vCPUs: cloud.google.com/tpu/docs/v5e, VM types."""
    print("## Cores for a host of eight v5e chips\n")
    tell(
        f"From pcm shards, {SECONDS:g} s a clip. Clips/s of a chip: as given by --rates; else as the estimate expects; "
        "else what its published peak allows at six operations a multiply-accumulate, which no chip reaches, so that "
        "no host needs more. Such a host has 224 vCPUs."
    )
    titles = ["model", "G MACs a clip", "clips/s and chip", "clips/s, eight chips", "samples read, GB/s"]
    print(header([*titles, "cores, host features", "cores, device features"]))
    for name in ("datar_tiny", "datar_small", "datar_base"):
        macs = macs_per_clip(MODELS[name](), 527, HOST.n_mels, HOST.frames(SECONDS))
        peak = CHIPS["v5e"].flops / (6 * macs)
        rate = rates.get(name, PLANNED.get(name, peak))
        source = "given" if name in rates else "estimate" if name in PLANNED else "peak"
        cells = [
            f"{rate:,.0f} ({source})",
            f"{8 * rate:,.0f}",
            f"{8 * rate * 2 * SECONDS * HOST.sample_rate / 1e9:.1f}",
        ]
        cells += [f"{8 * rate * costs.whole(f'pcm {front}') / 1e3:.1f}" for front in FRONT_ENDS]
        print(row(name, f"{macs / 1e9:.2f}", *cells))
    print(flush=True)


# More cores


def show_scaling(folder: Path, workers: tuple[int, ...] = (0, 1, 2), threads: tuple[int, ...] = (1, 2, 4)) -> None:
    print("## Reading processes and threads\n")
    tell(
        "Clips/s by the wall clock, from pcm shards. `CPUs to be had`: what other work left just before, as found by "
        "threads that ask for all of it."
    )
    titles = ["features", "data.workers", *(f"data.threads={count}" for count in threads), "CPUs to be had"]
    print(header(titles), flush=True)
    for front in FRONT_ENDS:
        for count in workers:
            free = in_child(to_be_had)
            rates = in_child(scaling, folder, front, count, threads)
            print(row(front, count, *(f"{rate:,.0f}" for rate in rates), f"{free:.1f}"), flush=True)
    print()


# A start


def show_start(folder: Path, rows: list[int]) -> None:
    print("## From the lists to the first batch\n")
    tell("Lists of a prepared folder over few shards, in a fresh process that has loaded jax; host features.")
    titles = ["clips", "lists, s", "sides, s", "shards, s", "first batch, s", "all, s", "CPU, s", "memory, MB"]
    print(header(titles), flush=True)
    for count in rows:
        sounds.list_more(folder / "pcm", folder / f"rows_{count}", count - count // 10, count // 10)
        found = in_child(start, folder / f"rows_{count}")
        cells = [f"{seconds:.1f}" for seconds in (*found[:4], sum(found[:4]), found.processor)]
        print(row(f"{count:,}", *cells, f"{found.memory:.0f}"), flush=True)
    print()
    tell("Target: 100,000 clips in under 10 s and 1,000 MB beyond jax.")


# A run


def show_wait(folder: Path, steps: int = 8, batch: int = 8) -> None:
    sounds.list_more(folder / "pcm", folder / "few", steps * batch, batch)
    rows = wait(folder / "few", batch)
    print("## What training waits for\n")
    tell(
        f"datar_tiny, {SECONDS:g} s, batch {batch}, from pcm shards, host features, on all CPUs; `data_wait` of "
        "`metrics.jsonl`, the share of a step's time that goes by waiting for its batch. The first row holds compiling "
        "and is left out."
    )
    waits = [100 * each["data_wait"] for each in rows[1:]]
    print(header(["steps", "data_wait, mean", "largest", "clips/s"]))
    cells = [f"{mean(waits):.2f} %", f"{max(waits):.2f} %", f"{rows[-1]['clips_per_second']:.2f}"]
    print(row(f"{rows[1]['step']} to {rows[-1]['step']}", *cells) + "\n")
    tell(f"Target: under 2 %: {'met' if max(waits) < 2 else 'missed'}.")


if __name__ == "__main__":
    main()
