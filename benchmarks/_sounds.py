"""Recordings and prepared folders for the benchmarks of the input."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import msgspec
import numpy as np
import soundfile

from datar_jax.config import DataConfig
from datar_jax.data import prepared as shards
from datar_jax.data.datasets.base import Annotations, DatasetSpec, FilePatterns, Segment
from datar_jax.data.prepare.build import build_dataset
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.data.readers import read_dataset
from datar_jax.data.synthetic_sounds import KINDS, render
from datar_jax.filesystem import storage_path
from datar_jax.labels import Head

RATE = 44_100  # Hz of the recordings


def record(folder: Path, count: int, seconds: float) -> None:
    """Writes synthetic recordings as Ogg Vorbis, one sub-folder a kind; those that are there stay."""
    for i in range(count):
        kind = list(KINDS)[i % len(KINDS)]
        path = folder / kind / f"{kind}_{i:04d}.ogg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            sound_N = render(kind, np.random.default_rng(i), seconds, RATE)
            soundfile.write(path, sound_N, RATE, "VORBIS", format="OGG")


def shard(sounds: Path, out: Path, recipe: EncodeOptions) -> None:
    """Prepares a folder of sounds, class = sub-folder, all of them for training."""

    def read(_: Path) -> Annotations:
        dataset, naming = read_dataset(DataConfig(root=str(sounds))), FilePatterns(("{id}",))
        clips = ((clip.name.rpartition(".")[0], clip.labels) for clip in dataset.clips)
        segments = tuple(Segment(name, labels, "train", None, naming) for name, labels in clips)
        return Annotations(segments, (Head("class", dataset.labels),), "single", ())

    corpus = DatasetSpec("sounds of a benchmark", read, "", "")
    folders = storage_path(str(sounds), "--root"), storage_path(str(out), "--workdir")
    build_dataset("benchmark", corpus, sounds, *folders, recipe, lambda done, total: None, lambda line: None)


def list_more(prepared: Path, out: Path, train: int, test: int) -> None:
    """A prepared folder that lists as many clips, each under its own name; they share the records of another folder."""
    out.mkdir(parents=True, exist_ok=True)
    card = shards.read_card(storage_path(str(prepared), "--workdir"))
    with (prepared / shards.MANIFEST).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == shards.FOUND]
    with (out / shards.MANIFEST).open("w", newline="") as file:
        # Without checksums: these clips are copies on purpose.
        writer = csv.DictWriter(file, shards.MANIFEST_COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for i in range(train + test):
            split = "train" if i < train else "test"
            writer.writerow(
                {**rows[i % len(rows)], "id": f"{i * 2654435761 % 2**32:08x}_{i}", "split": split, "row": i}
            )
    for name in (shards.STATISTICS, *(each.name for each in card.shards)):
        if not (out / name).exists():
            os.link(prepared / name, out / name)  # a link out of the folder is refused
    here = msgspec.structs.replace(card, listed=train + test, here=train + test)
    (out / shards.CARD).write_bytes(msgspec.json.encode(here))
