"""From lists and sounds to shards and back: true samples, the same bytes after a stop, every clip accounted for."""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re

import msgspec
import numpy as np
import pytest
import soundfile

from datar_jax.audio.decode import decode
from datar_jax.config import AudioConfig, Config, ConfigError, DataConfig
from datar_jax.data import prepared as shards
from datar_jax.data.duplicates import copies, copies_note
from datar_jax.data.identity import look_at_files
from datar_jax.data.prepare.build import build_dataset
from datar_jax.data.prepared import pieces
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.array_record import open_shards
from datar_jax.data.sources.base import DataError, statistics
from datar_jax.data.sources.feature_cache import open_cache
from datar_jax.data.splits import split
from datar_jax.filesystem import storage_path
from datar_jax.training.input_pipeline import normalization_statistics
from tests.audio.test_media import encode
from tests.data.prepare.small_dataset import AUDIO, RECIPE, content, listing, opened, run, segment, spec
from tests.data.sources.test_sources import SMALL
from tests.helpers import sound


def test_every_listed_clip_is_accounted_for(small, tmp_path):
    lines, seen = [], []
    card = run(small, tmp_path / "out", lines=lines, progress=lambda *at: seen.append(at))
    assert (card.listed, card.here, card.missing, card.unreadable) == (8, 6, 1, 1)
    unreadable = "1 clip cannot be used; the first, 'broken_000001.wav': cannot be decoded (Format not recognised.)"
    assert lines == ["a note", unreadable] and seen[0] == (0, 7) and seen[-1] == (7, 7)
    dataset, _ = opened(tmp_path / "out")
    assert [clip.name for clip in dataset.clips] == ["-id0_30", "-id1_30", "-id2_30", "long_1", "long_4", "short"]
    assert [clip.labels for clip in dataset.clips] == [(0,), (0,), (0,), (1,), (1,), (2,)]
    assert [clip.split for clip in dataset.clips] == ["train"] * 5 + ["test"]
    assert dataset.labels == ("bark", "chirp", "moo")
    assert "6 of 8 listed clips are here (1 missing, 1 unreadable)" in dataset.notes[0]
    assert card.clips_sha256[:16] in dataset.notes[0]
    rows = (tmp_path / "out" / "manifest.csv").read_text().splitlines()
    assert rows[6].startswith("gone,2,train,,missing,no file of its name,,,,,list.csv,7")
    assert rows[7].startswith("broken,2,train,,unreadable,cannot be decoded")
    assert card.lists == {"list.csv": hashlib.sha256(b"the list").hexdigest()}
    names = ("train-00000-of-00003", "train-00001-of-00003", "test-00000-of-00001")  # the third one would be empty
    assert {shard.name for shard in card.shards} == {f"{name}.array_record" for name in names}


@pytest.mark.parametrize("coding", ["pcm", "flac"])
def test_shards_hold_what_the_files_hold(small, tmp_path, coding):
    run(small, tmp_path / "out", dataclasses.replace(RECIPE, coding=coding))
    dataset, store = opened(tmp_path / "out")
    parts = {"long_1": ("long.flac", 1, 2), "long_4": ("long.flac", 4, 5), "short": ("short.ogg", 0, 0)}
    for i, clip in enumerate(dataset.clips):
        name, start, end = parts.get(clip.name, (f"bark/{clip.name.replace('_30', '_000030')}.wav", 0, 0))
        wanted = decode(small[1] / name, 8_000, start, end)
        samples, scale = store.read(i, 0, int(store.lengths[i]))
        step = 2.0**-15 if np.abs(wanted).max() > 0.5 else 2.0**-16
        np.testing.assert_allclose(samples * scale, wanted, rtol=0, atol=step)
        some, _ = store.read(i, 100, 300)
        np.testing.assert_array_equal(some, samples[100:300])
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.get(3, 2, 9), store.get(3, 2, 9))


