"""From a folder or list to batches: splits, the feature cache, crops and views, resumption, shards."""

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from test_audio import broken
from test_logmel import sound

from datar_jax import cache
from datar_jax.audio import decode
from datar_jax.cache import Features, prepare
from datar_jax.config import AudioConfig, ConfigError, DataConfig
from datar_jax.datasets import Clip, Dataset, read_dataset
from datar_jax.logmel import log_mel
from datar_jax.pipeline import eval_batches, train_batches, views
from datar_jax.splits import check_classes, split
from datar_jax.store import DataError, default_window, report_bad, statistics, usable

AUDIO = AudioConfig(mels=32, hop_ms=20.0)


def write(path, seconds=0.2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(AUDIO, seconds, seed), AUDIO.sample_rate)


def folder_of(root, classes=("cat", "dog", "owl"), clips=6):
    for c, name in enumerate(classes):
        for i in range(clips):
            write(root / name / f"{name}{i}.wav", 0.1 + 0.04 * i, seed=10 * c + i)
    return root


def table_of(root, text):
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.csv").write_text(textwrap.dedent(text).lstrip())
    return DataConfig(root=str(root), kind="csv")


def dataset_of(names, **fields):
    """A data set of names alone; the class is the first part of the name."""
    labels = tuple(sorted({name.split("/")[0] for name in names}))
    clips = (Clip(name, name, (labels.index(name.split("/")[0]),), group=name, **fields) for name in names)
    return Dataset(tuple(clips), labels, source="names")


# Lists and folders


def test_a_folder_tree_gives_classes_and_counts_the_rest(tmp_path):
    folder_of(tmp_path, ("owl", "cat"), 2)
    write(tmp_path / "cat" / "deep" / "er.FLAC")
    write(tmp_path / "loose.wav")
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "cat" / ".hidden.wav").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.wav").touch()
    (tmp_path / "docs").mkdir()
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    assert dataset.labels == ("cat", "owl")
    assert [(c.name, c.labels) for c in dataset.clips] == [
        ("cat/cat0.wav", (0,)),
        ("cat/cat1.wav", (0,)),
        ("cat/deep/er.FLAC", (0,)),
        ("owl/owl0.wav", (1,)),
        ("owl/owl1.wav", (1,)),
    ]
    notes = "\n".join(dataset.notes)
    assert "1 files are no sounds" in notes
    assert "1 sounds lie in" in notes
    assert "docs" in notes


def test_a_relative_root_starts_from_the_base(tmp_path):
    folder_of(tmp_path / "sounds", ("a", "b"), 1)
    assert len(read_dataset(DataConfig(root="sounds"), tmp_path)) == 2


@pytest.mark.parametrize("kind", ["folder", "csv", "esc"])
def test_a_missing_or_empty_root_is_one_line_that_names_the_field(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    for root in ("", str(tmp_path / "none"), str(tmp_path / "empty")):
        with pytest.raises(ConfigError, match=r"^data\.(root|manifest)=") as caught:
            read_dataset(DataConfig(root=root, kind=kind))
        assert "\n" not in str(caught.value)


def test_an_empty_folder_that_is_named_like_a_sound_is_reported(tmp_path):
    folder_of(tmp_path, ("a", "b"), 1)
    (tmp_path / "a" / "x.wav").mkdir()
    (tmp_path / "b" / "y.wav").mkdir()
    write(tmp_path / "b" / "y.wav" / "part.wav")  # a folder with a name of its own liking
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    assert [clip.name for clip in dataset.clips] == ["a/a0.wav", "a/x.wav", "b/b0.wav", "b/y.wav/part.wav"]
    assert prepare(dataset, AUDIO, tmp_path / "cache").bad == (("a/x.wav", "a folder, not a file"),)


def test_odd_names_are_used_and_printed_on_one_line(tmp_path):
    names = ["cat/line\nbreak.wav", "cat/\x1b[31mred.wav", os.fsdecode(b"cat/\xff.wav"), os.fsdecode(b"\xfe/a.wav")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / "plain.wav")
        (tmp_path / "plain.wav").rename(tmp_path / name)
    (tmp_path / os.fsdecode(b"\xfd")).mkdir()
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    assert dataset.labels == ("\\udcfe", "cat")
    assert dataset.notes == ("sub-folders without a sound: \\udcfd",)
    assert sorted(dataset.where(i) for i in range(4)) == [
        "\\udcfe/a.wav",
        "cat/\\udcff.wav",
        "cat/\\x1b[31mred.wav",
        "cat/line\\nbreak.wav",
    ]
    assert (prepare(dataset, AUDIO, tmp_path / "cache").frames == 10).all()


def test_a_folder_that_cannot_be_read_is_no_silent_loss(tmp_path, monkeypatch):
    folder_of(tmp_path, ("a", "b"), 1)
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ConfigError, match=r"^data\.root: .*b' cannot be read \(Permission denied\)"):
        read_dataset(DataConfig(root=str(tmp_path)))


