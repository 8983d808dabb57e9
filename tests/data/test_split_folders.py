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
        (("train_set", "test_set"), ("train", "test")),
        (("trainset", "valset", "testset"), ("train", "validation", "test")),
        (("train-clean-100", "dev-clean", "test-clean"), ("train", "validation", "test")),
        (("01 Training data", "02 Test data"), ("train", "test")),
    ],
)
@pytest.mark.parametrize("form", ["{f}/{c}/{i}.wav", "{c}/{f}/{i}.wav", "data/{f}/{c}/{i}.wav", "{c}/x/{f}/{i}.wav"])
def test_folders_of_splits_are_recognised(tmp_path, folders, expected, form):
    classes = ("dog", "cat")
    names = [form.format(f=f, c=c, i=i) for f in folders for c in classes for i in range(3)]
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


@pytest.mark.parametrize("beside", ["unlabeled/1.wav", "extra/dog/1.wav"])
def test_a_folder_beside_splits_makes_them_no_classes(tmp_path, beside):
    with pytest.raises(ConfigError, match=rf"named as splits, but {beside.split('/')[0]} is not.*train_list"):
        read_dataset(tree(tmp_path, ("train/dog/1.wav", "train/cat/1.wav", "test/dog/1.wav", beside)))


@pytest.mark.parametrize(
    "names", [("Dog", "dog"), ("big dog", "big\u00a0dog"), ("big dog", "big  dog"), ("dog", "\uff44\uff4f\uff47")]
)
def test_classes_that_look_alike_are_noted(tmp_path, names):
    config = tree(tmp_path, ("a.wav", "b.wav", "c.wav"))
    for labels, notes in ((names, 1), (("dog", "cat"), 0)):
        rows = [f"{path}.wav,{label},train\n" for path, label in zip("abc", (*labels, "cat"))]
        (tmp_path / "manifest.csv").write_text("path,label,split\n" + "".join(rows), encoding="utf-8")
        found = read_dataset(msgspec.structs.replace(config, kind="csv")).notes
        assert ["differ only in case, spaces or width" in note for note in found] == notes * [True]


def test_splits_without_classes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"named as splits.*train/CLASS.*train_list"):
        read_dataset(tree(tmp_path, ("train/1.wav", "test/1.wav")))
