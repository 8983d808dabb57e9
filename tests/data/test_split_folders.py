"""Folders that are named as splits are the splits, and never classes."""

import msgspec
import pytest

from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.readers import read_dataset
from datar_jax.data.splits import split


def tree(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return DataConfig(root=str(root))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "test"), ("train", "test")),
        (("Train", "TEST"), ("train", "test")),
        (("training", "testing", "validation"), ("train", "test", "validation")),
        (("train", "val", "test"), ("train", "validation", "test")),
        (("train", "valid", "eval"), ("train", "validation", "test")),
        (("dev", "eval"), ("train", "test")),
        (("train", "dev", "test"), ("train", "validation", "test")),
        (("train", "val"), ("train", "test")),
        (("train", "dev"), ("train", "test")),
    ],
)
@pytest.mark.parametrize("below", [False, True])
def test_folders_of_splits_are_recognised(tmp_path, folders, expected, below):
    classes = ("dog", "cat")
    names = [f"{c}/{f}/{i}.wav" if below else f"{f}/{c}/{i}.wav" for f in folders for c in classes for i in range(3)]
    config = msgspec.structs.replace(tree(tmp_path, [*names, "readme.txt"]), validation_fraction=0.0)
    dataset = read_dataset(config)
    assert dataset.labels == ("cat", "dog")
    each = split(dataset, config)
    for folder, name in zip(folders, expected):
        found = {dataset.clips[i].name for i in getattr(each, name)}
        assert {n for n in names if f"/{folder}/" in f"/{n}"} <= found
    assert len(each.train) + len(each.validation) + len(each.test) == len(names)
    assert f"{folders[0]}/ is the train split" in dataset.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.wav", "car/1.wav"),  # the sound of a train
        ("train/1.wav", "test/1.wav", "dog/1.wav"),
        ("train/a/1.wav", "train/b/1.wav"),
        ("val/a/1.wav", "test/b/1.wav"),  # nothing to train on
    ],
)
def test_a_class_may_be_named_like_a_split(tmp_path, names):
    dataset = read_dataset(tree(tmp_path, names))
    assert dataset.labels == tuple(sorted({name.split("/")[0] for name in names}))


def test_splits_without_classes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"named as splits.*train/CLASS.*train_list"):
        read_dataset(tree(tmp_path, ("train/1.wav", "test/1.wav")))