def test_a_folder_linked_into_itself_ends(tmp_path):
    folder_of(tmp_path, ("a", "b"), 1)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(read_dataset(DataConfig(root=str(tmp_path)))) == 2


def test_a_table_with_every_column(tmp_path):
    config = table_of(
        tmp_path,
        """
        path,label,fold,start,end

        x/a.wav,dog; cat,1,,
        "x/b, c.wav",owl,2,0.5,1.25
        """,
    )
    with pytest.raises(ConfigError, match="2 classes"):
        read_dataset(config)
    dataset = read_dataset(DataConfig(root=str(tmp_path), kind="csv", labels="multi"))
    assert dataset.labels == ("cat", "dog", "owl")
    assert dataset.folds == (1, 2)
    first, second = dataset.clips
    assert (first.name, first.labels, first.fold, first.start, first.end, first.row) == ("x/a.wav", (0, 1), 1, 0, 0, 3)
    assert (second.name, second.labels, second.start, second.end) == ("x/b, c.wav", (2,), 0.5, 1.25)
    assert second.path == str(tmp_path / "x/b, c.wav")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,class\na.wav,x\n", ["row 1", "'label'"]),
        ("path,label,strat\na.wav,x,1\n", ["row 1", "'strat'", "start"]),
        ("path,label,label\na.wav,x,1\n", ["row 1", "'label'"]),
        ("path,label\na.wav,x\nb.wav\n", ["row 3", "1 cells"]),
        ("path,label\na.wav,x\nb.wav,\n", ["row 3", "column label"]),
        ("path,label\n,x\n", ["row 2", "column path"]),
        ("path,label,fold\na.wav,x,1\nb.wav,x,one\n", ["row 3", "column fold='one'"]),
        ("path,label,fold\na.wav,x,0\n", ["row 2", "column fold='0'"]),
        ("path,label,split\na.wav,x,train\nb.wav,x,dev\n", ["row 3", "column split='dev'"]),
        ("path,label,start\na.wav,x,half\n", ["row 2", "column start='half'"]),
        ("path,label,start\na.wav,x,nan\n", ["row 2", "column start='nan'"]),
        ("path,label,start,end\na.wav,x,2,1\n", ["row 2", "column end='1'"]),
        ("path,label\na.wav,x\na.wav,y\n", ["row 3", "column path", "row 2"]),
        ("path,label,split,fold\na.wav,x,train,1\n", ["split and fold"]),
        ("path,label\n", ["manifest.csv"]),
    ],
)
def test_errors_in_a_table_name_file_row_and_column(tmp_path, text, named):
    config = table_of(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_dataset(config)
    for part in ["manifest.csv", *named]:
        assert part in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"path,label\n\xff\xfe\x00.wav,x\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_dataset(DataConfig(root=str(tmp_path), kind="csv"))


def test_a_quote_that_is_left_open_is_named(tmp_path):
    config = table_of(tmp_path, 'path,label\na.wav,x\n"b.wav,y\n' + "c.wav,z\n" * 20_000)
    with pytest.raises(ConfigError, match=r"manifest\.csv, row 3 or below: .*is a quote left open\?$"):
        read_dataset(config)


def test_a_fold_of_five_thousand_digits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.csv, row 2, column fold='9+': give a whole number"):
        read_dataset(table_of(tmp_path, f"path,label,fold\na.wav,x,{'9' * 5_000}\n"))


def esc_folder(root, rows, header="filename,fold,target,category"):
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    (root / "meta" / "esc.csv").write_text("\n".join([header, *rows]) + "\n")
    return DataConfig(root=str(root), kind="esc")


def test_an_esc_list_orders_classes_by_target_and_finds_other_endings(tmp_path):
    config = esc_folder(tmp_path, ["a.wav,1,10,rain", "b.wav,2,3,zebra", "c.wav,2,3,zebra"])
    (tmp_path / "audio" / "a.wav").touch()
    (tmp_path / "audio" / "a.flac").touch()
    (tmp_path / "audio" / "b.ogg").touch()
    dataset = read_dataset(config)
    assert dataset.labels == ("zebra", "rain")
    assert [(c.name, c.labels, c.fold) for c in dataset.clips] == [
        ("audio/a.wav", (1,), 1),
        ("audio/b.ogg", (0,), 2),
        ("audio/c.wav", (0,), 2),
    ]


def test_the_esc10_subset_is_what_its_column_says(tmp_path):
    rows = ["a.wav,1,0,dog,True", "b.wav,1,5,cat,False", "c.wav,2,9,rain,True"]
    config = esc_folder(tmp_path, rows, "filename,fold,target,category,esc10")
    assert read_dataset(config).labels == ("dog", "cat", "rain")
    subset = read_dataset(DataConfig(root=str(tmp_path), kind="esc", subset="esc10"))
    assert subset.labels == ("dog", "rain")
    assert [c.labels for c in subset.clips] == [(0,), (1,)]
    assert "1 of 3 rows" in subset.notes[0]


def test_an_esc_target_with_two_names_is_refused(tmp_path):
    config = esc_folder(tmp_path, ["a.wav,1,0,dog", "b.wav,1,0,cat"])
    with pytest.raises(ConfigError, match="row 3, column category='cat'"):
        read_dataset(config)


# Splits


def test_folds_become_sides():
    names = [f"{c}/{i}" for c in "ab" for i in range(6)]
    plain = dataset_of(names)
    clips = tuple(Clip(c.path, c.name, c.labels, fold=1 + i % 3, group=c.name) for i, c in enumerate(plain.clips))
    dataset = Dataset(clips, plain.labels, (1, 2, 3))
    for fold in (1, 2, 3):
        sides = split(dataset, DataConfig(fold=0), fold)
        assert {clips[i].fold for i in sides.test} == {fold}
        assert {clips[i].fold for i in sides.train} == {1, 2, 3} - {fold}
        assert not len(sides.validation)
    sides = split(dataset, DataConfig(fold=1, validation_fold=3))
    assert {clips[i].fold for i in sides.validation} == {3}
    assert {clips[i].fold for i in sides.train} == {2}
    assert sorted(np.concatenate([sides.train, sides.validation, sides.test])) == list(range(12))
    with pytest.raises(ConfigError, match=r"data\.fold=4: .* 1, 2, 3"):
        split(dataset, DataConfig(fold=4))
    with pytest.raises(ConfigError, match=r"data\.validation_fold=5: .* 1, 2, 3"):
        split(dataset, DataConfig(validation_fold=5))
    with pytest.raises(ConfigError, match=r"data\.validation_fold=2: .* test fold"):
        split(dataset, DataConfig(fold=0, validation_fold=2), 2)


def test_a_split_column_is_obeyed(tmp_path):
    rows = "".join(f"{s}{i}.wav,{'xy'[i]},{s}\n" for s in ("train", "validation", "test") for i in range(2))
    dataset = read_dataset(table_of(tmp_path, "path,label,split\n" + rows))
    sides = split(dataset, DataConfig())
    for side in ("train", "validation", "test"):
        assert [dataset.clips[i].name for i in getattr(sides, side)] == [f"{side}0.wav", f"{side}1.wav"]


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
    sides = split(dataset, config)
    speakers = [{dataset.clips[i].group for i in side} for side in (sides.train, sides.test)]
    assert not speakers[0] & speakers[1]
    assert len(speakers[0] | speakers[1]) == 12
    with pytest.raises(ConfigError, match=r"data\.group='speaker'"):
        read_dataset(DataConfig(root=str(tmp_path), group="speaker"))


def test_parts_of_one_file_stay_on_one_side_of_the_hash(tmp_path):
    rows = "".join(f"{i}.wav,{'xy'[i % 2]},{s},{s + 1}\n" for i in range(40) for s in range(3))
    config = table_of(tmp_path, "path,label,start,end\n" + rows)
    dataset = read_dataset(config)
    sides = split(dataset, config)
    train, test = ({dataset.clips[i].name for i in side} for side in (sides.train, sides.test))
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
    sides = split(dataset, config)
    names = [[dataset.clips[i].name for i in side] for side in (sides.train, sides.test)]
    assert names == [["a/a0.wav", "b/b0.wav", "b/b1.wav", "b/gone.wav"], ["a/a1.wav", "b/b2.wav"]]
    assert any("1 sounds are in neither list" in note for note in dataset.notes)
    (tmp_path / "test.txt").write_text("a/a1.wav\nb/b1.wav\n")
    with pytest.raises(ConfigError, match=r"test.txt, row 2: b/b1.wav is listed twice"):
        read_dataset(config)
    (tmp_path / "test.txt").write_text("c/a1.wav\n")
    with pytest.raises(ConfigError, match=r"test.txt, row 1: c/a1.wav"):
        read_dataset(config)
    with pytest.raises(ConfigError, match=r"data.test_list='none.txt'"):
        read_dataset(DataConfig(root=str(tmp_path), train_list="train.txt", test_list="none.txt"))


def test_classes_without_clips_are_named():
    dataset = dataset_of(["a/0", "a/1", "b/0", "b/1", "c/0"])
    assert check_classes(dataset, np.array([0, 2, 4]), np.array([1])) == (
        "no test clip of class b, c: its score will be missing",
    )
    with pytest.raises(ConfigError, match="no training clip of class b, c"):
        check_classes(dataset, np.array([0]), np.array([1, 2, 3, 4]))
    with pytest.raises(ConfigError, match="no test clip"):
        check_classes(dataset, np.arange(5), np.array([], int))


# The cache


@pytest.fixture
def sounds(tmp_path):
    return read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds"))))


def test_the_cache_holds_what_the_front_end_says(sounds, tmp_path):
    calls = []
    features = prepare(sounds, AUDIO, tmp_path / "cache", lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 18) for i in range(18)]
    assert features.bad == ()
    for i, clip in enumerate(sounds.clips):
        mel_FxT = log_mel(decode(clip.path, AUDIO.sample_rate), AUDIO)
        assert features.frames[i] == mel_FxT.shape[1]
        assert features.seconds[i] == pytest.approx(mel_FxT.shape[1] * 0.02)
        np.testing.assert_allclose(features.get(i).T, mel_FxT, atol=0.04)  # half a step of float16 at 80
        np.testing.assert_array_equal(features.get(i, 2, 3), features.get(i)[2:5])
        assert len(features.get(i, 2, 1000)) == features.frames[i] - 2
    assert features.get(0).dtype == np.float16


