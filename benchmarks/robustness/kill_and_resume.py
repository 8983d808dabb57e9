"""Kills a training run repeatedly and compares its results with an uninterrupted run.

`python benchmarks/robustness/kill_and_resume.py [--kills=30] [--seed=0] [--keep=DIR]`: a few minutes on two cores.
Prints what each kill interrupted and what was compared; ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.robustness.compare_runs import TOLERANCE, Broken, compare_bits, compare_closely
from datar_jax.data.synthetic import write_dataset
from datar_jax.data.synthetic_sounds import KINDS
from datar_jax.training.monitoring.metric_writer import read_rows

GRACE = 10.0  # seconds between SIGTERM and the end; schedulers give 30
BATCH, EPOCHS, EVALUATE_EVERY, LAST = 8, 48, 2, 240
FIELDS = {
    "audio.sample_rate": 8000, "audio.n_mels": 32, "audio.hop_ms": 25, "audio.window_ms": 50,
    "augment.freq_width": 4, "augment.mixup": 0.3,
    "model.dims": "8,16", "model.spec": "S,D", "model.heads": "1,2", "model.window.sizes": "[[4,4],[2,2]]",
    "model.deformable.groups": "1,1", "model.deformable.strides": "2,1", "model.deformable.kernels": "3,3",
    "model.stem": "patch", "model.mlp": "plain",
    "model.local_perception": "false", "model.drop_path": 0.2, "model.dropout": 0.1,
    "optim.ema": 0.98, "train.batch_size": BATCH, "train.eval_batch_size": 4, "train.epochs": EPOCHS,
    "train.evaluate_every_epochs": EVALUATE_EVERY, "train.checkpoint_every_epochs": 1, "train.log_every_steps": 1,
}  # fmt: skip
EVALUATE_STEPS = EVALUATE_EVERY * LAST // EPOCHS


class Run:
    """One work directory and the process that trains in it."""

    def __init__(self, folder: Path, sounds: Path) -> None:
        self.folder, self._sounds = folder, sounds
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder.with_suffix(".log")

    def start(self, devices: int = 1) -> None:
        fields = {"data.root": self._sounds, **FIELDS}
        command = [sys.executable, ROOT / "train.py", f"--config={ROOT / 'configs/csv.py'}", f"--workdir={self.folder}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        environment = {**os.environ, "NPROC": str(2 * devices)}
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        self.before, self._stale = self.rows(), set(self._unfinished())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def running(self) -> bool:
        assert self._process
        return self._process.poll() is None

    def kill(self) -> None:
        assert self._process
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> float:
        """Sends SIGTERM; returns the seconds until the process ends."""
        assert self._process
        asked = time.monotonic()
        self._process.terminate()
        self.end(os.EX_TEMPFAIL)
        return time.monotonic() - asked

    def end(self, expected: int = 0) -> None:
        assert self._process
        status = self._process.wait()
        if status != expected:
            raise Broken(f"{self.folder.name}: ended with {status}, not {expected}:\n{self.log()[-3000:]}")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def rows(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def new_rows(self) -> int:
        """Rows since this start; one that begins anew first takes some out."""
        rows = self.rows()
        self.before = min(self.before, rows)
        return rows - self.before

    def last_row(self) -> dict[str, Any]:
        rows = read_rows(self.folder / "metrics.jsonl")[0]
        return rows[-1] if rows else {"step": 0}

    def writing(self) -> bool:
        return any("checkpoint" in name for name, inode in self._unfinished() if (name, inode) not in self._stale)

    def decoding(self) -> bool:
        return any("partial" in name for name, inode in self._unfinished() if (name, inode) not in self._stale)

    def _unfinished(self) -> Iterator[tuple[str, int]]:
        """What is being written, and what was when an earlier process was killed."""
        for place in ("checkpoints/*.orbax-checkpoint-tmp", "cache/.*.partial"):
            for path in self.folder.glob(place):
                with contextlib.suppress(FileNotFoundError):
                    yield path.name, path.stat().st_ino

    def trained(self) -> bool:
        return (self.folder / "checkpoints" / str(LAST)).exists()

    def due(self) -> bool:
        """Whether the step that was told last is to be scored, and is not yet."""
        last = self.last_row()
        return "split" not in last and last["step"] > 0 and last["step"] % EVALUATE_STEPS == 0

    def where(self) -> str:
        """What a run that was just killed was doing, from what it left."""
        last = self.last_row()
        if self.decoding():
            return "decoding sounds"
        if self.writing():
            return "writing a checkpoint"
        if not self.new_rows() and last.get("split") != "test":
            return "start-up"
        if last.get("split") == "test":
            return "writing results"
        if self.trained():
            return "scoring the test clips"
        if self.due():
            return "scoring the validation clips"
        return "between two steps"


def triggers(run: Run, rng: random.Random) -> dict[str, Callable[[], bool]]:
    """Moments to wait for in a run that was just started."""
    begun, delay = time.monotonic(), rng.uniform(0.2, 5.0)
    rows = rng.randint(1, 14)  # checkpoints are 5 steps apart: most starts get on, some do not
    return {
        "start-up": lambda: time.monotonic() - begun > delay,
        "decode": run.decoding,
        "step": lambda: run.new_rows() >= rows and not run.writing(),
        "checkpoint": lambda: run.new_rows() >= rows and run.writing(),
        "validation": lambda: run.new_rows() >= min(rows, 3) and run.due(),
        "test": lambda: run.trained() and not run.writing(),
        "result": lambda: run.new_rows() > 0 and run.last_row().get("split") == "test",
    }


def wait_for(run: Run, trigger: Callable[[], bool]) -> bool:
    """Whether the moment came before the end of the run."""
    while not trigger():
        if not run.running():
            return False
        time.sleep(0.002)
    return run.running()


def plan(kills: int, rng: random.Random) -> list[str]:
    """Which moments, in an order in which they can come."""
    late = max(2, kills // 6)
    middle = ["checkpoint", "step", "validation", "start-up"] * kills
    middle = middle[: kills - late - 1]
    rng.shuffle(middle)
    return ["decode", *middle, *(["test", "result"] * late)[:late]]


def torment(run: Run, kills: int, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Kills and restarts, then lets it end."""
    fallen: Counter[str] = Counter()
    orders = plan(kills, rng)
    terms = {len(orders) // 4: "start-up", len(orders) // 2: "step", 3 * len(orders) // 4: "validation"}
    told = []
    for number, moment in enumerate(orders):
        run.start()
        if not wait_for(run, triggers(run, rng)[moment]):
            run.end()
            fallen["(ended before the moment came)"] += 1
        else:
            if moment not in ("step", "validation"):  # these are over soon
                time.sleep(rng.choice((0, rng.uniform(0, 0.05))))
            run.kill()
            fallen[run.where()] += 1
        if number in terms:
            run.start()
            if wait_for(run, triggers(run, rng)[terms[number]]):
                seconds = run.terminate()
                told.append(f"{terms[number]}: status 75 after {seconds:.1f} s, rows to step {run.last_row()['step']}")
                if seconds > GRACE:
                    raise Broken(f"SIGTERM in {terms[number]}: took {seconds:.1f} s")
    run.start()
    run.end()
    return fallen, told


def write_sounds(root: Path) -> None:
    """Sixty half-second clips: 40 to train on, 10 to validate, 10 to test."""
    write_dataset(root, clips_per_class=6, seconds=0.5, seed=0)
    splits = ("train", "train", "train", "train", "validation", "test")
    lines = [f"{kind}/{kind}_{i:03d}.wav,{kind},{split}" for kind in KINDS for i, split in enumerate(splits)]
    (root / "manifest.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to work, and to leave everything; must not exist")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    place = given.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    place.mkdir(parents=True, exist_ok=given.keep is None)
    began = time.monotonic()
    try:
        write_sounds(place / "sounds")
        alone, killed, moved = (Run(place / name, place / "sounds") for name in ("alone", "killed", "moved"))
        alone.start()
        alone.end()
        print(f"left alone: {LAST} steps, {time.monotonic() - began:.0f} s", flush=True)

        fallen, told = torment(killed, given.kills, rng)
        for where, count in sorted(fallen.items()):
            print(f"  {count:3d} kills: {where}")
        for line in told:
            print(f"      SIGTERM in {line}")
        for line in compare_bits(LAST, alone.folder, killed.folder):
            print(f"  equal, bit for bit: {line}", flush=True)

        moved.start()
        wait_for(moved, lambda: moved.last_row()["step"] >= LAST // 2)
        moved.terminate()
        since = moved.last_row()["step"]
        moved.start(devices=4)
        moved.end()
        print(f"one device to step {since}, four from there on:")
        for line in compare_closely(LAST, alone.folder, moved.folder, since):
            print(f"  {line} (at most {TOLERANCE:g})")
    except Broken as broken:
        print(f"BROKEN: {broken}\neverything lies in {place}", file=sys.stderr)
        return 1
    if given.keep is None:
        shutil.rmtree(place)
    print(f"all laws held; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
