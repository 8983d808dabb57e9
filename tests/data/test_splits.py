"""Which clips train, validate and test: folds, columns, lists and the hash; groups and classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.readers import read_dataset
from datar_jax.data.splits import check_classes, divide, split
from tests.data.test_readers import folder_of, table_of


def dataset_of(names, **fields):
    """A data set of names alone; the class is the first part of the name."""
    labels = tuple(sorted({name.split("/")[0] for name in names}))
    clips = (Clip(name, name, (labels.index(name.split("/")[0]),), group=name, **fields) for name in names)
    return Dataset(tuple(clips), labels, source="names")


def test_folds_become_splits():
    names = [f"{c}/{i}" for c in "ab" for i in range(6)]
    plain = dataset_of(names)
    clips = tuple(Clip(c.path, c.name, c.labels, fold=1 + i % 3, group=c.name) for i, c in enumerate(plain.clips))
    dataset = Dataset(clips, plain.labels, (1, 2, 3))
    for fold in (1, 2, 3):
        splits = split(dataset, DataConfig(kind="csv", fold=0), fold)
        assert {clips[i].fold for i in splits.test} == {fold}
        assert {clips[i].fold for i in splits.train} == {1, 2, 3} - {fold}
        assert not len(splits.validation)
    splits = split(dataset, DataConfig(kind="csv", fold=1, validation_fold=3))
    assert {clips[i].fold for i in splits.validation} == {3}
    assert {clips[i].fold for i in splits.train} == {2}
    assert sorted(np.concatenate([splits.train, splits.validation, splits.test])) == list(range(12))
    with pytest.raises(ConfigError, match=r"data\.fold=4: .* 1, 2, 3"):
        split(dataset, DataConfig(kind="csv", fold=4))
    with pytest.raises(ConfigError, match=r"data\.validation_fold=5: .* 1, 2, 3"):
        split(dataset, DataConfig(kind="csv", validation_fold=5))
    with pytest.raises(ConfigError, match=r"data\.validation_fold=2: .* test fold"):
        split(dataset, DataConfig(kind="csv", fold=0, validation_fold=2), 2)


def test_a_split_column_is_obeyed(tmp_path):
    rows = "".join(f"{s}{i}.wav,{'xy'[i]},{s}\n" for s in ("train", "validation", "test") for i in range(2))
    dataset = read_dataset(table_of(tmp_path, "path,label,split\n" + rows))
    splits = split(dataset, DataConfig())
    for name in ("train", "validation", "test"):
        assert [dataset.clips[i].name for i in getattr(splits, name)] == [f"{name}0.wav", f"{name}1.wav"]


@given(fraction=st.sampled_from([0.1, 0.2, 0.5]), extra=st.integers(1, 50))
def test_the_hash_keeps_every_side_when_files_are_added(fraction, extra):
    names = [f"{c}/{i}.wav" for c in "ab" for i in range(200)]
    more = sorted([*names, *(f"a/new{i}.wav" for i in range(extra))])
    config = DataConfig(test_fraction=fraction)
    before, after = (
        {dataset.clips[i].name for i in split(dataset, config).test} for dataset in map(dataset_of, (names, more))
    )
    assert before == after & set(names)
    assert len(before) == pytest.approx(400 * fraction, abs=4 * np.sqrt(400 * fraction * (1 - fraction)))


def test_the_hash_is_the_same_on_every_machine():
    dataset = dataset_of([f"{c}/{i}.wav" for c in "ab" for i in range(10)])
    names = [dataset.clips[i].name for i in split(dataset, DataConfig(test_fraction=0.3)).test]
    # as `b2sum -l 64` of the names says: those below 0.3 * 2^64
    assert names == [f"{n}.wav" for n in ("a/1", "a/2", "a/4", "a/5", "a/7", "b/2", "b/5", "b/7")]


def test_groups_never_straddle(tmp_path):
    for c in "ab":
        for speaker in range(12):
            for take in range(3):
                (tmp_path / c).mkdir(exist_ok=True)
                (tmp_path / c / f"spk{speaker}-{take}.wav").touch()
    config = DataConfig(root=str(tmp_path), group=r"(spk\d+)-", test_fraction=0.4)
    dataset = read_dataset(config)
    assert {c.group for c in dataset.clips} == {f"spk{i}" for i in range(12)}
    splits = split(dataset, config)
    parts = (splits.train, splits.validation, splits.test)
    speakers = [{dataset.clips[i].group for i in part} for part in parts]
    assert all(speakers) and sum(map(len, speakers)) == len(set().union(*speakers)) == 12
    with pytest.raises(ConfigError, match=r"data\.group='speaker'"):
        read_dataset(DataConfig(root=str(tmp_path), group="speaker"))


def test_parts_of_one_file_stay_on_one_side_of_the_hash(tmp_path):
    rows = "".join(f"{i}.wav,{'xy'[i % 2]},{s},{s + 1}\n" for i in range(40) for s in range(3))
    config = table_of(tmp_path, "path,label,start,end\n" + rows)
    dataset = read_dataset(config)
    splits = split(dataset, config)
    train, test = ({dataset.clips[i].name for i in part} for part in (splits.train, splits.test))
    assert not train & test


def test_lists_and_folds_that_cut_a_group_are_refused(tmp_path):
    text = "path,label,split\ns1-a.wav,x,train\ns2-a.wav,x,test\ns1-b.wav,x,test\n"
    config = table_of(tmp_path, text)
    split(read_dataset(config), config)
    config = DataConfig(root=str(tmp_path), kind="csv", group=r"s\d")
    with pytest.raises(ConfigError, match=r"group 's1' .*row 2 .*row 4"):
        split(read_dataset(config), config)


def test_list_files_say_which_side(tmp_path):
    folder_of(tmp_path, ("a", "b"), 3)
    (tmp_path / "train.txt").write_text("a/a0.wav\n./b/b0.wav\nb/b1.wav\nb/gone.wav\n\n")
    (tmp_path / "test.txt").write_text("a/a1.wav\nb/b2.wav\n")
    config = DataConfig(root=str(tmp_path), train_list="train.txt", test_list="test.txt")
    dataset = read_dataset(config)
    splits = split(dataset, config)
    names = [[dataset.clips[i].name for i in part] for part in (splits.train, splits.test)]
    assert names == [["a/a0.wav", "b/b0.wav", "b/b1.wav", "b/gone.wav"], ["a/a1.wav", "b/b2.wav"]]
    assert any("1 sound is in neither list" in note for note in dataset.notes)
    (tmp_path / "test.txt").write_text("a/a1.wav\nb/b1.wav\n")
    with pytest.raises(ConfigError, match=r"test.txt, row 2: b/b1.wav is listed twice"):
        read_dataset(config)
    (tmp_path / "test.txt").write_text("c/a1.wav\n")
    with pytest.raises(ConfigError, match=r"test.txt, row 1: c/a1.wav"):
        read_dataset(config)
    with pytest.raises(ConfigError, match=r"data.test_list='none.txt'"):
        read_dataset(DataConfig(root=str(tmp_path), train_list="train.txt", test_list="none.txt"))


def test_many_classes_without_a_test_clip_are_counted():
    dataset = dataset_of([f"{i:03}/x" for i in range(100)])
    (note,) = check_classes(dataset, np.arange(100), np.arange(1))
    names = ", ".join(f"{i:03}" for i in range(1, 21))
    assert note == f"no test clip of class {names} and 79 more: its score will be missing"


def test_classes_without_clips_are_named():
    dataset = dataset_of(["a/0", "a/1", "b/0", "b/1", "c/0"])
    assert check_classes(dataset, np.array([0, 2, 4]), np.array([1])) == (
        "no test clip of class b, c: its score will be missing",
    )
    with pytest.raises(ConfigError, match="no training clip of class b, c"):
        check_classes(dataset, np.array([0]), np.array([1, 2, 3, 4]))
    with pytest.raises(ConfigError, match="no test clip"):
        check_classes(dataset, np.arange(5), np.array([], int))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_validation_clips_come_from_the_training_ones_by_name_alone(share):
    names = [f"{c}/{i}.wav" for c in "ab" for i in range(300)]
    config = DataConfig(validation_fraction=share)
    plain, each = (split(dataset_of(names), c) for c in (DataConfig(validation_fraction=0.0), config))
    np.testing.assert_array_equal(each.test, plain.test)
    np.testing.assert_array_equal(np.union1d(each.train, each.validation), plain.train)
    assert len(each.validation) / len(plain.train) == pytest.approx(share, abs=0.05)
    more = dataset_of(sorted([*names, *(f"a/new{i}.wav" for i in range(50))]))
    kept = {more.clips[i].name for i in split(more, config).validation}
    assert kept & set(names) == {dataset_of(names).clips[i].name for i in each.validation}


def test_no_class_gives_its_last_training_clip_to_validation():
    names = [f"{c}/{i}.wav" for c in "abcdefghij" for i in range(4)]
    dataset = dataset_of(names)
    each = divide(dataset, DataConfig(validation_fraction=0.9))
    tested = {dataset.clips[i].labels[0] for i in each.test}
    taught = {dataset.clips[i].labels[0] for i in each.train}
    there = set(range(10)) - {c for c in tested if sum(dataset.clips[i].labels[0] == c for i in each.test) == 4}
    assert taught == there and len(each.validation)


def test_a_list_with_validation_clips_keeps_them(tmp_path):
    rows = "".join(f"{s}{i}.wav,{'xy'[i % 2]},{s}\n" for s in ("train", "validation", "test") for i in range(20))
    dataset = read_dataset(table_of(tmp_path, "path,label,split\n" + rows))
    assert len(split(dataset, DataConfig(kind="csv")).validation) == 20
