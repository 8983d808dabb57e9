"""The identity of a data set: any difference is found and named, and a move of the files is none."""

import os
import shutil
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.identity import (
    differences,
    identity,
    look_at_files,
    read_identity,
    with_checksums,
    write_identity,
)
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.data.splits import Splits
from datar_jax.labels import Head
from tests.data.sources.test_feature_cache import count_decodes
from tests.data.test_readers import AUDIO, folder_of, write

SPLITS = {1: Splits(np.array([0, 1]), np.array([2]), np.array([3]))}


def of(dataset, splits=SPLITS, before=None):
    content = look_at_files(dataset)
    before = before.content if before else content._replace(times=content.times - 1)  # so that each file is read
    return identity(dataset, splits, with_checksums(dataset, content, before))


@pytest.fixture
def dataset(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.wav").write_bytes(bytes([i]) * 100)
    clips = tuple(Clip(str(tmp_path / f"{i}.wav"), f"{i}.wav", (i % 2,)) for i in range(4))
    return Dataset(clips, ("bark", "rain"))


def with_clip(dataset, number, **fields):
    clips = list(dataset.clips)
    clips[number] = replace(clips[number], **fields)
    return replace(dataset, clips=tuple(clips))


def overwritten(dataset, number):
    path = Path(dataset.clips[number].path)
    path.write_bytes(bytes(100))
    os.utime(path, ns=(1, 1))
    return dataset


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda d: with_clip(with_clip(d, 0, labels=(1,)), 1, labels=(0,)), "2 clips (0.wav, 1.wav) with other labels"),
        (lambda d: replace(d, labels=("bark", "wind")), "no class 'rain' and a new class 'wind'"),
        (lambda d: replace(d, labels=("rain", "bark")), "the 2 classes in another order"),
        (lambda d: replace(d, heads=(Head("what", ("bark", "rain")),)), "heads {'what': 2} in place of {}"),
        (lambda d: with_clip(d, 3, name="4.wav"), "1 clip (4.wav) that are new; 1 clip (3.wav) missing"),
        (lambda d: with_clip(d, 3, start=0.5, end=1.0), "1 clip (3.wav 0.5-1) that are new; 1 clip (3.wav) missing"),
        (lambda d: replace(d, clips=d.clips[:3]), "1 clip (3.wav) missing"),
        (lambda d: replace(d, clips=d.clips[::-1]), "4 clips in another order or number"),
        (lambda d: replace(d, clips=(*d.clips, d.clips[0])), "4 clips in another order or number"),
        (lambda d: overwritten(d, 3), "1 clip (3.wav) with another content"),
        (lambda d: Path(d.clips[2].path).unlink() or d, "1 clip (2.wav) with another content"),
        (lambda d: Path(d.clips[2].path).write_bytes(b"longer" * 99) and d, "1 clip (2.wav) with another content"),
    ],
)
def test_every_difference_is_named(dataset, change, phrase):
    before = of(dataset)
    assert differences(dataset, of(dataset, before=before), before) == []
    changed = change(dataset)
    each = SPLITS[1]
    splits = {1: Splits(*(part[part < len(changed)] for part in (each.train, each.validation, each.test)))}
    now = of(changed, splits, before if len(changed) == len(dataset) else None)
    assert "; ".join(differences(changed, now, before)) == phrase


def test_a_clip_on_another_split_is_named(dataset):
    before = of(dataset)
    moved = {1: Splits(np.array([0, 2]), np.array([1]), np.array([3]))}
    assert differences(dataset, of(dataset, moved), before) == ["2 clips (1.wav, 2.wav) with another split"]


def test_files_are_read_only_where_their_time_differs(dataset, monkeypatch):
    before = of(dataset)
    os.utime(dataset.clips[1].path, ns=(5, 5))
    read = []
    monkeypatch.setattr("datar_jax.data.identity.checksum", lambda path: read.append(path) or 7)
    now = with_checksums(dataset, look_at_files(dataset), before.content)
    assert read == [dataset.clips[1].path] and now.sums[1] == 7
    np.testing.assert_array_equal(np.delete(now.sums, 1), np.delete(before.content.sums, 1))


def test_a_record_is_read_as_it_was_written_and_a_damaged_one_is_refused(dataset, tmp_path):
    path = tmp_path / "record"
    assert read_identity(path) is None
    write_identity(path, of(dataset))
    assert read_identity(path) == of(dataset)
    content = path.read_bytes()
    short = msgspec.structs.asdict(of(dataset)) | {"marks": b"1234"}
    bomb = zlib.compress(bytes(10_000_000))
    packed = (zlib.compress(b"\xc1"), zlib.compress(msgspec.msgpack.encode(short)))
    for each in (b"", content[:-1], b"?" + content[1:], *packed, bomb):
        path.write_bytes(each)
        with pytest.raises(ConfigError, match=r"record: not readable \(.*delete it to continue without that check"):
            read_identity(path)


def test_the_cache_follows_its_sounds_and_never_gives_those_of_others(tmp_path, monkeypatch):
    """Moved files, with their times or without, are decoded once; replaced ones are never taken for the old ones."""
    sounds = read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds"))))
    first = open_cache(sounds, AUDIO, tmp_path / "cache")
    calls = count_decodes(monkeypatch)
    for copy in (shutil.copy2, shutil.copyfile):
        shutil.copytree(tmp_path / "sounds", tmp_path / copy.__name__, copy_function=copy)
        moved = read_dataset(DataConfig(root=str(tmp_path / copy.__name__)))
        again = open_cache(moved, AUDIO, tmp_path / "cache")
        assert not calls and (again.get(3) == first.get(3)).all()
        np.testing.assert_array_equal(again.content.sums, first.content.sums)
    replaced = Path(moved.clips[3].path)
    size = replaced.stat().st_size
    write(replaced, first.seconds[3], seed=99)
    assert replaced.stat().st_size == size, "of equal length"
    other = open_cache(moved, AUDIO, tmp_path / "cache")
    assert len(calls) == 18 and (other.get(3) != first.get(3)).any() and (other.get(2) == first.get(2)).all()
    calls.clear()
    assert (open_cache(sounds, AUDIO, tmp_path / "cache").get(3) == first.get(3)).all() and not calls


def test_one_process_computes_a_cache_and_another_waits_for_it(tmp_path):
    sounds = read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds"))))
    lines, found, waits = [], [], threading.Event()

    def log(line):
        lines.append(line)
        waits.set()

    waiting = threading.Thread(target=lambda: found.append(open_cache(sounds, AUDIO, tmp_path / "cache", None, log)))

    def progress(done, total):
        del total
        if done == 1:
            waiting.start()
            assert waits.wait(60)

    first = open_cache(sounds, AUDIO, tmp_path / "cache", progress)
    waiting.join(60)
    assert (found[0].get(5) == first.get(5)).all()
    assert len(lines) == 1 and f"cache: another process ({os.getpid()} on " in lines[0]
    assert len(list((tmp_path / "cache").glob("*.frames"))) == 1