@pytest.mark.parametrize("coding", ["pcm", "flac"])
def test_equal_sounds_in_two_splits_are_counted_where_the_index_has_checksums(tmp_path, coding):
    audio = tmp_path / "audio"
    audio.mkdir()
    for i, name in enumerate(("a", "b", "c")):
        soundfile.write(audio / f"{name}.wav", sound(AUDIO, 0.5, i), 8_000)
    soundfile.write(audio / "same.flac", *soundfile.read(audio / "a.wav"))
    names = {"a": "train", "b": "train", "c": "test", "same": "test"}
    segments = [segment(name, 0, split, (name,)) for name, split in names.items()]
    out = tmp_path / "out"
    run((spec(lambda lists: listing(tmp_path, *segments)), audio), out, dataclasses.replace(RECIPE, coding=coding))
    dataset, store = opened(out)
    each = split(dataset, DataConfig(root=str(out), kind="prepared"))
    assert copies(store, each) == [(3, 0)]
    assert copies_note(dataset, store, each).startswith("1 of 2 test clips is a copy of training")
    rows = [row.rsplit(",", 1) for row in (out / "manifest.csv").read_text().splitlines()]
    (out / "manifest.csv").write_text("".join(f"{row}\n" for row, _ in rows))  # as version 0.1 wrote it
    dataset, store = opened(out)
    assert store.checksums is None and copies(store, each) == []
    (out / "manifest.csv").write_text("".join(f"{row},{['crc32', 'x1'][i > 0]}\n" for i, (row, _) in enumerate(rows)))
    with pytest.raises(ConfigError, match=r"manifest\.csv, row 2, column crc32='x1'"):
        opened(out)


