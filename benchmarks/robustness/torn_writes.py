"""Looks at what every command would leave if it were killed at any of its writes, or if the disk were full.

`python benchmarks/robustness/torn_writes.py [--full=8] [--only=COMMAND] [--keep=DIR]`: some minutes on two cores.

The places are found by running: every open for writing, write, fsync, rename, removal and new folder of Python is one.
What other processes see at such a place is what a kill there leaves, so that one run is enough for all kills: at every
place the folder is compared with the one before. A file may be as it was, or as a rename brought it, or have a name
that says that it is partial; files of one result are of one run. Then the disk is full from some place on, in a run for
each: the command must end with a status and one line an error, and what it leaves keeps the same law.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.robustness.watched_writes import State, audit, state_of, watched


class Broken(Exception):
    """A law that does not hold."""


class Command(NamedTuple):
    """A command, the folder that it writes to, and the files that belong together."""

    arguments: list[str]
    out: Path
    together: bool = False
    load: bool = False  # whether it writes an export, which must load or be refused


def run(command: Command) -> tuple[int, str]:
    """Runs a command in this process; its status and what it printed to standard error."""
    from datar_jax.cli.main import main

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        status = main(command.arguments)
    return status, errors.getvalue()


def check(command: Command, before: State, renamed: set[tuple[str, str]], now: State, where: str) -> None:
    """Whether every file is old, or came by a rename, and files of one result are of one run."""
    old, new = set(before.items()), renamed - set(before.items())
    if torn := sorted(name for name, value in now.items() if (name, value) not in old | renamed):
        raise Broken(f"{' '.join(command.arguments[:1])}, {where}: {torn} is neither old nor new")
    # An old file that the command has renewed may not lie beside a new one.
    renewed = {name for name, _ in new}
    stale = {name for name, value in now.items() if (name, value) in old and (name, value) not in renamed}
    if command.together and stale & renewed and set(now.items()) & new:
        raise Broken(f"{command.arguments[0]}, {where}: {sorted(stale & renewed)} is old beside new files")


def kills(command: Command) -> tuple[int, int]:
    """Checks every place of a run; how many places and different states there were."""
    before, states = state_of(command.out), dict[str, tuple[State, str]]()
    command.out.parent.mkdir(exist_ok=True)
    copies = Path(tempfile.mkdtemp(prefix="torn-", dir=command.out.parent))

    def look(number: int, what: str) -> None:
        now = state_of(command.out)
        if (key := repr(now)) not in states:
            states[key] = now, f"place {number}, {what}"
            if command.load and command.out.exists():
                shutil.copytree(command.out, copies / str(len(states)))

    with watched(command.out, look) as watch:
        status, errors = run(command)
    if status:
        raise Broken(f"{command.arguments[0]}: ended with {status}: {errors}")
    look(watch.places, "the end")
    for now, where in states.values():
        check(command, before, watch.renamed, now, where)
    for copy in copies.iterdir():
        loads(copy, command.out)
    shutil.rmtree(copies)
    return watch.places, len(states)


def loads(copy: Path, finished: Path) -> None:
    """Whether what a killed export left loads as one model, or is refused by name."""
    import jax
    import numpy as np

    from datar_jax.checkpoints.model_info import ModelError
    from datar_jax.checkpoints.pretrained import load_pretrained

    with contextlib.suppress(ModelError):
        found = load_pretrained(copy)
        if (found.params is None) != (load_pretrained(finished).params is None):
            raise Broken(f"{finished}: another format in between")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params or {}))


def full_disks(command: Command, most: int, places: int) -> int:
    """Runs the command with a disk that is full from some place on; how many runs there were."""
    original = command.out.with_name(f"{command.out.name}-original")
    if command.out.exists():
        shutil.copytree(command.out, original)
    numbers = sorted({1 + i * (places - 1) // max(most - 1, 1) for i in range(min(most, places))})
    for first in numbers:
        shutil.rmtree(command.out, ignore_errors=True)
        if original.exists():
            shutil.copytree(original, command.out)
        before = state_of(command.out)

        def fail(number: int, what: str, first: int = first) -> None:
            removal = what.startswith(("os.remove", "os.rmdir", "after"))
            if number >= first and not removal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what.rpartition(" ")[2])

        with watched(command.out, fail) as watch:
            status, errors = run(command)
        where = f"disk full from place {first} of {places}"
        if "Traceback" in errors or (status not in (0, 1) and not errors.strip()) or status not in (0, 1, 2):
            raise Broken(f"{command.arguments[0]}, {where}: status {status}, {errors}")
        check(command, before, watch.renamed, state_of(command.out), where)
    shutil.rmtree(original, ignore_errors=True)
    return len(numbers)


def attack(command: Command, most: int) -> tuple[int, int, int]:
    """Kills and full disks over the folder as it is, which then has the result of the command."""
    aside = command.out.with_name(f"{command.out.name}-before")
    if command.out.exists():
        shutil.copytree(command.out, aside)
    places, states = kills(command)
    finished = command.out.with_name(f"{command.out.name}-finished")
    command.out.rename(finished)
    if aside.exists():
        aside.rename(command.out)
    full = full_disks(command, most, places) if most else 0
    shutil.rmtree(command.out, ignore_errors=True)
    finished.rename(command.out)
    return places, states, full


def commands(place: Path) -> dict[str, list[Command]]:
    """Every command, first into a new folder and then over another result."""
    sounds, work = place / "sounds", place / "run"
    some = [str(path) for path in sorted(sounds.rglob("*.wav"))[:3]]
    data = [f"--config={ROOT / 'configs/csv.py'}", f"--config.data.root={sounds}"]
    train = ["train", *data, f"--workdir={work}", *(f"--config.{name}={value}" for name, value in FIELDS.items())]
    out = place / "out"
    found = {
        "train": [Command([*train, "--config.train.epochs=1"], work)] * 2,
        "predict": [
            Command(["predict", str(work), *some, f"--top={top}", f"--format={form}", f"--out={out / 'predict/a'}",
                     f"--events={out / 'predict/e.csv'}", f"--audacity={out / 'predict/tracks'}", f"--onset={onset}"],
                    out / "predict")
            for top, onset, form in ((1, 0.1, "csv"), (2, 0.2, "csv"), (2, 0.2, "jsonl"))
        ],
        "embed": [
            Command(["embed", str(work), *files, f"--out={out / kind}", f"--format={kind}"], out / kind, together=True)
            for kind in ("npy", "parquet") for files in (some[:2], some)
        ],
        "visualize": [
            Command(["visualize", str(work), sound, f"--out={out / 'visualize' / 'a.png'}"], out / "visualize")
            for sound in some[:2]
        ],
        "evaluate": [
            Command(["evaluate", str(work), *data, f"--split={split}", f"--out={out / 'evaluate'}",
                     f"--config.data.cache={place / 'run/cache'}"], out / "evaluate", together=True)
            for split in ("test", "all")
        ],
        "export": [
            Command(["export", str(work), str(out / form), f"--format={form}", f"--weights={weights}"],
                    out / form, load=form in ("params", "safetensors"))
            for form in ("params", "safetensors", "stablehlo", "onnx")
            for weights in ("float32", "float32" if form == "onnx" else "bfloat16")
        ],
        "prepare": [
            Command(["prepare", "esc50", f"--lists={place / lists}", f"--audio={place / 'esc'}",
                     f"--out={out / 'prepare'}", "--workers=1", "--shard-clips=4"], out / "prepare")
            for lists in ("lists", "lists", "other-lists")
        ],
    }  # fmt: skip
    return found


FIELDS = {
    "audio.sample_rate": 8000, "audio.n_mels": 32, "audio.hop_ms": 25, "audio.window_ms": 50,
    "augment.freq_width": 4, "model.dims": "8", "model.spec": "D", "model.heads": "2",
    "model.deformable.groups": "2", "model.deformable.strides": "2", "model.deformable.kernels": "3",
    "model.stem": "patch", "model.mlp": "plain", "model.local_perception": "false",
    "train.batch_size": 8, "train.eval_batch_size": 8, "train.checkpoint_every_epochs": 1,
}  # fmt: skip


def write_data(place: Path) -> None:
    """Thirty clips with a list, and the same as a small ESC-50 with two lists."""
    from datar_jax.data.synthetic import write_dataset
    from datar_jax.data.synthetic_sounds import KINDS

    write_dataset(place / "sounds", clips_per_class=3, seconds=0.5, seed=0)
    splits, lines, rows = ("train", "validation", "test"), ["path,label,split"], ["filename,fold,target,category"]
    (place / "esc").mkdir()
    for target, kind in enumerate(KINDS):
        for i, split in enumerate(splits):
            lines.append(f"{kind}/{kind}_{i:03d}.wav,{kind},{split}")
            name = f"{i + 1}-{target}{i}-A-{target}.wav"
            shutil.copy(place / "sounds" / kind / f"{kind}_{i:03d}.wav", place / "esc" / name)
            rows.append(f"{name},{i + 1},{target},{kind}")
    (place / "sounds/manifest.csv").write_text("\n".join(lines) + "\n")
    for name, kept in (("lists", rows), ("other-lists", rows[:-3])):
        (place / name).mkdir()
        (place / name / "esc50.csv").write_text("\n".join(kept) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--full", type=int, default=8, help="full disks of each call (8)")
    parser.add_argument("--only", nargs="*", help="commands (all)")
    parser.add_argument("--keep", type=Path, help="where to work, and to leave everything; must not exist")
    given = parser.parse_args(arguments)
    place = Path(given.keep or tempfile.mkdtemp(prefix="torn-writes-")).resolve()
    place.mkdir(parents=True, exist_ok=given.keep is None)
    began = time.monotonic()
    sys.addaudithook(audit)
    broken = 0
    try:
        write_data(place)
        for name, calls in commands(place).items():
            if given.only and name not in given.only and name != "train":
                continue
            for command in calls:
                try:
                    places, states, full = attack(command, given.full)
                    print(f"{name} {command.out.name}: {places} places, {states} states, {full} full disks", flush=True)
                except Broken as error:
                    broken += 1
                    print(f"BROKEN: {error}", flush=True)
    finally:
        if given.keep is None and not broken:
            shutil.rmtree(place)
    print(f"{f'{broken} laws broken; everything lies in {place}' if broken else 'all laws held'}; "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
