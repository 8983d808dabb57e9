"""Reads spoiled files of models and data and checks what becomes of each.

    python benchmarks/robustness/fuzz_models.py [--files=3000] [--seed=0]

Weights (.npz, .pth, safetensors), descriptions, checkpoints and prepared shards are spoiled and read in a child process
under a limit of address space and of time. Each must be read, or refused in one line that names it, within 10 s and the
memory that its size allows; anything else is printed, and the exit status is 1. What is spoiled depends on the seed
alone. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks._settings import header, row
from benchmarks.robustness.fuzz_audio import megabytes
from benchmarks.robustness.spoil_models import KINDS, RATE, spoil, write_originals

# What N bytes may take: a tensor of bytes becomes float32, and is copied and turned; the rest is for all, such as the
# trace of a model and the pages of libraries that a reader loads.
MEMORY = (64, 256)  # bytes for each byte, and MB
SLOWEST = 10.0  # seconds for one file
START = 180.0  # seconds until the first
ADDRESSES = 8 << 30  # bytes that may be reserved on top
READ, REFUSED, BROKEN = "read", "refused", "broken"


# The child: the readers themselves, watched.


def read(kind: str, path: Path, seen: set[bytes]) -> None:
    """Reads a file or folder as the commands do, as far as its weights would be applied."""
    import jax
    import msgspec

    from datar_jax.checkpoints.dat_weights import read_official
    from datar_jax.checkpoints.pretrained import load_pretrained
    from datar_jax.config import AudioConfig, DataConfig
    from datar_jax.data.prepared import read_statistics
    from datar_jax.data.readers import read_dataset
    from datar_jax.data.sources.array_record import open_shards
    from datar_jax.export.model_card import model_card
    from datar_jax.filesystem import storage_path
    from datar_jax.models.spec import ModelSpec, predict

    if kind in ("npz", "pth"):
        read_official(path)
    elif kind == "shard":
        dataset = read_dataset(DataConfig(kind="prepared", root=str(path)))
        assert dataset.card
        folder, audio = storage_path(str(path), "data.root"), AudioConfig(sample_rate=RATE)
        read_statistics(folder, audio, ["train"])
        source = open_shards(folder, dataset.card, dataset.clips, audio, path)
        for i in range(len(dataset)):
            source.get(i)
    else:
        saved = load_pretrained(path)
        info = saved.description
        model_card(info, 1, "params", "float32", {})
        if (text := msgspec.json.encode(info)) not in seen:
            spec = ModelSpec(info.config, len(info.labels), info.frames, 1)
            mel = jax.ShapeDtypeStruct((1, info.audio.n_mels, min(info.frames, 128)), np.float32)
            frames = jax.ShapeDtypeStruct((1,), np.int32)
            jax.eval_shape(partial(predict, spec, mean=0.0, std=1.0), saved.params, mel_BxFxT=mel, frames_B=frames)
            seen.add(text)


def outcome(kind: str, path: Path, seen: set[bytes]) -> tuple[str, str]:
    """What becomes of a file, and the line that it is refused with, or what is wrong with that."""
    from datar_jax.checkpoints.model_info import ModelError
    from datar_jax.config import ConfigError
    from datar_jax.data.sources.base import DataError

    try:
        read(kind, path, seen)
    except (ModelError, ConfigError, DataError) as error:
        line = str(error)
        named = str(path) in line or "another model than its description" in line
        return (REFUSED, line) if named and "\n" not in line else (BROKEN, f"an error of no name: {line[:500]}")
    except Exception as error:  # what a user would see as a traceback
        return BROKEN, f"{type(error).__name__}: {str(error)[:500]}"
    return READ, ""


def watch(originals: Path, first: int, last: int, seed: int) -> None:
    """Spoils and reads files `first` to `last - 1`; prints a line of JSON for each."""
    paths, seen = write_originals(originals), set[bytes]()
    for kind, path in paths.items():  # loads what readers load, and shows that each original is read
        read(kind, path, seen)
    resource.setrlimit(resource.RLIMIT_AS, (int(megabytes("VmSize") * 1e6) + ADDRESSES,) * 2)
    print(json.dumps({"ready": True}), flush=True)
    for i in range(first, last):
        kind, rng = KINDS[i % len(KINDS)], np.random.default_rng([seed, i])
        copy = originals / f"copy{paths[kind].suffix}"
        (shutil.copytree if paths[kind].is_dir() else shutil.copyfile)(paths[kind], copy)
        file = spoil(kind, copy, rng)
        size = sum(each.stat().st_size for each in (copy, *copy.rglob("*")) if each.is_file())
        Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
        before, began = megabytes("VmRSS"), time.perf_counter()
        result, line = outcome(kind, copy, seen)
        seconds, growth = time.perf_counter() - began, megabytes("VmHWM") - before
        if growth > MEMORY[0] * size / 1e6 + MEMORY[1]:
            result, line = BROKEN, f"{growth:.0f} MB for {size:,} bytes ({line})"
        if seconds > SLOWEST:
            result, line = BROKEN, f"{seconds:.1f} s ({line})"
        about = {"kind": kind, "file": file, "result": result, "line": line, "seconds": seconds, "growth": growth}
        print(json.dumps(about), flush=True)
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()


# The parent.


def run(files: int, seed: int) -> Iterator[dict[str, Any]]:
    """What became of each file; where a child crashes or hangs, that file is broken, and another goes on behind it."""
    done = 0
    while done < files:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
            command = [sys.executable, __file__, f"--child={folder}", f"--first={done}"]
            command += [f"--files={files}", f"--seed={seed}"]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
            assert child.stdout
            limit, rest = START, b""
            while select.select([child.stdout], [], [], limit)[0] and (data := os.read(child.stdout.fileno(), 1 << 16)):
                *lines, rest = (rest + data).split(b"\n")
                for each in map(json.loads, lines):
                    limit = SLOWEST + 5
                    if "ready" not in each:
                        done += 1
                        yield each
            child.kill()
            status = child.wait()
            errors.seek(0)
            why = f"status {status}: {b' '.join(errors.readlines()[-1:]).decode(errors='replace').strip()}"
        if limit == START:
            raise SystemExit(f"the originals cannot be read: {why}")
        if done < files:
            lost = {"kind": KINDS[done % len(KINDS)], "file": "", "result": BROKEN, "line": why}
            yield lost | {"seconds": 0.0, "growth": 0.0}
            done += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # the folder that the child works in
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        watch(given.child, given.first, given.files, given.seed)
        return 0
    counts: Counter[tuple[str, str]] = Counter()
    began, slowest, growth = time.perf_counter(), 0.0, 0.0
    for number, each in enumerate(run(given.files, given.seed)):
        counts[each["kind"], each["result"]] += 1
        slowest, growth = max(slowest, each["seconds"]), max(growth, each["growth"])
        if each["result"] == BROKEN:
            print(f"BROKEN: file {number}, {each['kind']}, {each['file']}: {each['line']}", flush=True)
    print(header(["kind", "files", READ, REFUSED, BROKEN]))
    for kind in KINDS:
        cells = [counts[kind, result] for result in (READ, REFUSED, BROKEN)]
        print(row(kind, sum(cells), *cells))
    print(
        f"\n{counts.total()} files in {time.perf_counter() - began:.0f} s, at most {slowest:.1f} s and {growth:.0f} MB"
    )
    return int(any(result == BROKEN for _, result in counts))


if __name__ == "__main__":
    sys.exit(main())