def count_decodes(monkeypatch):
    calls, lock = [], threading.Lock()

    def counted(path, *args):
        with lock:
            calls.append(path)
        return decode(path, *args)

    monkeypatch.setattr(cache, "decode", counted)
    return calls


def test_a_second_call_decodes_nothing(sounds, tmp_path, monkeypatch):
    calls = count_decodes(monkeypatch)
    first = prepare(sounds, AUDIO, tmp_path / "cache")
    assert sorted(calls) == sorted(clip.path for clip in sounds.clips)
    calls.clear()
    second = prepare(sounds, AUDIO, tmp_path / "cache")
    assert not calls
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.get(7), second.get(7))


def test_other_settings_or_a_changed_file_are_another_cache(sounds, tmp_path, monkeypatch):
    prepare(sounds, AUDIO, tmp_path / "cache")
    calls = count_decodes(monkeypatch)
    assert prepare(sounds, AudioConfig(mels=40, hop_ms=20.0), tmp_path / "cache").get(0).shape[1] == 40
    assert len(calls) == 18
    write(Path(sounds.clips[3].path), 0.6, seed=99)
    changed = prepare(sounds, AUDIO, tmp_path / "cache")
    assert changed.frames[3] == 30


def test_a_null_character_in_a_list_is_a_file_that_is_not_there(tmp_path):
    write(tmp_path / "a.wav")
    dataset = read_dataset(table_of(tmp_path, "path,label\na.wav,x\nb\0.wav,y\n"))
    features = prepare(dataset, AUDIO, tmp_path / "cache")
    assert features.bad == ((f"b\\x00.wav (row 3 of {tmp_path / 'manifest.csv'})", "no such file"),)


