"""Sends corrupt audio files through the real pipeline and checks what happens to each.

    python benchmarks/robustness/fuzz_audio.py [--files=2000] [--seed=0]

Lists, feature cache and batches run in a child process under a limit of address space and of time. Every law in `LAWS`
is checked afterwards; a broken one is printed, and the exit status is 1. What is made depends on the seed alone. Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.robustness.corrupt_audio import KINDS, REFUSED, USED, Made, make
from datar_jax.audio.media import MediaFile
from datar_jax.config import AudioConfig, DataConfig
from datar_jax.data import synthetic as synthesis
from datar_jax.data.loader import eval_batches, train_batches
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.base import bad_clips_report, default_window_frames, statistics, usable
from datar_jax.data.sources.feature_cache import open_cache

# MB above what one good file and one batch need. A thread per core decodes blocks of 4 MB and holds one clip (here at
# most two and a half minutes, 9 MB), a copy of it and a piece of its spectrum (27 MB). The rest is for all: eight
# batches of 8 MB read ahead, and the cache file's pages, which the system takes back when it needs them (26 kB a second
# of sound, 70 MB for 2,000 files). What a header claims, ten hours or 2**36 samples in 64 channels, is far above.
MEMORY = 200 + 50 * (os.cpu_count() or 1)
ADDRESSES = 4 << 30  # bytes that may be reserved on top: an allocation by what a header says fails at once
SLOWEST = 5.0  # seconds for one file, on a busy core
LIMIT = (60.0, 0.5)  # seconds for the whole child: to start, and for each file
BATCH = 16
DANGEROUS = ("pickle.find_class", "marshal.load", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")


# The child: the pipeline itself, watched.


def pipeline(root: Path, cache: Path) -> dict[str, Any]:
    """Lists, decodes and reads every file below `root`; what came of it, as plain values."""
    warm, audio = cache / "warm", AudioConfig(n_mels=64)
    synthesis.write_dataset(warm, 2, 1.0)
    list(read(warm, cache / "warm_cache", audio, lambda done, total: None))
    MediaFile(next(warm.rglob("*.wav"))).close()  # loads PyAV: Python reads modules with marshal, sounds never
    Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
    baseline = megabytes("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (int(megabytes("VmSize") * 1e6) + ADDRESSES,) * 2)
    executed: list[str] = []
    sys.addaudithook(lambda event, arguments: executed.append(event) if event.startswith(DANGEROUS) else None)

    clock = [time.perf_counter()]

    def progress(done: int, total: int) -> None:
        clock.append(time.perf_counter())
        print(json.dumps({"done": done, "seconds": clock[-1] - clock[-2]}), flush=True)

    found = dict(read(root, cache, audio, progress))
    seconds = time.perf_counter() - clock[0]
    return {
        **found,
        "seconds": seconds,
        "slowest": max(after - before for before, after in itertools.pairwise(clock)),
        "growth": megabytes("VmHWM") - baseline,
        "peak": megabytes("VmHWM"),
        "executed": executed,
    }


def read(root: Path, cache: Path, audio: AudioConfig, progress: Callable[[int, int], None]) -> Any:
    """What `train.py` does before its first step: yields (what, value)."""
    dataset = read_dataset(DataConfig(root=str(root)))
    features = open_cache(dataset, audio, cache, progress)
    yield "clips", [clip.name for clip in dataset.clips]
    yield "frames", features.frames.tolist()
    yield "bad", features.bad
    yield "report", bad_clips_report(features, 1.0)
    indices, _ = usable(features, np.arange(len(dataset)))
    yield "statistics", statistics(features, indices)
    window = default_window_frames(features, indices, audio)
    batches = train_batches(features, dataset, indices, window, BATCH, 0, DataConfig())
    trained = [np.isfinite(next(batches)["mel"]).all() for _ in range(-(-len(indices) // BATCH))]
    batches.close()
    seen: set[int] = set()
    for batch in eval_batches(features, dataset, indices, window, BATCH):
        trained.append(np.isfinite(batch["mel"]).all())
        seen.update(batch["clip"][batch["mask"] > 0].tolist())
    yield "seen", sorted(seen)
    yield "finite", bool(all(trained))
    again = open_cache(dataset, audio, cache, lambda done, total: sys.exit("the cache was not found again"))
    yield "kept", bool(again.bad == features.bad and np.array_equal(again.frames, features.frames))


def megabytes(field: str) -> float:
    """One of this process's memory figures."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def run(root: Path, cache: Path, files: int) -> dict[str, Any]:
    """`pipeline` in a child; what it found, or `died` with the reason and the place."""
    cache.mkdir()
    command = [sys.executable, __file__, f"--pipeline={root}", f"--cache={cache}"]
    limit = LIMIT[0] + LIMIT[1] * files
    try:
        child = subprocess.run(command, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as late:
        return {"died": f"not done after {limit:.0f} s", "done": (late.stdout or b"").count(b"\n")}
    lines = child.stdout.decode().splitlines()
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {"died": f"exit status {child.returncode}: {' '.join(last)}", "done": len(lines)}
    return json.loads(lines[-1])


# The laws.


def used(found: dict[str, Any]) -> set[str]:
    return {name for name, frames in zip(found["clips"], found["frames"]) if frames}


LAWS: dict[str, Callable[[list[Made], dict[str, Any]], object]] = {
    "every file is a clip": lambda made, found: {m.name for m in made} ^ set(found["clips"]),
    "every clip is used or has a reason": lambda made, found: (
        len(found["clips"]) - len(used(found)) - sum(bool(reason) for _, reason in found["bad"])
    ),
    "the report has one line for each": lambda made, found: (
        len(found["report"].splitlines()) - len(found["bad"]) - bool(found["bad"])
    ),
    "no line of the report has a control character": lambda made, found: [
        line for line in found["report"].splitlines() if not line.isprintable()
    ],
    "intact files are used": lambda made, found: {m.name for m in made if m.fate == USED} - used(found),
    "unusable files are refused": lambda made, found: {m.name for m in made if m.fate == REFUSED} & used(found),
    "every used clip is evaluated": lambda made, found: (
        {i for i, frames in enumerate(found["frames"]) if frames} ^ set(found["seen"])
    ),
    "spectrograms and statistics are finite": lambda made, found: (
        not (found["finite"] and all(map(math.isfinite, found["statistics"])))
    ),
    "a second call finds the same cache": lambda made, found: not found["kept"],
    "nothing is executed": lambda made, found: set(found["executed"]),
    f"no file takes longer than {SLOWEST:g} s": lambda made, found: max(0, found["slowest"] - SLOWEST),
    f"memory grows by less than {MEMORY} MB": lambda made, found: max(0, found["growth"] - MEMORY),
}


def broken_laws(made: list[Made], found: dict[str, Any]) -> list[str]:
    """One line for each law that does not hold."""
    if "died" in found:
        at = sorted(m.name for m in made)[found["done"] :][:1]
        return [f"no crash and no hang: {found['died']}, near {at}"]
    return [f"{law}: {str(amiss)[:2000]}" for law, check in LAWS.items() if (amiss := check(made, found))]


def table(made: list[Made], found: dict[str, Any]) -> str:
    from benchmarks._settings import header, row  # here: it imports jax, which the child does not need

    files, kept = Counter(m.kind for m in made), Counter(m.kind for m in made if m.name in used(found))
    cells = [(kind, files[kind], kept[kind], files[kind] - kept[kind]) for kind in KINDS]
    cells.append(("all", len(made), sum(kept.values()), len(made) - sum(kept.values())))
    return "\n".join([header(["kind", "files", "used", "refused"]), *(row(*each) for each in cells)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline", type=Path, help=argparse.SUPPRESS)  # what the child does
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pipeline:
        print(json.dumps(pipeline(given.pipeline, given.cache)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder, "sounds"), given.files, given.seed)
        found = run(Path(folder, "sounds"), Path(folder, "cache"), len(made))
    if "died" not in found:
        print(table(made, found))
        print(
            f"\n{found['seconds']:.0f} s, at most {found['slowest']:.2f} s for one file; "
            f"peak {found['peak']:.0f} MB, {found['growth']:.0f} MB above the start"
        )
    broken = broken_laws(made, found)
    for line in broken:
        print(f"BROKEN: {line}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
