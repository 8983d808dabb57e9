"""The feature cache: what it holds, when it is made again, damage, bad sounds, statistics and the window."""

import fcntl
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from datar_jax.audio.decode import decode
from datar_jax.audio.log_mel import log_mel
from datar_jax.config import AudioConfig, DataConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.loader import train_batches
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources import feature_cache as cache
from datar_jax.data.sources.base import DataError, bad_clips_report, default_window_frames, statistics, usable
from datar_jax.data.sources.feature_cache import SpectrogramCache, open_cache
from tests.audio.test_decode import broken
from tests.data.test_readers import AUDIO, folder_of, table_of, write


@pytest.fixture
def sounds(tmp_path):
    return read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds"))))


def test_the_cache_holds_what_the_front_end_says(sounds, tmp_path):
    calls = []
    features = open_cache(sounds, AUDIO, tmp_path / "cache", lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 18) for i in range(18)]
    assert features.bad == ()
    for i, clip in enumerate(sounds.clips):
        mel_FxT = log_mel(decode(clip.path, AUDIO.sample_rate), AUDIO)
        assert features.frames[i] == mel_FxT.shape[1]
        assert features.seconds[i] == pytest.approx(mel_FxT.shape[1] * 0.02)
        np.testing.assert_array_equal(features.get(i).T, mel_FxT)
        np.testing.assert_array_equal(features.get(i, 2, 3), features.get(i)[2:5])
        assert len(features.get(i, 2, 1000)) == features.frames[i] - 2
    assert features.get(0).dtype == np.float32


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
    first = open_cache(sounds, AUDIO, tmp_path / "cache")
    assert sorted(calls) == sorted(clip.path for clip in sounds.clips)
    calls.clear()
    second = open_cache(sounds, AUDIO, tmp_path / "cache")
    assert not calls
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.get(7), second.get(7))


def test_other_settings_or_a_changed_file_are_another_cache(sounds, tmp_path, monkeypatch):
    open_cache(sounds, AUDIO, tmp_path / "cache")
    calls = count_decodes(monkeypatch)
    assert open_cache(sounds, AudioConfig(n_mels=40, hop_ms=20.0), tmp_path / "cache").get(0).shape[1] == 40
    assert len(calls) == 18
    write(Path(sounds.clips[3].path), 0.6, seed=99)
    changed = open_cache(sounds, AUDIO, tmp_path / "cache")
    assert changed.frames[3] == 30


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
    whole = [open_cache(sounds, AUDIO, tmp_path / "cache").get(i).copy() for i in range(len(sounds))]
    damage(tmp_path / "cache")
    calls, told = count_decodes(monkeypatch), []
    again = open_cache(sounds, AUDIO, tmp_path / "cache", None, told.append)
    assert len(calls) == 18
    assert len(told) == 1 and "\n" not in told[0]
    assert told[0].startswith(f"{tmp_path / 'cache'}: the feature cache is damaged (")
    for i, mel in enumerate(whole):
        np.testing.assert_array_equal(again.get(i), mel)
    calls.clear()
    open_cache(sounds, AUDIO, tmp_path / "cache", None, told.append)
    assert not calls and len(told) == 1


def test_an_interruption_leaves_no_cache(sounds, tmp_path, monkeypatch):
    def interrupt(done, total):
        if done == 7:
            raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        open_cache(sounds, AUDIO, tmp_path / "cache", interrupt)
    assert list((tmp_path / "cache").iterdir()) == []
    assert threading.active_count() == threads
    calls = count_decodes(monkeypatch)
    open_cache(sounds, AUDIO, tmp_path / "cache")
    assert len(calls) == 18
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".frames", ".json"]


def test_what_a_killed_writer_left_goes_and_a_living_one_keeps_its_file(sounds, tmp_path):
    (tmp_path / "cache").mkdir()
    open_cache(sounds, AUDIO, tmp_path / "cache")
    store = next((tmp_path / "cache").glob("*.frames"))
    store.unlink()
    dead, living = (store.with_name(f".{store.name}.{name}.partial") for name in ("dead", "living"))
    dead.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        open_cache(sounds, AUDIO, tmp_path / "cache")
        assert living.exists() and not dead.exists()
    store.unlink()
    open_cache(sounds, AUDIO, tmp_path / "cache")
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".frames", ".json"]


