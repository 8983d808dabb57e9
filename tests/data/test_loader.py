"""From the cache to batches: crops and views, every clip once an epoch, resumption, shards."""

import dataclasses
import functools
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.audio.framing import eval_window_starts
from datar_jax.config import DataConfig
from datar_jax.data.loader import eval_batches, train_batches
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.base import DataError
from datar_jax.data.sources.feature_cache import open_cache
from tests.data.sources.test_feature_cache import marked
from tests.data.test_readers import AUDIO, folder_of

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


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_balanced_drawing_gives_every_class_its_share(tmp_path, labels):
    store, dataset = marked(tmp_path, [20] * 60)
    of_clip = [(0,)] * 45 + [(1,)] * 12 + [(2,)] * 3 if labels == "single" else [(0,)] * 40 + [(0, 1)] * 15 + [(2,)] * 5
    clips = tuple(dataclasses.replace(clip, labels=told) for clip, told in zip(dataset.clips, of_clip))
    dataset = dataclasses.replace(dataset, clips=clips)
    draw = functools.partial(train_batches, store, dataset, np.arange(60), 10, 50, 3)
    batches = draw(DataConfig(balanced_sampling=True))
    drawn = np.concatenate([batches.clips(number) for number in range(240)])
    share = np.bincount(drawn, minlength=60) / len(drawn)
    count = np.array([sum(s in told for told in of_clip) for s in range(3)])
    wanted = np.array([sum(1 / count[s] for s in told) for told in of_clip])
    wanted /= wanted.sum()
    np.testing.assert_allclose(share, wanted, atol=5 * np.sqrt(wanted.max() / len(drawn)))  # five deviations
    if labels == "single":
        np.testing.assert_allclose([share[:45].sum(), share[45:57].sum(), share[57:].sum()], 1 / 3, atol=0.03)
    np.testing.assert_array_equal(draw(DataConfig(balanced_sampling=True)).clips(7), batches.clips(7))
    assert_equal_batches([next(batches)], [draw(DataConfig(balanced_sampling=True, threads=1)).read(0)])
    batches.close()
    with pytest.raises(DataError, match="balance was None, now True"):
        batches.set_state(draw(DataConfig()).get_state())


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
    starts = eval_window_starts(frames, window)
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


def test_reading_needs_neither_librosa_nor_the_sounds(tmp_path):
    sounds = read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds"))))
    features = open_cache(sounds, AUDIO, tmp_path / "cache")
    shutil.rmtree(tmp_path / "sounds")
    (tmp_path / "features").write_bytes(pickle.dumps((features, sounds)))
    program = f"""
        import pickle, sys, numpy as np
        from datar_jax.data.loader import eval_batches
        features, dataset = pickle.load(open({str(tmp_path / "features")!r}, "rb"))
        print(sum(int(batch["mask"].sum()) for batch in eval_batches(features, dataset, np.arange(18), 50, 4)))
        assert "librosa" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout.strip() == "18", run.stderr
