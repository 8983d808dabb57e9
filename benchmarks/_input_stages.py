"""Stages that `input_pipeline.py` times on one core: the baseline, the pipeline for every source, and parts of both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import librosa
import msgspec
import numpy as np
import soundfile
from array_record.python.array_record_module import ArrayRecordReader

from datar_jax.audio.decode import decode
from datar_jax.audio.framing import frame_bounds, frame_samples, num_samples
from datar_jax.audio.log_mel import log_mel_frames
from datar_jax.audio.log_mel_jax import log_mel_jax
from datar_jax.audio.recording import Batch
from datar_jax.config import AudioConfig, DataConfig, MeshConfig
from datar_jax.data import prepared as shards
from datar_jax.data.dataset import Dataset
from datar_jax.data.loader import TrainBatches, train_batches
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources import array_record
from datar_jax.data.sources.base import ClipSource, usable
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.filesystem import storage_path
from datar_jax.models.flops import macs
from datar_jax.training.sharding import batch_sharding, make_mesh

SECONDS, BATCH = 5.0, 32
HOST = AudioConfig()
FRONT_ENDS = {"host": HOST, "device": msgspec.structs.replace(HOST, frontend="device")}
ORIGINS = {"pcm": "pcm shards", "flac": "flac shards", "cache": "cache of a folder"}
ONE_CORE = {  # environment of the process that is timed
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}

Turn = Callable[[int], int]  # what a contestant does in the round of that number; returns for how many clips
Item = TypeVar("Item")


class Costs(NamedTuple):
    """CPU milliseconds a clip, by contestant and part of its work."""

    spent: dict[tuple[str, str], float]
    macs: int  # multiply-accumulates a clip of the device's front end

    def whole(self, name: str) -> float:
        """From the file to jax."""
        return self.spent[name, "batch"] + self.spent[name, "transfer"]


def measure(root: Path, folder: Path, rounds: int, clips: int = 32) -> Costs:
    """Times all on one core, in turns; for a process of its own, whose environment is `ONE_CORE`.

    Args:
      root: sounds.
      folder: of their shards, by coding; a cache is made there.
      rounds: of which the median is taken; one more, the first, warms up.
      clips: of a round; of what is fast, four times as many.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    files = [clip.path for clip in read_dataset(DataConfig(root=str(root))).clips]
    contestants = {("plain", part): turn for part, turn in plain(files, clips).items()}
    for origin in ORIGINS:
        for front, audio in FRONT_ENDS.items():
            dataset, store = opened(root, folder, origin, audio)
            turns = batching(drawn(dataset, store), -(-4 * clips // BATCH))
            if isinstance(store, array_record.ArrayRecordSource):
                compare(dataset, store, files)
                turns |= parts(dataset, store, clips)
            contestants |= {(f"{origin} {front}", part): turn for part, turn in turns.items()}
    contestants["device", "mel"], products = front_end()
    contestants["preparing", "decode"] = over(files, clips, lambda path: decode(path, HOST.sample_rate))
    return Costs(interleaved(contestants, rounds), products)


def interleaved(contestants: dict[tuple[str, str], Turn], rounds: int) -> dict[tuple[str, str], float]:
    """Median CPU milliseconds a clip of each."""
    spent: dict[tuple[str, str], list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, turn in contestants.items():
            start = time.process_time()
            clips = turn(number)
            spent[name].append(1e3 * (time.process_time() - start) / clips)
    return {name: median(times[1:]) for name, times in spent.items()}


def over(items: Sequence[Item], count: int, work: Callable[[Item], object]) -> Turn:
    """A turn that works on `count` items, in every round on the next ones."""

    def turn(number: int) -> int:
        for i in range(number * count, (number + 1) * count):
            work(items[i % len(items)])
        return count

    return turn


# The plain chain: as written with soundfile and librosa, one clip after another.


def load(path: str) -> tuple[np.ndarray, float]:
    sound, rate = soundfile.read(path, dtype="float32")
    return librosa.to_mono(sound.T), rate


def resample(sound_N: np.ndarray, rate: float) -> np.ndarray:
    return librosa.resample(sound_N, orig_sr=rate, target_sr=HOST.sample_rate)


def features(sound_N: np.ndarray) -> np.ndarray:
    power_FxT = librosa.feature.melspectrogram(
        y=sound_N,
        sr=HOST.sample_rate,
        n_fft=HOST.n_fft,
        win_length=HOST.win_length,
        hop_length=HOST.hop_length,
        pad_mode="reflect",
        n_mels=HOST.n_mels,
        fmin=HOST.fmin,
    )
    return librosa.power_to_db(power_FxT, amin=10 ** (HOST.floor_db / 10), top_db=None)


def plain(files: list[str], clips: int) -> dict[str, Turn]:
    loaded = [load(path) for path in files[:clips]]
    resampled = [resample(*sound) for sound in loaded]
    return {
        "batch": over(files, clips, lambda path: features(resample(*load(path)))),
        "decode": over(files, clips, load),
        "resample": over(loaded, clips, lambda sound: resample(*sound)),
        "mel": over(resampled, clips, features),
    }


def compare(dataset: Dataset, store: array_record.ArrayRecordSource, files: list[str]) -> None:
    """Raises unless both chains compute the same."""
    for i, clip in enumerate(dataset.clips[:4]):
        path = next(path for path in files if path.rpartition(".")[0].endswith(f"/{clip.name}"))
        theirs_FxT, ours_FxT = features(resample(*load(path))), store.get(i).T
        apart = float(np.median(np.abs(theirs_FxT[:, : ours_FxT.shape[1]] - ours_FxT)))
        if not apart < 0.1:
            raise ValueError(f"{path}: the plain chain and ours are {apart:.2g} dB apart")


# Ours


def opened(root: Path, folder: Path, origin: str, audio: AudioConfig) -> tuple[Dataset, ClipSource]:
    """The clips of one origin; a cache is made where there is none."""
    if origin == "cache":
        dataset = read_dataset(DataConfig(root=str(root)))
        return dataset, open_cache(dataset, audio, folder / "cache")
    dataset = read_dataset(DataConfig(root=str(folder / origin), kind="prepared"))
    assert dataset.card
    there = storage_path(str(folder / origin), "--workdir")
    return dataset, array_record.open_shards(there, dataset.card, dataset.clips, audio, folder)


def drawn(dataset: Dataset, store: ClipSource, threads: int = 1, workers: int = 0) -> TrainBatches:
    """Batches as training draws them: in random order, windows at random places."""
    indices, _ = usable(store, np.arange(len(dataset)))
    config = DataConfig(threads=threads, workers=workers)
    return train_batches(store, dataset, indices, store.audio.frames(SECONDS), BATCH, 0, config)


def batching(batches: TrainBatches, count: int) -> dict[str, Turn]:
    """Whole batches, and their way into jax."""
    sharding = batch_sharding(make_mesh(MeshConfig(data=1), jax.devices()[:1]))

    def transfer(batch: Batch) -> None:
        jax.block_until_ready(jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch))

    draw, move = over(range(1 << 20), count, batches.read), over([batches.read(0)], count, transfer)
    return {"batch": lambda number: BATCH * draw(number), "transfer": lambda number: BATCH * move(number)}


def parts(dataset: Dataset, store: array_record.ArrayRecordSource, clips: int) -> dict[str, Turn]:
    """Times the parts of a batch from shards separately; first window of each clip."""
    readers = {name: ArrayRecordReader(f"{store.path}/{name}", array_record.READING) for name in store.names}
    contents = [readers[clip.path].read([clip.record])[0] for clip in dataset.clips]
    turns = {
        "read": over(dataset.clips, clips, lambda clip: readers[clip.path].read([clip.record])),
        "decode": over(contents, clips, lambda content: shards.decode_record(content, 1 << 20)),
    }
    if store.audio.frontend == "host":
        excerpts = [first_window(store, i) for i in range(min(clips, len(dataset)))]
        turns["mel"] = over(excerpts, clips, lambda excerpt_N: log_mel_frames(excerpt_N, store.audio))
    return turns


def first_window(store: array_record.ArrayRecordSource, index: int) -> np.ndarray:
    frames, length = min(int(store.frames[index]), store.audio.frames(SECONDS)), int(store.lengths[index])
    first, last = frame_bounds(length, store.audio, 0, frames)
    samples_N, scale = store.read(index, first, last)
    return frame_samples(samples_N, first, length, store.audio, 0, frames) * np.float32(scale)


def front_end() -> tuple[Turn, int]:
    """The device's front end by itself, on this core, and its multiply-accumulates a clip."""
    audio = FRONT_ENDS["device"]
    frames = audio.frames(SECONDS)
    sound_BxN = 0.1 * jax.random.normal(jax.random.key(0), (BATCH, num_samples(audio, frames)))
    frames_B = jnp.full(BATCH, frames)
    run = jax.jit(lambda sound_BxN: log_mel_jax(sound_BxN, frames_B, audio))

    def turn(_: int) -> int:
        jax.block_until_ready(run(sound_BxN))
        return BATCH

    return turn, macs(run, sound_BxN) // BATCH