def damage_store(folder):
    store = next(folder.glob("*.frames"))
    content = bytearray(store.read_bytes())
    content[len(content) // 2] ^= 0x10
    store.write_bytes(content)


def truncate_store(folder):
    store = next(folder.glob("*.frames"))
    store.write_bytes(store.read_bytes()[:-100])


def write_index(folder, **fields):
    path = next(folder.glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "damage",
    [
        damage_store,
        truncate_store,
        lambda folder: write_index(folder, counts=[10] * 17),
        lambda folder: next(folder.glob("*.frames")).unlink(),
        lambda folder: next(folder.glob("*.json")).write_text("{"),
        lambda folder: next(folder.glob("*.json")).write_text("[]"),
        lambda folder: next(folder.glob("*.json")).write_text("[" * 100_000),
        lambda folder: write_index(folder, counts=[2**70] * 18),
        lambda folder: write_index(folder, counts=[-5, *range(17)]),
        lambda folder: write_index(folder, checksums=5),
        lambda folder: write_index(folder, scales=[float("nan")] * 18),
        lambda folder: write_index(folder, bad=[1, 2]),
    ],
    ids=[
        "flipped bit",
        "truncated",
        "other length",
        "no frames",
        "half an index",
        "other index",
        "deep index",
        "huge number",
        "negative number",
        "number of checksums",
        "scales that are no numbers",
        "list of reasons",
    ],
)
def test_a_damaged_cache_is_named_and_made_again(sounds, tmp_path, monkeypatch, damage):
    whole = [prepare(sounds, AUDIO, tmp_path / "cache").get(i).copy() for i in range(len(sounds))]
    damage(tmp_path / "cache")
    calls, told = count_decodes(monkeypatch), []
    again = prepare(sounds, AUDIO, tmp_path / "cache", None, told.append)
    assert len(calls) == 18
    assert len(told) == 1 and "\n" not in told[0]
    assert told[0].startswith(f"{tmp_path / 'cache'}: the feature cache is damaged (")
    for i, mel in enumerate(whole):
        np.testing.assert_array_equal(again.get(i), mel)
    calls.clear()
    prepare(sounds, AUDIO, tmp_path / "cache", None, told.append)
    assert not calls and len(told) == 1


def test_an_interruption_leaves_no_cache(sounds, tmp_path, monkeypatch):
    def interrupt(done, total):
        if done == 7:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        prepare(sounds, AUDIO, tmp_path / "cache", interrupt)
    assert list((tmp_path / "cache").iterdir()) == []
    assert threading.active_count() == threads
    calls = count_decodes(monkeypatch)
    prepare(sounds, AUDIO, tmp_path / "cache")
    assert len(calls) == 18
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".frames", ".json"]