def test_recordings_of_phones_are_cut_as_those_of_others(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    wave = sound(AUDIO, 6.0, 9)
    for name, samples in (("whole", wave), ("cut", wave[32_000:40_000])):  # the second is what the list names
        encode(audio / f"{name}.m4a", samples, "ipod", "aac", 8_000)
        soundfile.write(audio / f"{name}_wav.wav", samples, 8_000)
    names = ("whole", "cut", "whole_wav", "cut_wav")
    segments = [segment(name, 0, "train", (), (name,), 4.0, 5.0) for name in names]
    run((spec(lambda lists: listing(tmp_path, *segments)), audio), tmp_path / "out")
    _, store = opened(tmp_path / "out")
    assert len(store.frames) == 4
    for i in (0, 1):
        samples, scale = store.read(i, 0, 8_000)
        wanted, other = store.read(i + 2, 0, 8_000)
        assert np.corrcoef(samples * scale, wanted * other)[0, 1] > 0.95


def test_a_long_clip_lies_in_pieces_and_reads_as_one(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    seconds = 2.5 * shards.PIECE
    wave = np.random.default_rng(0).normal(0, 0.1, int(seconds * 8_000)).astype(np.float32)
    soundfile.write(audio / "a.wav", wave, 8_000, "PCM_16")
    segments = (segment("a", 0, "train", ("a",)), segment("b", 0, "train", ("a",)))
    run((spec(lambda lists: listing(tmp_path, *segments)), audio), tmp_path / "out")
    dataset, store = opened(tmp_path / "out")
    bounds = pieces(wave.size, 8_000)
    assert len(bounds) == 4 and bounds[-1] == wave.size
    assert [clip.record for clip in dataset.clips] == [0, 3]
    whole, scale = store.read(1, 0, wave.size)
    np.testing.assert_array_equal(whole * np.float32(scale), soundfile.read(audio / "a.wav", dtype="float32")[0])
    for first, last in ((bounds[1] - 5, bounds[1] + 5), (bounds[1], bounds[2]), (bounds[1] - 1, bounds[3])):
        np.testing.assert_array_equal(store.read(1, first, last)[0], whole[first:last])


def test_a_changed_file_makes_its_shard_anew_and_no_other(small, tmp_path):
    out = tmp_path / "out"
    run(small, out)
    before = content(out)
    soundfile.write(small[1] / "gone_000001.wav", sound(AUDIO, 0.4, 7), 8_000)
    assert run(small, out).here == 7
    changed = {name for name, data in content(out).items() if before.get(name) != data}
    assert changed == {
        *("corpus.json", "manifest.csv", "statistics.json"),
        *("train-00001-of-00003.array_record", "parts/train-00001-of-00003.array_record.json"),
    }
    (out / "test-00000-of-00001.array_record").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"test-00000-of-00001\.array_record: missing, or not of"):
        opened(out)
    run(small, out)
    opened(out)


def test_statistics_are_those_of_the_training_clips(small, tmp_path):
    run(small, tmp_path / "out")
    dataset, store = opened(tmp_path / "out")
    train = np.array([i for i, clip in enumerate(dataset.clips) if clip.split == "train"])
    config = Config(audio=AUDIO, data=DataConfig(root=str(tmp_path / "out"), kind="prepared"), model=SMALL)
    found = normalization_statistics(config, dataset, store, train)
    np.testing.assert_allclose(found, statistics(store, train), rtol=1e-6)
    other = msgspec.structs.replace(config, audio=msgspec.structs.replace(AUDIO, hop_ms=20.0))
    wider = open_shards(storage_path(str(tmp_path / "out"), "x"), dataset.card, dataset.clips, other.audio, tmp_path)
    assert normalization_statistics(other, dataset, wider, train) == statistics(wider, train) != found


def test_a_bucket_is_as_good_as_a_folder(small, tmp_path):
    bucket = f"memory://{tmp_path.name}"
    for path in small[1].rglob("*"):
        if path.is_file():
            (storage_path(f"{bucket}/audio", "x") / path.relative_to(small[1]).as_posix()).write(path.read_bytes())
    # The bucket of this test lives in this process: its sounds are decoded here, not in a process beside it.
    here, there = storage_path(str(small[1]), "x"), storage_path(f"{bucket}/audio", "x")
    assert sorted(name for name, _ in there.list_files()) == sorted(name for name, _ in here.list_files())
    with (there / "long.flac").as_local() as copy:
        np.testing.assert_array_equal(decode(copy, 8_000), decode(small[1] / "long.flac", 8_000))
    run(small, tmp_path / "out")
    arguments = (
        "small",
        small[0],
        tmp_path,
        here,
        storage_path(f"{bucket}/out", "--out"),
        RECIPE,
        lambda *_: None,
        print,
    )
    build_dataset(*arguments)
    for name, data in content(tmp_path / "out").items():
        if name != ".lock":
            assert (storage_path(f"{bucket}/out", "x") / name).read() == data, name
    assert read_dataset(DataConfig(root=f"{bucket}/out", kind="prepared")).clips == opened(tmp_path / "out")[0].clips
    dataset = read_dataset(DataConfig(root=f"{bucket}/out", kind="prepared"))
    store = open_shards(storage_path(f"{bucket}/out", "x"), dataset.card, dataset.clips, AUDIO, tmp_path / "cache")
    np.testing.assert_array_equal(store.get(4), opened(tmp_path / "out")[1].get(4))
    done = build_dataset(*arguments)
    assert done == dataset.card


def test_a_shard_of_clips_in_another_order_does_not_give_wrong_labels(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    for i in range(2):
        soundfile.write(audio / f"{i}.wav", sound(AUDIO, 0.5, i), 8_000)
    both = [segment(f"{i}", i, "train", (f"{i}",)) for i in range(2)]
    for out, order in (("one", both), ("two", both[::-1])):
        run((spec(lambda lists, order=order: listing(tmp_path, *order)), audio), tmp_path / out)
    name = "train-00000-of-00001.array_record"
    assert (tmp_path / "one" / name).stat().st_size == (tmp_path / "two" / name).stat().st_size
    (tmp_path / "two" / name).replace(tmp_path / "one" / name)
    _, store = opened(tmp_path / "one")
    with pytest.raises(DataError, match=r"holds other clips than corpus\.json says"):
        store.read(0, 0, 100)


def test_a_damaged_shard_is_named(small, tmp_path):
    run(small, tmp_path / "out")
    path = tmp_path / "out" / "train-00000-of-00003.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 1
    path.write_bytes(data)
    dataset, store = opened(tmp_path / "out")
    text = r"train-00000-of-00003\.array_record: clip \d cannot be read .*delete it and prepare"
    with pytest.raises(DataError, match=text):
        [store.read(i, 0, 100) for i in range(len(dataset))]
    path.unlink()
    run(small, tmp_path / "out")
    run(small, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda out: (out / "corpus.json").write_text("{"), r"corpus\.json: not readable"),
        (lambda out: (out / "corpus.json").write_text("[]"), r"corpus\.json: not readable"),
        (lambda out: (out / "manifest.csv").unlink(), r"manifest\.csv: cannot be read"),
        (lambda out: cut_last_line(out / "manifest.csv"), r"manifest\.csv: 5 clips, corpus\.json says 6"),
        (lambda out: change(out / "manifest.csv", "train-00001-of", "train-00009-of"), r"row 5, column shard="),
        (lambda out: change(out / "corpus.json", '"format": 1', '"format": 9'), "format 9, this version reads 1"),
    ],
)
def test_a_prepared_folder_that_is_not_whole_is_refused(small, tmp_path, spoil, text):
    run(small, tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(ConfigError, match=text):
        opened(tmp_path / "out")


def cut_last_line(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def change(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_what_cannot_be_is_said(small, tmp_path):
    run(small, tmp_path / "out")
    dataset, _ = opened(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"audio\.sample_rate=16000: .* holds 8000 Hz"):
        open_shards(storage_path(str(tmp_path / "out"), "x"), dataset.card, dataset.clips, AudioConfig(), tmp_path)
    with pytest.raises(ConfigError, match=r"--audio=.*no such folder"):
        run((small[0], tmp_path / "nowhere"), tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"none of the 8 clips.* named bark/-id0_000030 or -id"):
        run((small[0], tmp_path / "empty"), tmp_path / "other")
    only = spec(lambda lists: listing(tmp_path, segment("x", 0, "train", ("broken_000001",))))
    with pytest.raises(ConfigError, match=r"none of 1 found sound can be used; the first, .*: cannot"):
        run((only, small[1]), tmp_path / "other")
    video = spec(lambda lists: listing(tmp_path, segment("x", 0, "train", ("-id0_000030", "film"))))
    (small[1] / "bark" / "-id0_000030.wav").rename(small[1] / "film.avi")
    with pytest.raises(ConfigError, match=r"no decoder for \.avi; extract its sound"):
        run((video, small[1]), tmp_path / "other")


def test_several_files_of_one_name_are_said_and_the_first_is_taken(small, tmp_path):
    (small[1] / "abc").mkdir()
    soundfile.write(small[1] / "abc" / "long.wav", sound(AUDIO, 6.0, 1), 8_000)
    lines = []
    run(small, tmp_path / "out", lines=lines)
    assert "2 clips have more than one file; the first by its path is taken, as 'abc/long.wav'" in lines
    assert "abc/long.wav" in (tmp_path / "out" / "manifest.csv").read_text()


def test_shards_that_no_card_names_are_taken_away(small, tmp_path):
    out, lines = tmp_path / "out", []
    run(small, out)
    run(small, out, dataclasses.replace(RECIPE, shard_clips=100), lines)
    assert "3 shards of an earlier preparation removed, the first: train-00000-of-00003.array_record" in lines
    run(small, tmp_path / "whole", dataclasses.replace(RECIPE, shard_clips=100))
    assert content(out) == content(tmp_path / "whole")
    # The only clip of the test split: no sound any more, and then no file.
    (small[1] / "short.ogg").write_bytes(b"nothing")
    for here in (True, False):
        run(small, out, dataclasses.replace(RECIPE, shard_clips=100))
        assert not (out / "test-00000-of-00001.array_record").exists()
        assert (out / "parts" / "test-00000-of-00001.array_record.json").exists() == here
        opened(out)
        if here:
            (small[1] / "short.ogg").unlink()


@pytest.mark.parametrize("file", ["manifest.csv", "corpus.json", "statistics.json"])
def test_a_folder_with_something_else_is_left_alone(small, tmp_path, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("path,label")
    with pytest.raises(ConfigError, match=rf"--out=.*: holds a {file}, but no parts/ .*give another folder"):
        run(small, tmp_path / "out")
    assert (tmp_path / "out" / file).read_text() == "path,label"


def test_a_folder_of_another_data_set_is_left_alone(small, tmp_path):
    run(small, tmp_path / "out")
    before = content(tmp_path / "out")
    change(tmp_path / "out" / "corpus.json", '"corpus": "small"', '"corpus": "large"')
    with pytest.raises(ConfigError, match=r"--out=.*: holds A Corpus; give another folder"):
        run(small, tmp_path / "out")
    assert {name for name, data in content(tmp_path / "out").items() if before[name] != data} == {"corpus.json"}


def test_a_side_without_a_clip_is_said(small, tmp_path):
    lines = []
    (small[1] / "short.ogg").unlink()
    run(small, tmp_path / "out", lines=lines)
    assert lines[-1] == "no test clip is here: a run needs one"


def test_what_cannot_be_listed_is_not_called_missing(small, tmp_path, monkeypatch):
    (small[1] / "gone_000001.wav").symlink_to("gone_000001.wav")  # a link to itself: there, and not to be opened
    assert run(small, tmp_path / "out").unreadable == 2
    scandir = os.scandir

    def broken(path):
        if os.path.basename(path) == "bark":
            raise OSError(errno.EIO, "Input/output error", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(ConfigError, match=r"bark': cannot be read \(Input/output error\)"):
        run(small, tmp_path / "out")


def test_prepared_data_are_not_taken_for_something_else(small, tmp_path):
    run(small, tmp_path / "out")
    root = str(tmp_path / "out")
    for kind in ("folder", "csv", "esc"):
        with pytest.raises(ConfigError, match=rf"data\.kind='{kind}': .* holds prepared data; give .*'prepared'"):
            read_dataset(DataConfig(root=root, kind=kind))
    for field in ({"train_list": "a", "test_list": "b"}, {"subset": "esc10"}):
        with pytest.raises(ConfigError, match=rf"data\.{next(iter(field))}=.*: has no effect: data.kind='prepared'"):
            DataConfig(root=root, kind="prepared", **field)


def test_the_cache_of_the_same_sounds_gives_the_same(small, tmp_path):
    run(small, tmp_path / "out")
    dataset, store = opened(tmp_path / "out")
    (tmp_path / "out" / "manifest.csv").read_text()
    folder = tmp_path / "as_folder"
    (folder / "bark").mkdir(parents=True)
    for i in range(3):
        (folder / "bark" / f"{i}.wav").write_bytes((small[1] / "bark" / f"-id{i}_000030.wav").read_bytes())
    cached = open_cache(read_dataset(DataConfig(root=str(folder))), AUDIO, tmp_path / "cache")
    for i in range(3):
        np.testing.assert_allclose(store.get(i), cached.get(i), rtol=0, atol=0.06)
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["audio"]["n_mels"] == 32
    assert len(dataset) == 6


def test_prepared_data_in_the_cache_of_a_hub_are_read(small, tmp_path):
    """Its files are links to `../../blobs`."""
    run(small, tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "blobs").glob("*.*"):
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (found, shards_there), (wanted, _) = opened(snapshot), opened(tmp_path / "blobs")
    assert found.clips == wanted.clips and shards_there.get(0).size
    assert (look_at_files(found, storage_path(str(snapshot), "x")).sizes > 0).all()


def test_prepared_data_without_checksums_of_their_shards_are_read(small, tmp_path):
    run(small, tmp_path)
    (tmp_path / shards.CARD).write_text(
        re.sub('"sha256": ".*?"', '"sha256": "none"', (tmp_path / shards.CARD).read_text())
    )
    assert (look_at_files(opened(tmp_path)[0], storage_path(str(tmp_path), "x")).sums > 0).all()
