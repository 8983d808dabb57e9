"""Speech Commands v2: 105,829 recordings of one second, 35 words (Warden, arXiv 1804.03209)."""

from __future__ import annotations

from pathlib import Path

from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.config import ConfigError
from datar_jax.data.csv_table import lines
from datar_jax.data.datasets.annotations import SkippedRows, build_annotations, require_list
from datar_jax.data.datasets.base import Annotations, DatasetSpec, Download, FilePatterns, Segment
from datar_jax.labels import Head
from datar_jax.wording import count

CLASSES = 35
NAMING = FilePatterns(cut=("{id}",))  # with its folder: a speaker's file has the same name for every word


def read(folder: Path) -> Annotations:
    """Reads the unpacked archive: a class is a folder, and a file that neither list names is for training.

    Folders that begin with `_` or `.` are no words: `_background_noise_` has minutes of noise without a split.

    Raises:
      ConfigError: a list is not there or cannot be used; names file and row.
    """
    left = SkippedRows()
    paths = {
        require_list(folder, name, f"*/{name}", f"*/*/{name}"): split
        for name, split in (("validation_list.txt", "validation"), ("testing_list.txt", "test"))
    }
    root = next(iter(paths)).parent
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    labels = {word.name: (i,) for i, word in enumerate(f for f in folders if f.name[0] != "_")}
    notes = [f"{len(labels)} words, not {CLASSES}"] if len(labels) != CLASSES else []
    segments: list[Segment] = []
    for path, split in paths.items():
        for row, line in enumerate(lines(path), start=1):
            name = line.strip().removeprefix("./")
            word, _, file = name.partition("/")
            if not name:
                continue
            if word not in labels or not file:
                raise ConfigError(f"{path}, row {row}: {name!r} is in no folder of a word below {root}")
            stem = name.removesuffix(Path(file).suffix)
            segments.append(Segment(stem, labels[word], split, None, NAMING, source=path.name, row=row))
    listed = {segment.id for segment in segments}
    for inside in folders:
        files = sorted(f.name for f in inside.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
        if inside.name not in labels:
            notes.append(f"{inside.name}: {count(len(files), 'sound is', 'sounds are')} left out, it is no word")
            continue
        for file in files:
            stem = f"{inside.name}/{Path(file).stem}"
            if stem not in listed:
                segments.append(Segment(stem, labels[inside.name], "train", None, NAMING, source=inside.name))
    return build_annotations(segments, [Head("class", tuple(labels))], "single", list(paths), left, notes)


CORPUS = DatasetSpec(
    title="Speech Commands v2",
    read=read,
    lists="the unpacked archive, with validation_list.txt, testing_list.txt and a folder of files per word",
    terms="CC BY 4.0",
    downloads=(
        # The hash and the size are those that TensorFlow Datasets and torchaudio state.
        Download(
            url="https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
            name="speech_commands_v0.02.tar.gz",
            sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            size=2_428_923_189,
        ),
    ),
)