def test_what_a_killed_writer_left_goes_and_a_living_one_keeps_its_file(sounds, tmp_path):
    (tmp_path / "cache").mkdir()
    prepare(sounds, AUDIO, tmp_path / "cache")
    store = next((tmp_path / "cache").glob("*.frames"))
    store.unlink()
    dead, living = (store.with_name(f".{store.name}.{name}.partial") for name in ("dead", "living"))
    dead.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        prepare(sounds, AUDIO, tmp_path / "cache")
        assert living.exists() and not dead.exists()
    store.unlink()
    prepare(sounds, AUDIO, tmp_path / "cache")
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".frames", ".json"]


def test_a_cache_that_cannot_be_written_says_so(sounds, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match=r"cache: cannot write .* data\.cache"):
        prepare(sounds, AUDIO, tmp_path / "cache")


def test_features_pickle_as_a_path(sounds, tmp_path):
    features = prepare(sounds, AUDIO, tmp_path / "cache")
    content = pickle.dumps(features)
    assert len(content) < 2_000
    np.testing.assert_array_equal(pickle.loads(content).get(5), features.get(5))


def test_every_unusable_sound_is_listed_and_too_many_stop_the_run(tmp_path):
    reasons = broken(folder_of(tmp_path, ("bad", "good"), 9) / "bad")
    write(tmp_path / "bad" / "cut.wav", 1.0)
    content = (tmp_path / "bad" / "cut.wav").read_bytes()
    (tmp_path / "bad" / "cut.wav").write_bytes(content[:9_000])
    reasons["cut.wav"] = "truncated"
    names = sorted({f"bad/{name}" for name in reasons} | {f"{c}/{c}{i}.wav" for c in ("bad", "good") for i in range(9)})
    rows = "".join(f"{name},{name.split('/')[0]}\n" for name in names)
    config = table_of(tmp_path, "path,label\n" + rows)
    dataset = read_dataset(config)
    features = prepare(dataset, AUDIO, tmp_path / "cache")
    assert len(features.bad) == len(reasons) == 20
    assert (features.frames == 0).sum() == 20
    text = report_bad(features, 0.6)
    assert "20 of 38" in text
    for name, reason in reasons.items():
        (line,) = [line for line in text.splitlines() if f"bad/{name} " in line]
        assert reason in line
        assert f"row {names.index(f'bad/{name}') + 2} of" in line
    with pytest.raises(DataError, match=r"20 of 38 .*max_bad_fraction=0\.52") as caught:
        report_bad(features, 0.52)
    assert "bad/silent.wav" in str(caught.value)
    assert report_bad(prepare(dataset, AUDIO, tmp_path / "cache"), 0.53) == text  # from the cache as well
    kept, dropped = usable(features, np.arange(38))
    assert dropped == 20
    assert [dataset.clips[i].name for i in kept] == [f"{c}/{c}{i}.wav" for c in ("bad", "good") for i in range(9)]
    with pytest.raises(DataError, match="usable"):
        train_batches(features, dataset, np.arange(38), 10, 4, 0, DataConfig())


