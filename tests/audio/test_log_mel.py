"""Samples in, log-mel out: against librosa in double precision, host against device, crops against wholes."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.audio import log_mel as logmel
from datar_jax.audio.framing import frame_bounds, frame_samples, num_samples
from datar_jax.audio.log_mel import log_mel, log_mel_frames, mel_basis
from datar_jax.audio.log_mel_jax import log_mel_jax
from datar_jax.config import AudioConfig
from tests.helpers import sound

FRONT_ENDS = (
    AudioConfig(),
    AudioConfig(n_mels=64, hop_ms=20.0),
    AudioConfig(sample_rate=22_050, window_ms=23.2, hop_ms=11.6, n_mels=96, fmin=0.0, fmax=10_000.0, floor_db=-60.0),
    AudioConfig(sample_rate=8_000, window_ms=32.0, n_mels=32),  # the window fills the transform
)


def librosa_power(samples_N, audio):
    """librosa's mel power in double precision."""
    return librosa.feature.melspectrogram(
        y=samples_N.astype(np.float64),
        sr=audio.sample_rate,
        n_fft=audio.n_fft,
        win_length=audio.win_length,
        hop_length=audio.hop_length,
        window="hann",
        pad_mode="reflect",
        power=2.0,
        n_mels=audio.n_mels,
        fmin=audio.fmin,
        fmax=audio.highest,
        dtype=np.float64,
    )


def reference(samples_N, audio):
    return librosa.power_to_db(librosa_power(samples_N, audio), ref=1.0, amin=10 ** (audio.floor_db / 10), top_db=None)


def on_device(samples_N, audio):
    """The device's front end for one whole clip."""
    frames = audio.frames(samples_N.size / audio.sample_rate)
    whole_N = frame_samples(samples_N, 0, samples_N.size, audio, 0, frames)
    return np.asarray(log_mel_jax(jnp.asarray(whole_N, jnp.float32)[None], jnp.array([frames]), audio))[0]


