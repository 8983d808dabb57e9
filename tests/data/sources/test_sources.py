"""A window of a clip is the same columns from any store, computed before, while reading, or on the device."""

import pickle

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from datar_jax import config as c
from datar_jax.audio.framing import columns, num_samples, to_int16
from datar_jax.data.loader import eval_batches, train_batches
from datar_jax.data.prepared import decode_record, encode
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.feature_cache import SpectrogramCache, WaveformCache, open_cache
from datar_jax.models.spec import ModelSpec, spectrograms
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_step import abstract_state, batch_shapes, init_state, jit_eval_step, jit_train_step
from tests.helpers import sound

HOST = c.AudioConfig(n_mels=32)
DEVICE = msgspec.structs.replace(HOST, frontend="device")
SMALL = c.ModelConfig(
    dims=(16, 32),
    spec=("L", "D"),
    heads=(1, 2),
    window=c.WindowSettings(sizes=((4, 4),) * 2),
    deformable=c.DeformableSettings(groups=(1, 1), strides=(2, 1), kernels=(3, 3)),
)
SECONDS = (0.31, 0.6, 0.05, 0.5)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same clips as spectrograms and as samples."""
    root = tmp_path_factory.mktemp("sounds")
    for i, seconds in enumerate(SECONDS):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        soundfile.write(root / "ab"[i % 2] / f"{i}.wav", sound(HOST, seconds, i), 16_000)
    dataset = read_dataset(c.DataConfig(root=str(root)))
    return dataset, open_cache(dataset, HOST, root / "cache"), open_cache(dataset, DEVICE, root / "cache")


def test_both_kinds_of_cache_lie_side_by_side_and_hold_the_same(stores):
    dataset, features, waves = stores
    assert isinstance(features, SpectrogramCache) and isinstance(waves, WaveformCache)
    np.testing.assert_array_equal(features.frames, waves.frames)
    np.testing.assert_allclose(features.seconds, waves.seconds)
    for i in range(len(dataset)):
        for start, length in ((0, None), (3, 7), (0, 10_000), (int(waves.frames[i]) - 1, 1)):
            wanted, found = features.get(i, start, length), waves.get(i, start, length)
            assert wanted.shape == found.shape
            # what 16 bits a sample do to the quietest bins
            np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("draw", [train_batches, eval_batches])
def test_the_device_computes_the_batches_of_the_host(stores, draw):
    dataset, features, waves = stores
    more = (7, c.DataConfig()) if draw is train_batches else ()
    indices, window = np.arange(len(dataset)), 20
    spec = ModelSpec(c.Config(audio=DEVICE, model=SMALL), 2, window, 10)
    hosts, devices = (iter(draw(store, dataset, indices, window, 4, *more)) for store in (features, waves))
    for _ in range(2):
        host, device = next(hosts), next(devices)
        assert set(device) == set(host) - {"mel"} | {"samples", "scale"}
        assert device["samples"].shape == (4, num_samples(DEVICE, window)) and device["samples"].dtype == np.int16
        for name in set(host) & set(device):
            np.testing.assert_array_equal(host[name], device[name])
        np.testing.assert_allclose(spectrograms(spec, device)["mel"], host["mel"], rtol=0, atol=0.05)


def test_a_short_clip_is_padded_with_nothing_that_lay_in_memory(stores, monkeypatch):
    _, features, waves = stores
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, 7, dtype))
    short = int(np.argmin(waves.frames))
    clips, starts, size = np.array([short]), np.array([0]), num_samples(DEVICE, int(waves.frames[short]))
    assert (waves.batch(clips, starts, 20)["samples"][0, size:] == 0).all()
    padded = features.batch(clips, starts, 20)["mel"][0, :, waves.frames[short] :]
    assert padded.size and (padded == HOST.floor_db).all()


@pytest.mark.slow
def test_a_step_learns_the_same_from_either_front_end(stores):
    dataset, features, waves = stores
    mesh = make_mesh(c.MeshConfig(data=1), jax.devices()[:1])
    losses, scores = [], []
    for store in (features, waves):
        spec = ModelSpec(c.Config(audio=store.audio, model=SMALL), 2, 20, 10)
        batches = train_batches(store, dataset, np.arange(len(dataset)), 20, 4, 0, c.DataConfig())
        state = init_state(spec, mesh, -30.0, 20.0)
        first = next(batches)
        batches.close()
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), batch_shapes(spec, 4))
        assert shapes == {name: (x.shape, x.dtype) for name, x in first.items()}
        sound_only = {name: x for name, x in first.items() if name != "target"}
        scores.append(jit_eval_step(spec, mesh)(state.params, state.statistics, sound_only))
        losses.append(float(jit_train_step(spec, mesh)(state, first)[1]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert abstract_state(spec).step.dtype == jnp.int32


def test_stores_travel_to_reading_processes_as_paths(stores):
    for store in stores[1:]:
        content = pickle.dumps(store)
        assert len(content) < 2_000
        np.testing.assert_array_equal(pickle.loads(content).get(1, 2, 5), store.get(1, 2, 5))


@given(bits=st.integers(1, 15), shift=st.integers(-6, 4), seed=st.integers(0, 9))
def test_sixteen_bits_come_back_exactly(bits, shift, seed):
    whole = np.random.default_rng(seed).integers(-(2**bits), 2**bits, 50)
    samples = (whole * 2.0 ** (shift - 15)).astype(np.float32)
    kept, scale = to_int16(samples)
    assert kept.dtype == np.dtype("<i2")
    np.testing.assert_array_equal(kept * np.float32(scale), samples)


@pytest.mark.parametrize("peak", [1e-6, 0.3, 1.0, 1.7, 30_000.0])
def test_what_sixteen_bits_lose_is_half_a_step_of_the_peak(peak):
    samples = (peak * np.sin(np.arange(1000))).astype(np.float32)
    kept, scale = to_int16(samples)
    assert 2**13 < np.abs(kept.astype(int)).max() <= 2**15
    assert np.abs(kept * scale - samples).max() <= scale * (1.0 if peak == 1.0 else 0.5 + 1e-3)
    assert to_int16(np.zeros(3, np.float32))[0].tolist() == [0, 0, 0]


def test_columns_are_those_of_the_spectrogram():
    lengths = np.array([0, 1, 79, 80, 81, 240, 16_000, 79_999])
    expected = [0] + [HOST.frames(n / 16_000) for n in lengths[1:].tolist()]
    assert columns(lengths, HOST).tolist() == expected


def test_a_small_record_of_hours_is_decoded_no_further_than_its_clip_reaches():
    (content,) = encode("clip", (0,), np.zeros(5_000_000, np.int16), 1.0, 300_000, "flac")
    assert len(content) < 50_000
    assert len(decode_record(content, 100)[1]) == 101