def test_a_clean_data_set_has_nothing_to_report(sounds, tmp_path):
    assert report_bad(prepare(sounds, AUDIO, tmp_path / "cache"), 0.0) == ""


def test_nothing_usable_always_stops(tmp_path):
    for name in ("a/x.wav", "b/y.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    features = prepare(dataset, AUDIO, tmp_path / "cache")
    assert features.bad == (("a/x.wav", "empty file"), ("b/y.wav", "empty file"))
    with pytest.raises(DataError, match="2 of 2"):
        report_bad(features, 1.0)
    with pytest.raises(DataError, match=r"data\.root"):
        statistics(features, np.arange(2))
    with pytest.raises(DataError, match="window_seconds"):
        default_window(features, np.arange(2), AUDIO)


def test_statistics_are_those_of_the_named_clips_alone(sounds, tmp_path):
    features = prepare(sounds, AUDIO, tmp_path / "cache")
    indices = np.array([0, 4, 11])
    values = np.concatenate([features.get(i).astype(np.float64).ravel() for i in indices])
    np.testing.assert_allclose(statistics(features, indices), (values.mean(), values.std()), rtol=1e-12)


def test_the_window_holds_most_clips_but_not_more_than_ten_seconds(tmp_path):
    features, _ = marked(tmp_path, [100] * 94 + [150] * 3 + [0] + [450] * 3)
    assert default_window(features, np.arange(101), AUDIO) == 150
    assert default_window(features, np.arange(50), AUDIO) == 100
    features, _ = marked(tmp_path, [900] * 4)
    assert default_window(features, np.arange(4), AUDIO) == 500


# Batches


def marked(folder, frames):
    """Features whose row 0 tells the clip and row 1 the column, and a data set that goes with them."""
    store = folder / f"{len(list(folder.glob('*.frames')))}.frames"  # a file is never changed under its readers
    with store.open("wb") as file:
        for i, count in enumerate(frames):
            mel_TxF = np.full((count, AUDIO.mels), -20.0, np.float16)
            mel_TxF[:, 0], mel_TxF[:, 1] = i, np.arange(count)
            file.write(mel_TxF.tobytes())
    labels = [(i % 3,) if i % 4 else (0, 2) for i in range(len(frames))]
    clips = tuple(Clip(f"{i}", f"{i}", labels[i]) for i in range(len(frames)))
    bad = tuple((f"{i}", "empty file") for i, count in enumerate(frames) if not count)
    return Features(str(store), AUDIO, np.array(frames, np.int64), bad), Dataset(clips, ("x", "y", "z"))


LENGTHS = [30, 7, 20, 55, 21, 33, 20, 90, 1, 64, 45]
WINDOW = 20


def check_rows(batch, dataset, window):
    """Every row is a contiguous piece of one clip, then the floor; its target is that clip's."""
    for mel_FxT, frames, target in zip(batch["mel"], batch["frames"], batch["target"]):
        clip, start = int(mel_FxT[0, 0]), int(mel_FxT[1, 0])
        assert frames == min(LENGTHS[clip], window)
        assert start + frames <= LENGTHS[clip]
        np.testing.assert_array_equal(mel_FxT[0, :frames], clip)
        np.testing.assert_array_equal(mel_FxT[1, :frames], start + np.arange(frames))
        np.testing.assert_array_equal(mel_FxT[:, frames:], AUDIO.floor_db)
        expected = np.zeros(3)
        expected[list(dataset.clips[clip].labels)] = 1
        np.testing.assert_array_equal(target, expected)


def take(batches, count):
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def assert_equal_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def stream(folder, seed=3, batch_size=4, shard=0, shards=1, indices=None, **config):
    features, dataset = marked(folder, LENGTHS)
    indices = np.arange(len(LENGTHS)) if indices is None else indices
    return train_batches(features, dataset, indices, WINDOW, batch_size, seed, DataConfig(**config), shard, shards)


def test_training_rows_are_crops_with_their_own_targets(tmp_path):
    _, dataset = marked(tmp_path, LENGTHS)
    for batch in take(stream(tmp_path), 12):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            "mel": ((4, 32, WINDOW), np.float32),
            "frames": ((4,), np.int32),
            "target": ((4, 3), np.float32),
        }
        check_rows(batch, dataset, WINDOW)


