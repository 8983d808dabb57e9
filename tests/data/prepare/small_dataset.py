"""A small data set to prepare, and its shards as tests read them."""

from datar_jax.config import AudioConfig, DataConfig
from datar_jax.data.datasets.base import Annotations, DatasetSpec, FilePatterns, Segment
from datar_jax.data.prepare.build import build_dataset
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.array_record import open_shards
from datar_jax.filesystem import storage_path
from datar_jax.labels import Head

AUDIO = AudioConfig(sample_rate=8_000, n_mels=32)


RECIPE = EncodeOptions(AUDIO, shard_clips=3, workers=1)


def listing(folder, *segments):
    (folder / "list.csv").write_text("the list")
    heads = (Head("class", ("bark", "chirp", "moo")),)
    return Annotations(segments, heads, "single", (folder / "list.csv",), ("a note",))


def segment(name, label, split, cut=(), whole=(), start=0.0, end=0.0, row=0):
    return Segment(
        name, (label,), split, None, FilePatterns(cut, whole), "", start, end, "list.csv" if row else "", row
    )


def spec(read):
    return DatasetSpec("A Corpus", read, "list.csv", "CC BY 4.0", 8_000)


def run(small, out, options=RECIPE, lines=None, progress=lambda done, total: None):
    log = (lines if lines is not None else []).append
    places = storage_path(str(small[1]), "--audio"), storage_path(str(out), "--out")
    return build_dataset("small", small[0], out, *places, options, progress, log)


def opened(out, audio=AUDIO, cache=None):
    dataset = read_dataset(DataConfig(root=str(out), kind="prepared"))
    return dataset, open_shards(storage_path(str(out), "x"), dataset.card, dataset.clips, audio, cache)


def content(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
