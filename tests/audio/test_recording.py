"""A file as windows: bit for bit those of the whole, whatever the length; the plan of windows; what is refused."""

import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.audio import decode as audio_room
from datar_jax.audio import recording
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.audio.framing import eval_window_starts, left_context, window_samples
from datar_jax.audio.log_mel import log_mel
from datar_jax.audio.recording import measure, plan_windows
from datar_jax.config import AudioConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.sources.feature_cache import open_cache
from tests.audio.test_decode import broken, sound

AUDIO = AudioConfig(n_mels=32)
DEVICE = AudioConfig(n_mels=32, frontend="device")
WINDOW = 50  # columns


def written(path, seconds, rate=16_000, gain=1.0):
    soundfile.write(path, gain * sound(seconds), rate, subtype="FLOAT")
    return path


@pytest.fixture(params=["kept", "read twice"])
def blocks(request, monkeypatch):
    """Files in small blocks, once as short files are read and once as long ones."""
    monkeypatch.setattr(audio_room, "BLOCK", 5_000)
    if request.param == "read twice":
        monkeypatch.setattr(recording, "KEPT", 0)


@pytest.mark.parametrize("rate", [16_000, 22_050])
@pytest.mark.parametrize("seconds", [0.005, 0.3, 0.503, 3.21])
def test_windows_are_those_of_the_whole(tmp_path, blocks, rate, seconds):
    path = written(tmp_path / "a.wav", seconds, rate, gain=0.3)
    whole_N = decode(path, 16_000)
    whole_FxT = log_mel(whole_N, AUDIO)
    measured = measure(path, AUDIO)
    assert (measured.length, measured.frames) == (whole_N.size, whole_FxT.shape[1])
    assert measured.peak == np.abs(whole_N).max()
    starts, _ = plan_windows(measured.frames, WINDOW, 0.75)
    clips = np.zeros(len(starts), int)
    store = open_cache(Dataset((Clip(str(path), "a.wav", (0,)),), ("a",)), AUDIO, tmp_path / "cache")
    batch = store.batch(clips, starts, WINDOW)
    for b, row in enumerate(measured.windows(starts, WINDOW, "mel")):
        valid = min(WINDOW, measured.frames - starts[b])
        np.testing.assert_array_equal(row["mel"][:, :valid], whole_FxT[:, starts[b] : starts[b] + WINDOW])
        np.testing.assert_array_equal(row["mel"], batch["mel"][b])
        assert row["frames"] == batch["frames"][b] == valid
    store = open_cache(Dataset((Clip(str(path), "a.wav", (0,)),), ("a",)), DEVICE, tmp_path / "cache")
    batch = store.batch(clips, starts, WINDOW)
    rows = list(measured.windows(starts, WINDOW, "samples"))
    assert {name: value.dtype for name, value in batch.items()} == {k: v.dtype for k, v in rows[0].items()}
    for name in batch:
        np.testing.assert_array_equal(np.stack([row[name] for row in rows]), batch[name])
    for start, row in zip(starts, measured.windows(starts, WINDOW, "waveform")):
        size, first = window_samples(AUDIO, WINDOW), max(0, start * AUDIO.hop_length - left_context(AUDIO))
        part_N = whole_N[first:][:size]
        assert first + row["start"] == start * AUDIO.hop_length
        assert row["length"] == part_N.size
        np.testing.assert_array_equal(row["waveform"], np.pad(part_N, (0, size - part_N.size)))


def test_windows_of_one_column_reach_both_ends(tmp_path, blocks):
    path = written(tmp_path / "a.wav", 0.503)
    measured = measure(path, AUDIO)
    rows = measured.windows(range(measured.frames), 1, "mel")
    whole_FxT = log_mel(decode(path, 16_000), AUDIO)
    np.testing.assert_array_equal(np.concatenate([row["mel"] for row in rows], axis=1), whole_FxT)


def test_windows_may_lie_far_apart_and_reach_beyond_the_end(tmp_path, blocks):
    path = written(tmp_path / "a.wav", 3.21)
    measured = measure(path, AUDIO)
    whole_FxT = np.pad(log_mel(decode(path, 16_000), AUDIO), ((0, 0), (0, WINDOW)), constant_values=AUDIO.floor_db)
    starts = [0, 200, 296, 310]
    for start, row in zip(starts, measured.windows(starts, WINDOW, "mel")):
        np.testing.assert_array_equal(row["mel"], whole_FxT[:, start : start + WINDOW])


def test_what_cannot_be_decoded_cannot_be_measured_for_the_same_reason(tmp_path):
    for name, reason in broken(tmp_path).items():
        with pytest.raises(AudioError, match=reason):
            measure(tmp_path / name, AUDIO)


def test_a_file_that_shrinks_after_it_was_measured_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "KEPT", 0)
    measured = measure(written(tmp_path / "a.wav", 2.0), AUDIO)
    written(tmp_path / "a.wav", 1.0)
    with pytest.raises(AudioError, match="changed while it was read"):
        list(measured.windows([0, 100, 150], WINDOW, "mel"))


def test_hours_are_no_limit_and_take_no_memory(tmp_path):
    quiet = np.zeros(8_000_000, np.int16)
    quiet[::99_999] = 1
    soundfile.write(tmp_path / "a.flac", quiet, 1_000)
    audio = AudioConfig(sample_rate=1_000, n_mels=32, window_ms=100, hop_ms=50)
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "KEPT", 1_000_000)
        measured = measure(tmp_path / "a.flac", audio)
        rows = measured.windows(plan_windows(measured.frames, 2_000)[0], 2_000, "waveform")
        total = sum(float(row["waveform"].sum()) for row in rows)
    assert measured.seconds == 8_000
    assert total > 0
    assert tracemalloc.get_traced_memory()[1] < 30e6  # bytes; the samples alone are 32e6
    tracemalloc.stop()
    with pytest.raises(AudioError, match="longer than an hour"):
        decode(tmp_path / "a.flac", 1_000)


@given(
    frames=st.integers(1, 5_000),
    window=st.integers(1, 600),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75, 0.9]),
)
def test_every_plan_holds_the_views_and_overlaps_as_asked(frames, window, overlap):
    starts, is_view = plan_windows(frames, window, overlap)
    np.testing.assert_array_equal(starts[is_view], np.unique(eval_window_starts(frames, window)))
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= np.ceil(window * (1 - overlap) + 1e-6)).all()  # a column more where a step is no whole number
    between = np.diff(np.flatnonzero(is_view))
    parts = {0.0: 1, 0.25: 2, 0.5: 2, 0.6: 3, 0.75: 4, 0.9: 10}[overlap]
    assert (between <= parts).all()
    if (np.diff(eval_window_starts(frames, window)) > parts).all():
        assert (between == parts).all()


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_that_cannot_be_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap="):
        plan_windows(100, 10, overlap)