def test_each_epoch_has_every_clip_once_in_its_own_order_with_its_own_crops(tmp_path):
    rows = np.concatenate([batch["mel"][:, :2, 0] for batch in take(stream(tmp_path, batch_size=11), 60)])
    epochs = rows[:, 0].reshape(60, 11)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(11), (60, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 60
    starts = {clip: set(rows[rows[:, 0] == clip, 1]) for clip in range(11)}
    assert starts[4] == {0, 1}  # 21 frames: both crops occur, the last one too
    assert starts[2] == {0}
    assert len(starts[7]) > 20


def test_a_batch_wider_than_the_data_runs_across_epochs(tmp_path):
    (batch,) = take(stream(tmp_path, batch_size=30, indices=np.array([2, 5])), 1)
    assert sorted(batch["mel"][:, 0, 0]) == [2] * 15 + [5] * 15
    (batch,) = take(stream(tmp_path, batch_size=3, indices=np.array([7])), 1)
    assert list(batch["mel"][:, 0, 0]) == [7] * 3


def test_the_seed_decides(tmp_path):
    assert_equal_batches(take(stream(tmp_path, seed=5), 6), take(stream(tmp_path, seed=5), 6))
    with pytest.raises(AssertionError):
        assert_equal_batches(take(stream(tmp_path, seed=5), 6), take(stream(tmp_path, seed=6), 6))


@pytest.mark.parametrize("threads", [1, 4])
def test_resumed_equals_uninterrupted(tmp_path, threads):
    whole = take(stream(tmp_path), 12)
    batches = stream(tmp_path, threads=threads)
    for _ in range(5):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    next(batches)  # read ahead, then killed
    batches.close()
    resumed = stream(tmp_path, threads=threads)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert_equal_batches(take(resumed, 7), whole[5:])


def test_reading_processes_change_nothing_and_resume_on_any_number(tmp_path):
    whole = take(stream(tmp_path), 8)
    batches = stream(tmp_path, workers=1)
    assert_equal_batches([next(batches) for _ in range(3)], whole[:3])
    state = batches.get_state()
    batches.close()
    for workers in (0, 2):
        resumed = stream(tmp_path, workers=workers)
        resumed.set_state(state)
        assert_equal_batches(take(resumed, 5), whole[3:])


def test_going_back_within_one_iterator(tmp_path):
    batches = stream(tmp_path)
    state = batches.get_state()
    first = [next(batches) for _ in range(3)]
    batches.set_state(state)
    assert_equal_batches(take(batches, 3), first)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 4}, "seed was 3, now 4"), ({"batch_size": 2}, "batch_size"), ({"indices": np.arange(9)}, "data")],
)
def test_a_state_of_other_batches_is_refused(tmp_path, change, named):
    with pytest.raises(DataError, match=named):
        stream(tmp_path, **change).set_state(stream(tmp_path).get_state())


