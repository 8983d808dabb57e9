"""No sound is learned from and tested on, under whatever name; what cannot be refused is said."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from datar_jax.config import AudioConfig, ConfigError, DataConfig
from datar_jax.data.duplicates import copies, copies_note, learned_note, pack_checksums
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.data.splits import split
from tests import helpers

AUDIO = AudioConfig()


def write(path, seed=0, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, helpers.sound(AUDIO, seconds, seed), AUDIO.sample_rate)


def listed(root, rows, header="path,label,split,start,end"):
    (root / "manifest.csv").write_text(header + "\n" + rows)
    return read_dataset(DataConfig(root=str(root), kind="csv"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.wav,dog,train,0,0", "a.wav,dog,test,0.01,0.31"),
        ("a.wav,dog,train,0,0.3", "a.wav,dog,test,0.2,0.5"),
        ("a.wav,dog,test,0,0.5", "a.wav,dog,train,0.1,0.2"),
        ("a.wav,dog,train,0.5,0", "a.wav,dog,validation,0.6,0.7"),
        ("a.wav,dog,train,0,0", "./a.wav,dog,test,0,0"),
        ("a.wav,dog,train,0,0", "sub/again/a.wav,dog,test,0.1,0"),
        ("a.wav,dog,train,0,0", "link.wav,dog,test,0,0"),
        ("a.wav,dog,train,0,0", "linked/a.wav,dog,test,0,0"),
        ("a.wav,dog,train,0,0", "hard.wav,dog,test,0,0"),
        ("a.wav,dog,train,0,0.3", "hard.wav,dog,test,0.2,0.5"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_one_sound_in_two_splits_is_refused_with_its_rows(tmp_path, first, second, swapped):
    for name in ("a.wav", "b.wav", "c.wav"):
        write(tmp_path / name)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "again").symlink_to("..")
    (tmp_path / "link.wav").symlink_to(tmp_path / "a.wav")
    (tmp_path / "linked").symlink_to(tmp_path)
    os.link(tmp_path / "a.wav", tmp_path / "hard.wav")
    rows = [second, first] if swapped else [first, second]
    dataset = listed(tmp_path, "\n".join(["b.wav,dog,train,0,0", *rows, "c.wav,dog,test,0,0"]) + "\n")
    with pytest.raises(ConfigError, match=r"row [34] .*row [34] ") as caught:
        split(dataset, DataConfig(kind="csv", root=str(tmp_path)))
    assert "same sound" in str(caught.value) or "two splits" in str(caught.value)


def test_parts_that_touch_and_parts_of_one_split_are_fine(tmp_path):
    rows = "a.wav,dog,train,0,0.3\na.wav,dog,train,0.2,0.5\na.wav,dog,test,0.5,0.7\na.wav,dog,train,0.7,0\n"
    assert len(split(listed(tmp_path, rows), DataConfig(kind="csv", root=str(tmp_path))).train) == 3


def test_overlapping_parts_in_two_folds_are_refused(tmp_path):
    rows = "a.wav,dog,1,0,0.3\na.wav,dog,2,0.2,0.5\nb.wav,dog,1,0,0\n"
    dataset = listed(tmp_path, rows, "path,label,fold,start,end")
    with pytest.raises(ConfigError, match="overlap"):
        split(dataset, DataConfig(kind="csv", root=str(tmp_path)), 1)


@pytest.mark.parametrize("front_end", ["host", "device"])
def test_copies_of_training_clips_are_counted_and_named(tmp_path, front_end):
    for i in range(4):
        write(tmp_path / f"{i}.wav", i)
    shutil.copy(tmp_path / "0.wav", tmp_path / "copy.wav")
    shutil.copy(tmp_path / "1.wav", tmp_path / "again.wav")
    soundfile.write(tmp_path / "2.flac", *soundfile.read(tmp_path / "2.wav"))  # the same samples
    rows = "".join(f"{i}.wav,dog,train,0,0\n" for i in range(4))
    rows += "".join(f"{name},dog,test,0,0\n" for name in ("copy.wav", "again.wav", "2.flac", "4.wav", "5.wav"))
    for i in (4, 5):
        write(tmp_path / f"{i}.wav", i)
    dataset = listed(tmp_path, rows)
    source = open_cache(dataset, AudioConfig(frontend=front_end), tmp_path / "cache")
    each = split(dataset, DataConfig(kind="csv", root=str(tmp_path)))
    assert copies(source, each) == [(4, 0), (5, 1), (6, 2)]
    note = copies_note(dataset, source, each)
    assert note.startswith("3 of 5 test clips are copies") and "copy.wav" in note and "0.wav" in note
    again = open_cache(dataset, AudioConfig(frontend=front_end), tmp_path / "cache")
    assert copies(again, each) == copies(source, each)


def test_equal_checksums_of_other_sounds_are_no_copies(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.wav", i)
    rows = "".join(f"{i}.wav,dog,{'train' if i < 2 else 'test'},0,0\n" for i in range(4))
    dataset = listed(tmp_path, rows)
    source = open_cache(dataset, AUDIO, tmp_path / "cache")
    source.checksums[:] = 7
    each = split(dataset, DataConfig(kind="csv", root=str(tmp_path)))
    assert copies(source, each) == [] and copies_note(dataset, source, each) == ""
    assert not np.array_equal(source.get(0), source.get(2))


def test_clips_that_a_model_has_learned_are_known_by_content(tmp_path):
    for i in range(6):
        write(tmp_path / "own" / f"{i}.wav", i)
    rows = "".join(f"own/{i}.wav,dog,{s},0,0\n" for i, s in enumerate(("train", "train", "validation", "test", "test")))
    dataset = listed(tmp_path, rows)
    source = open_cache(dataset, AUDIO, tmp_path / "cache")
    packed = pack_checksums(source, split(dataset, DataConfig(kind="csv", root=str(tmp_path))))
    shutil.copytree(tmp_path / "own", tmp_path / "others" / "under another name")
    other = read_dataset(DataConfig(root=str(tmp_path / "others")))
    again = open_cache(other, AUDIO, tmp_path / "other_cache")
    assert learned_note(again, np.array([3, 4, 5]), packed) == ""
    assert "by, 3 of these 6 clips" in learned_note(again, np.arange(6), packed)
    assert learned_note(again, np.arange(6), b"") is None


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_links_to_one_file_stay_together_where_names_divide(tmp_path, share):
    for i in range(40):
        write(tmp_path / ("ab"[i % 2]) / f"{i}.wav", i, 0.05)
        (tmp_path / ("ab"[i % 2]) / f"link{i}.wav").symlink_to(tmp_path / ("ab"[i % 2]) / f"{i}.wav")
    config = DataConfig(root=str(tmp_path), test_fraction=share, validation_fraction=share)
    dataset = read_dataset(config)
    each = split(dataset, config)
    real = [
        {os.path.realpath(dataset.clips[i].path) for i in part} for part in (each.train, each.validation, each.test)
    ]
    assert all(real) and sum(map(len, real)) == 40
