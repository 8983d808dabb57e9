"""Event detection in long recordings: onset errors, memory and time.

    python benchmarks/long_recordings.py [--model=RUN] [--minutes=10,60] [--rate=44100] [--overlap=0.75]
        [--onset=0.5] [--offset=0.4] [--workdir=DIR]

Events of 1 to 6 s are made as `datar_jax.data.synthetic` makes them, some seconds apart, over faint noise, the last one
up to the end. `RUN` is what `datar_jax.load` reads, a model of those kinds; without one, a model that detects any sound
by its level, whose errors are those of the windows alone. Every length runs in a process of its own. Prints a table
in Markdown: the drift is the slope of the onsets' errors over the recording, with its standard error. Linux.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import soundfile

from datar_jax.audio.recording import Batch
from datar_jax.config import AudioConfig
from datar_jax.data.synthetic_sounds import KINDS
from datar_jax.inference.events import Event, EventSettings
from datar_jax.inference.predict import Prediction, Scorer, predict_files

FLOOR = 0.003  # deviation of the noise
COLUMNS = ("minutes", "events", "found", "too many", "onset ms, mean", "median", "worst", "drift ms/h", "MB", "x time")


class Truth(NamedTuple):
    label: str
    onset: float  # seconds
    offset: float


class Level:
    """Detects a sound wherever a window is louder than the noise."""

    labels, heads, audio, frames, reads = ("sound",), (), AudioConfig(n_mels=32, hop_ms=20.0), 100, "mel"

    def score(self, batch: Batch) -> np.ndarray:
        loud_B = batch["mel"].max((1, 2)) > -30  # dB; the noise stays below -39, the events reach 0 and more
        return np.where(loud_B, np.float32(0.99), np.float32(0.01))[:, None]


def write(path: Path, minutes: int, rate: int, labels: tuple[str, ...]) -> list[Truth]:
    """Writes a recording, ten seconds at a time, and returns what is in it."""
    rng = np.random.default_rng(minutes)
    kinds = [kind for kind in KINDS if kind in labels] or list(KINDS)
    total, truth, at = 60 * minutes * rate, [], round(2.0 * rate)
    while at < total:
        kind, length = kinds[rng.integers(len(kinds))], round(rng.uniform(1, 6) * rate)
        if total - at < 8 * rate:  # the last one
            at, length = total - 3 * rate, 3 * rate
        truth.append((kind, at, length))
        at += length + round(rng.uniform(3, 9) * rate)
    rest = np.zeros(0)
    todo = iter(truth)
    kind, at, length = next(todo)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for first in range(0, total, 10 * rate):
            part = FLOOR * rng.standard_normal(10 * rate)
            part[: rest.size] += rest
            rest = np.zeros(0)
            while first <= at < first + part.size:
                sound = KINDS[kind](rng, length, rate)
                fade = np.clip(np.arange(length) / (0.01 * rate), 0, 1)
                sound *= 0.1 * fade * fade[::-1] / (np.sqrt(np.mean(sound**2)) + 1e-12)
                here = part[at - first :][:length]
                here += sound[: here.size]
                rest = sound[here.size :]
                kind, at, length = next(todo, ("", total, 0))
            file.write(np.clip(part, -1, 1))
    return [Truth(kind if kind in labels else labels[0], at / rate, (at + length) / rate) for kind, at, length in truth]


def hear(model_path: str, path: Path, rules: EventSettings, overlap: float) -> tuple[Prediction, float, float]:
    """What the model hears, megabytes that this took at its peak beyond what it took to begin, and seconds."""
    model = load(model_path)
    next(predict_files(model, [path.with_name("short.wav")], rules, overlap))  # compiles
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    (answer,) = predict_files(model, [path], rules, overlap)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(answer, Prediction), answer
    return answer, (after - before) / 1024, seconds


def load(path: str) -> Scorer:
    if not path:
        return Level()
    import datar_jax

    return datar_jax.load(path)  # type: ignore[attr-defined]


def errors(truth: list[Truth], events: tuple[Event, ...]) -> np.ndarray:
    """(time, error) of the onsets that were found, in seconds: each event's first overlap of its class, used once."""
    found, free = [], list(events)
    for each in truth:
        over = [e for e in free if e.label == each.label and e.onset < each.offset and e.offset > each.onset]
        if over:
            free.remove(over[0])
            found.append((each.onset, over[0].onset - each.onset))
    return np.array(found).reshape(-1, 2)


def cells(minutes: int, truth: list[Truth], answer: Prediction, megabytes: float, seconds: float) -> list[Any]:
    """One row of the table."""
    kinds = {each.label for each in truth}
    events = tuple(event for event in answer.events if event.label in kinds)
    found = errors(truth, events)
    when, error = found.T
    (slope, _), covariance = np.polyfit(when / 3600, 1000 * error, 1, cov=True)
    numbers = [1000 * np.abs(error).mean(), 1000 * np.median(error), 1000 * np.abs(error).max()]
    return [
        *(minutes, len(truth), len(found), len(events) - len(found)),
        *(f"{number:.0f}" for number in numbers),
        f"{slope:.0f} ± {np.sqrt(covariance[0, 0]):.0f}",
        f"{megabytes:.0f}",
        f"{60 * minutes / seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="a run or an export; a model of levels otherwise")
    parser.add_argument("--minutes", default="10,60")
    parser.add_argument("--rate", type=int, default=44_100, help="Hz of the recordings")
    parser.add_argument("--overlap", type=float, default=0.75)
    parser.add_argument("--onset", type=float, default=EventSettings.onset)
    parser.add_argument("--offset", type=float, default=EventSettings.offset)
    parser.add_argument("--workdir", type=Path, help="where recordings are kept; nowhere otherwise")
    given = parser.parse_args()
    rules = EventSettings(given.onset, given.offset)
    labels = tuple(load(given.model).labels)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.workdir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "short.wav", 1, given.rate, labels)
        for minutes in map(int, given.minutes.split(",")):
            path = folder / f"{minutes}.wav"
            truth = write(path, minutes, given.rate, labels)
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                heard = pool.submit(hear, given.model, path, rules, given.overlap).result()
            print("| " + " | ".join(map(str, cells(minutes, truth, *heard))) + " |", flush=True)
            if not given.workdir:
                path.unlink()


if __name__ == "__main__":
    main()