@pytest.mark.parametrize("shards", [2, 4])
def test_training_shards_side_by_side_are_the_whole_batch(tmp_path, shards):
    whole = take(stream(tmp_path), 9)
    parts = [take(stream(tmp_path, shard=s, shards=shards), 9) for s in range(shards)]
    assert parts[0][0]["mel"].shape[0] == 4 // shards
    joined = [{name: np.concatenate([p[name] for p in step]) for name in step[0]} for step in zip(*parts)]
    assert_equal_batches(joined, whole)
    with pytest.raises(DataError, match="multiple of 3"):
        stream(tmp_path, shards=3)


@given(frames=st.integers(1, 500), window=st.integers(1, 120))
def test_views_cover_the_clip_with_as_few_windows_as_can(frames, window):
    starts = views(frames, window)
    assert len(starts) == -(-frames // window)
    covered = np.zeros(max(frames, window), bool)
    for start in starts:
        assert 0 <= start <= max(0, frames - window)
        covered[start : start + window] = True
    assert covered[:frames].all()
    steps = np.diff(starts)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_the_clips_of_a_batch_follow_from_its_number(tmp_path):
    chosen = np.array([1, 3, 5, 6, 7, 9, 10])
    whole = stream(tmp_path, indices=chosen)
    half = stream(tmp_path, indices=chosen, shard=1, shards=2)
    for number, batch in enumerate(take(stream(tmp_path, indices=chosen), 9)):
        clips = whole.clips(number)
        np.testing.assert_array_equal(batch["mel"][:, 0, 0], clips)
        np.testing.assert_array_equal(half.clips(number), clips, "every process knows all of them")
        assert_equal_batches([whole.read(number)], [batch])
        np.testing.assert_array_equal(half.read(number)["mel"], batch["mel"][2:])
    assert whole.get_state()["next_batch"] == 0


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_sees_every_frame_of_every_clip(tmp_path, batch_size):
    features, dataset = marked(tmp_path, LENGTHS)
    indices = np.array([0, 1, 3, 7, 8, 9])
    seen = {int(i): np.zeros(LENGTHS[i], bool) for i in indices}
    count = 0
    for batch in eval_batches(features, dataset, indices, WINDOW, batch_size):
        assert {len(value) for value in batch.values()} == {batch_size}
        assert (batch["mask"].dtype, batch["clip"].dtype, batch["frames"].dtype) == (np.float32, np.int32, np.int32)
        check_rows(batch, dataset, WINDOW)
        np.testing.assert_array_equal(batch["clip"], batch["mel"][:, 0, 0])
        for clip, mel, frames in zip(batch["clip"], batch["mel"][batch["mask"] == 1], batch["frames"]):
            start = int(mel[1, 0])
            seen[int(clip)][start : start + frames] = True
        count += int(batch["mask"].sum())
    assert all(frames.all() for frames in seen.values())
    assert count == sum(-(-LENGTHS[i] // WINDOW) for i in indices)


@pytest.mark.parametrize("shards", [2, 4])
def test_evaluation_shards_are_equal_in_number_and_together_the_whole(tmp_path, shards):
    features, dataset = marked(tmp_path, LENGTHS)
    arguments = (features, dataset, np.arange(len(LENGTHS)), WINDOW, 8)
    whole = list(eval_batches(*arguments))
    parts = [list(eval_batches(*arguments, shard=s, shards=shards)) for s in range(shards)]
    assert {len(part) for part in parts} == {len(whole)}
    joined = [{name: np.concatenate([p[name] for p in step]) for name in step[0]} for step in zip(*parts)]
    assert_equal_batches(joined, whole)


def test_reading_needs_neither_librosa_nor_the_sounds(sounds, tmp_path):
    features = prepare(sounds, AUDIO, tmp_path / "cache")
    shutil.rmtree(tmp_path / "sounds")
    (tmp_path / "features").write_bytes(pickle.dumps((features, sounds)))
    program = f"""
        import pickle, sys, numpy as np
        from datar_jax.pipeline import eval_batches
        features, dataset = pickle.load(open({str(tmp_path / "features")!r}, "rb"))
        print(sum(int(batch["mask"].sum()) for batch in eval_batches(features, dataset, np.arange(18), 50, 4)))
        assert "librosa" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.stdout.strip() == "18", run.stderr
