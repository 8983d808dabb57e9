"""Samples in an array are checked and scaled as those of files."""

import numpy as np
import pytest
import soundfile

from datar_jax.audio.errors import AudioError
from datar_jax.audio.recording import measure, recording_of_samples
from datar_jax.config import AudioConfig
from tests.helpers import sound

AUDIO = AudioConfig()
SOUND = sound(AUDIO, 1.0)


def samples_of(recording):
    return recording.kept_N


@pytest.mark.parametrize(
    ("dtype", "subtype"), [("int16", "PCM_16"), ("int32", "PCM_32"), ("uint8", "PCM_U8"), ("float64", "DOUBLE")]
)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("order", ["=", ">"])
def test_an_array_of_any_type_is_the_file_of_its_samples(tmp_path, dtype, subtype, rate, channels, order):
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND[:, None] * np.linspace(1, 0.5, channels), rate, subtype=subtype)
    samples = soundfile.read(path, dtype="int16" if dtype == "uint8" else dtype, always_2d=True)[0]
    samples = ((samples >> 8) + 128).astype(np.uint8) if dtype == "uint8" else samples
    samples = samples.astype(samples.dtype.newbyteorder(order))
    expected, tolerance = measure(path, AUDIO), 2e-6
    for given in (samples, samples.T, np.asfortranarray(samples), samples[:, 0] if channels == 1 else samples):
        np.testing.assert_allclose(
            samples_of(recording_of_samples(given, rate, AUDIO)), samples_of(expected), atol=tolerance
        )


def test_half_precision_and_lists_are_samples():
    half = SOUND.astype(np.float16)
    np.testing.assert_array_equal(samples_of(recording_of_samples(half, 16_000, AUDIO)), half.astype(np.float32))
    np.testing.assert_array_equal(samples_of(recording_of_samples(SOUND.tolist(), 16_000, AUDIO)), SOUND)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros(16_000), "silent"),
        (np.full((16_000, 2), 0.25), "silent"),
        (np.zeros(16_000, np.int16), "silent"),
        (np.full(16_000, 128, np.uint8), "silent"),
        (SOUND * 32_768, "full scale"),
        (SOUND.astype(np.float64) * 1e30, "full scale"),
        (SOUND.astype(np.float64) * 1e300, "NaN or infinity"),
        (np.where(np.arange(16_000) == 9, np.nan, SOUND), "NaN or infinity"),
        (np.where(np.arange(16_000) == 9, -np.inf, SOUND), "NaN or infinity"),
    ],
)
def test_what_is_no_sound_in_a_file_is_none_in_an_array(samples, said):
    with pytest.raises(AudioError, match=said):
        recording_of_samples(samples, 16_000, AUDIO)


@pytest.mark.parametrize("count", [1, 5])
def test_samples_that_leave_none_at_the_models_rate_are_too_short(count):
    with pytest.raises(AudioError, match=r"too short|silent"):
        recording_of_samples(np.arange(count, dtype=np.float32), 384_000, AUDIO)


@pytest.mark.parametrize("rate", [np.nan, np.inf, -np.inf, 0, -16_000, 1, 1e9])
def test_a_rate_that_no_recording_has_is_refused(rate):
    with pytest.raises(AudioError, match="sample rate of"):
        recording_of_samples(SOUND, rate, AUDIO)


@pytest.mark.parametrize(
    "shape", [(2, 2), (8, 8), (2, 30), (30, 2), (64, 200), (16_000, 100), (3, 1, 16_000), (), (0,)]
)
def test_a_shape_that_may_mean_two_things_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        recording_of_samples(np.random.default_rng(0).uniform(-1, 1, shape), 16_000, AUDIO)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint64, complex, object, "U4"])
def test_a_type_without_a_full_scale_is_refused(dtype):
    with pytest.raises(ValueError, match="type"):
        recording_of_samples(np.ones(16_000).astype(dtype), 16_000, AUDIO)


@pytest.mark.parametrize(("scale", "notes"), [(1.0, 0), (14.0, 0), (50.0, 1), (1e-5, 1), (1e-30, 1), (1e-3, 0)])
def test_a_peak_of_perhaps_another_scale_is_noted(tmp_path, scale, notes):
    soundfile.write(tmp_path / "a.wav", SOUND * scale, 16_000, subtype="FLOAT")
    for recording in (recording_of_samples(SOUND * scale, 16_000, AUDIO), measure(tmp_path / "a.wav", AUDIO)):
        assert ["full scale is 1" in note for note in recording.notes] == notes * [True]


def test_samples_that_a_mask_hides_are_no_sound():
    masked = np.ma.masked_array(SOUND, np.arange(SOUND.size) % 2 == 0)
    with pytest.raises(ValueError, match="mask"):
        recording_of_samples(masked, 16_000, AUDIO)
    assert recording_of_samples(np.ma.masked_array(SOUND), 16_000, AUDIO).length == SOUND.size


def test_channels_that_cancel_each_other_are_noted():
    recording = recording_of_samples(np.stack([SOUND, -SOUND]), 16_000, AUDIO)
    np.testing.assert_array_equal(samples_of(recording), SOUND)
    assert "cancel" in recording.notes[0]


@pytest.mark.parametrize(("length", "notes"), [(2, 1), (200, 1), (399, 1), (400, 0), (16_000, 0)])
def test_a_sound_shorter_than_a_spectrogram_window_is_noted(tmp_path, length, notes):
    soundfile.write(tmp_path / "a.wav", SOUND[:length], 16_000, subtype="FLOAT")
    for recording in (recording_of_samples(SOUND[:length], 16_000, AUDIO), measure(tmp_path / "a.wav", AUDIO)):
        assert len(recording.notes) == notes
        assert all("less than one spectrogram window (25 ms)" in note for note in recording.notes)