def tone(rate, seconds=1.0, hertz=440.0, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


@pytest.mark.parametrize("audio", FRONT_ENDS)
@pytest.mark.parametrize("seconds", [0.31, 1.0, 1.237])
def test_log_mel_is_librosa_in_decibels(audio, seconds):
    samples = sound(audio, seconds)
    mel, expected = log_mel(samples, audio), reference(samples, audio)
    assert mel.dtype == np.float32
    assert mel.shape == (audio.n_mels, audio.frames(samples.size / audio.sample_rate))
    assert 0 <= expected.shape[1] - mel.shape[1] <= 1
    np.testing.assert_allclose(mel, expected[:, : mel.shape[1]], rtol=0, atol=2e-2)  # dB
    loud = expected[:, : mel.shape[1]] > -40
    np.testing.assert_allclose(mel[loud], expected[:, : mel.shape[1]][loud], rtol=0, atol=1e-3)


@pytest.mark.parametrize("audio", FRONT_ENDS)
@pytest.mark.parametrize("kind", ["noise", "fading chirp", "quiet", "tone in noise", "loud tone"])
def test_the_device_is_librosa_within_a_ten_thousandth(audio, kind):
    rng = np.random.default_rng(3)
    t = np.arange(round(1.237 * audio.sample_rate)) / audio.sample_rate
    samples = {
        "noise": 0.1 * rng.standard_normal(t.size),
        "fading chirp": sound(audio, 1.237),
        "quiet": 1e-3 * rng.standard_normal(t.size),
        "loud tone": np.sin(2 * np.pi * 440.3 * t) + 0.3,
        "tone in noise": 0.5 * np.sin(2 * np.pi * 440 * t) + 1e-2 * rng.standard_normal(t.size),
    }[kind].astype(np.float32)
    power = librosa_power(samples, audio)[:, : audio.frames(t.size / audio.sample_rate)]
    mel = on_device(samples, audio)
    # Single precision holds seven digits of the loudest bin of a frame; 60 dB below it are left four of a power.
    heard = power > np.maximum(10 ** (audio.floor_db / 10), 1e-6 * power.max(axis=0))
    assert heard.mean() > (0.05 if kind == "loud tone" else 0.5)
    np.testing.assert_allclose(10 ** (mel.astype(np.float64) / 10)[heard], power[heard], rtol=1e-4)
    above = power > 10 ** (audio.floor_db / 10)
    np.testing.assert_allclose(mel[above], 10 * np.log10(power[above]), rtol=0, atol=1e-2)
    np.testing.assert_allclose(mel[~above], audio.floor_db, rtol=0, atol=1e-2)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("audio", FRONT_ENDS[:3])
def test_device_and_host_front_ends_agree(audio, jit):
    samples_BxN = np.stack([sound(audio, 0.7, seed) for seed in range(3)])
    samples_BxN[1] = 0
    frames = audio.frames(samples_BxN.shape[1] / audio.sample_rate)
    excerpt_BxN = np.stack([frame_samples(x, 0, x.size, audio, 0, frames) for x in samples_BxN])
    function = jax.jit(log_mel_jax, static_argnums=2) if jit else log_mel_jax
    mel_BxFxT = np.asarray(function(jnp.asarray(excerpt_BxN), jnp.full(3, frames), audio))
    assert mel_BxFxT.dtype == np.float32
    np.testing.assert_allclose(mel_BxFxT, np.stack([log_mel(x, audio) for x in samples_BxN]), rtol=0, atol=1e-3)


def test_one_clip_does_not_change_its_neighbours_and_padding_is_the_floor():
    audio = AudioConfig()
    size = num_samples(audio, 30)
    quiet, loud = 1e-3 * sound(audio, 1)[:size], 30 * sound(audio, 1, seed=1)[:size]
    together = log_mel_jax(jnp.stack([quiet, loud]), jnp.array([30, 12]), audio)
    alone = log_mel_jax(jnp.asarray(quiet)[None], jnp.array([30]), audio)
    np.testing.assert_allclose(together[0], alone[0], rtol=0, atol=1e-4)
    assert (np.asarray(together[1, :, 12:]) == np.float32(audio.floor_db)).all()
    assert (np.asarray(together[1, :, :12]) > audio.floor_db).any()


def test_the_device_front_end_differentiates_and_exports():
    audio = AudioConfig(n_mels=32)
    samples = jnp.asarray(sound(audio, 1)[: num_samples(audio, 20)])[None]
    frames = jnp.array([20])

    def loudness(x):
        return log_mel_jax(x, frames, audio).mean()

    # Every amplitude times 1 + e raises every bin by 20 log10(1 + e): the gradient along the sound is 20 / ln 10.
    slope = jnp.sum(jax.grad(loudness)(samples) * samples)
    assert float(slope) == pytest.approx(20 / np.log(10), rel=1e-3)
    assert np.isfinite(jax.grad(loudness)(jnp.zeros_like(samples))).all()
    (batch,) = jax.export.symbolic_shape("b")
    shapes = jax.ShapeDtypeStruct((batch, samples.shape[1]), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    exported = jax.export.export(jax.jit(lambda x, n: log_mel_jax(x, n, audio)))(*shapes)
    again = exported.call(samples, frames.astype(jnp.int32))
    np.testing.assert_allclose(again, log_mel_jax(samples, frames, audio), rtol=0, atol=1e-4)


@given(
    length=st.sampled_from([1, 100, 257, 400, 3_001, 16_000]),
    front_end=st.sampled_from(range(len(FRONT_ENDS))),
    data=st.data(),
)
def test_a_crop_has_the_columns_of_the_whole(length, front_end, data):
    audio = FRONT_ENDS[front_end]
    samples = sound(audio, 2.0)[:length]
    whole = log_mel(samples, audio)
    start = data.draw(st.integers(0, whole.shape[1] - 1))
    frames = data.draw(st.integers(1, whole.shape[1] - start))
    first, last = frame_bounds(length, audio, start, frames)
    assert 0 <= first < last <= length
    assert last - first <= num_samples(audio, frames) + audio.n_fft
    cut = frame_samples(samples[first:last], first, length, audio, start, frames)
    assert cut.size == num_samples(audio, frames)
    np.testing.assert_allclose(log_mel_frames(cut, audio), whole[:, start : start + frames], rtol=0, atol=1e-3)


@given(length=st.sampled_from([1, 2, 79, 80, 81, 159, 160, 256, 257, 399, 400, 512, 1000]))
def test_any_length_gives_the_frames_that_the_config_promises(length):
    audio = AudioConfig()
    samples = sound(audio, 1.0)[:length]
    mel = log_mel(samples, audio)
    assert mel.shape == (audio.n_mels, audio.frames(length / audio.sample_rate))
    assert np.isfinite(mel).all()
    np.testing.assert_allclose(on_device(samples, audio), mel, rtol=0, atol=1e-3)


@pytest.mark.parametrize("samples", [np.zeros((0,)), np.zeros((2, 100))])
def test_front_ends_refuse_other_shapes(samples):
    with pytest.raises(ValueError, match="has shape"):
        log_mel(samples, AudioConfig())
    with pytest.raises(ValueError, match="has shape"):
        log_mel_jax(jnp.zeros((1, 401)) if samples.ndim == 1 else jnp.zeros((400,)), jnp.ones(1), AudioConfig())


def test_silence_is_the_floor_and_peaks_above_one_are_finite():
    audio = AudioConfig(floor_db=-70.0)
    for front_end in (log_mel, on_device):
        np.testing.assert_allclose(front_end(np.zeros(8000, np.float32), audio), -70, atol=1e-4)
        half = np.concatenate([np.zeros(8000, np.float32), 3e4 * sound(audio, 0.5)])
        mel = front_end(half, audio)
        assert np.isfinite(mel).all()
        assert mel.min() == pytest.approx(-70, abs=1e-4)
        assert mel.max() > 60


def test_ten_times_the_amplitude_is_twenty_decibels_more():
    audio = AudioConfig()
    samples = sound(audio, 0.5)
    mel, louder = log_mel(samples, audio), log_mel(10 * samples, audio)
    above = mel > -60
    assert above.mean() > 0.5
    np.testing.assert_allclose(louder[above] - mel[above], 20, atol=1e-2)


def test_frequency_rises_with_the_row_and_time_with_the_column():
    audio = AudioConfig()
    rows = [log_mel(tone(16_000, 0.5, hertz)[:, 0], audio).mean(1).argmax() for hertz in (300, 1000, 3000, 7000)]
    assert rows == sorted(rows)
    assert len(set(rows)) == 4
    click = np.zeros(16_000, np.float32)
    click[4_800] = 1.0  # 0.3 s
    assert log_mel(click, audio).mean(0).argmax() == 30


def test_a_long_spectrogram_is_computed_in_pieces_that_do_not_show(monkeypatch):
    audio = AudioConfig()
    whole = log_mel(sound(audio, 1.0), audio)
    monkeypatch.setattr(logmel, "COLUMNS", 7)
    np.testing.assert_allclose(log_mel(sound(audio, 1.0), audio), whole, atol=1e-4)


def test_every_mel_row_hears_something_and_two_at_most_hear_the_same():
    for audio in FRONT_ENDS:
        assert (mel_basis(audio).sum(1) > 0).all()
        assert (mel_basis(audio) > 0).sum(0).max() == 2