def test_a_cache_that_cannot_be_written_says_so(sounds, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(DataError, match=r"cache: cannot write .* data\.cache"):
        open_cache(sounds, AUDIO, tmp_path / "cache")


def test_features_pickle_as_a_path(sounds, tmp_path):
    features = open_cache(sounds, AUDIO, tmp_path / "cache")
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
    features = open_cache(dataset, AUDIO, tmp_path / "cache")
    assert len(features.bad) == len(reasons) == 19
    assert (features.frames == 0).sum() == 19
    text = bad_clips_report(features, 0.6)
    assert "19 of 37" in text
    for name, reason in reasons.items():
        (line,) = [line for line in text.splitlines() if f"bad/{name} " in line]
        assert reason in line
        assert f"row {names.index(f'bad/{name}') + 2} of" in line
    with pytest.raises(DataError, match=r"19 of 37 .*max_bad_fraction=0\.51") as caught:
        bad_clips_report(features, 0.51)
    assert "bad/silent.wav" in str(caught.value)
    assert bad_clips_report(open_cache(dataset, AUDIO, tmp_path / "cache"), 0.53) == text  # from the cache as well
    kept, dropped = usable(features, np.arange(37))
    assert dropped == 19
    assert [dataset.clips[i].name for i in kept] == [f"{c}/{c}{i}.wav" for c in ("bad", "good") for i in range(9)]
    with pytest.raises(DataError, match="usable"):
        train_batches(features, dataset, np.arange(37), 10, 4, 0, DataConfig())


def test_a_clean_data_set_has_nothing_to_report(sounds, tmp_path):
    assert bad_clips_report(open_cache(sounds, AUDIO, tmp_path / "cache"), 0.0) == ""


def test_nothing_usable_always_stops(tmp_path):
    for name in ("a/x.wav", "b/y.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    dataset = read_dataset(DataConfig(root=str(tmp_path)))
    features = open_cache(dataset, AUDIO, tmp_path / "cache")
    assert features.bad == (("a/x.wav", "empty file"), ("b/y.wav", "empty file"))
    with pytest.raises(DataError, match="2 of 2"):
        bad_clips_report(features, 1.0)
    with pytest.raises(DataError, match=r"data\.root"):
        statistics(features, np.arange(2))
    with pytest.raises(DataError, match="window_seconds"):
        default_window_frames(features, np.arange(2), AUDIO)


def test_statistics_are_those_of_the_named_clips_alone(sounds, tmp_path):
    features = open_cache(sounds, AUDIO, tmp_path / "cache")
    indices = np.array([0, 4, 11])
    values = np.concatenate([features.get(i).astype(np.float64).ravel() for i in indices])
    np.testing.assert_allclose(statistics(features, indices), (values.mean(), values.std()), rtol=1e-12)


def marked(folder, frames):
    """Features whose row 0 tells the clip and row 1 the column, and a data set that goes with them."""
    store = folder / f"{len(list(folder.glob('*.frames')))}.frames"  # a file is never changed under its readers
    with store.open("wb") as file:
        for i, count in enumerate(frames):
            mel_TxF = np.full((count, AUDIO.n_mels), -20.0, np.float32)
            mel_TxF[:, 0], mel_TxF[:, 1] = i, np.arange(count)
            file.write(mel_TxF.tobytes())
    labels = [(i % 3,) if i % 4 else (0, 2) for i in range(len(frames))]
    clips = tuple(Clip(f"{i}", f"{i}", labels[i]) for i in range(len(frames)))
    bad = tuple((f"{i}", "empty file") for i, count in enumerate(frames) if not count)
    return SpectrogramCache(str(store), AUDIO, np.array(frames, np.int64), bad), Dataset(clips, ("x", "y", "z"))


def test_the_window_holds_most_clips_but_not_more_than_ten_seconds(tmp_path):
    features, _ = marked(tmp_path, [100] * 94 + [150] * 3 + [0] + [450] * 3)
    assert default_window_frames(features, np.arange(101), AUDIO) == 150
    assert default_window_frames(features, np.arange(50), AUDIO) == 100
    features, _ = marked(tmp_path, [900] * 4)
    assert default_window_frames(features, np.arange(4), AUDIO) == 500
