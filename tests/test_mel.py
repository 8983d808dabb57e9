"""The mel filters are librosa's to the last bit, and say so when there are too many of them."""

import warnings

import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datar_jax.config import AudioConfig
from datar_jax.mel import bin_of_hertz, mel_basis, to_hertz, to_mel


def librosa_basis(audio):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it too tells of filters that hear nothing
        return librosa.filters.mel(
            sr=audio.sample_rate, n_fft=audio.fft, n_mels=audio.mels, fmin=audio.fmin, fmax=audio.highest
        )


@given(
    st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000]),
    st.integers(32, 256),
    st.sampled_from([0.0, 20.0, 50.0, 333.3, 1_000.0, 1_200.0]),
    st.one_of(st.just(0.0), st.floats(1_500.0, 4_000.0)),
    st.floats(10.0, 90.0),
)
def test_filters_are_those_of_librosa_bit_for_bit(sample_rate, mels, fmin, fmax, window_ms):
    audio = AudioConfig(sample_rate=sample_rate, mels=mels, fmin=fmin, fmax=fmax, window_ms=window_ms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = mel_basis(audio), librosa_basis(audio)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)


def test_the_scale_is_librosas_and_turns_back():
    hertz = np.concatenate([np.linspace(0, 24_000, 999), [999.9999, 1_000.0, 1_000.0001]])
    np.testing.assert_array_equal(to_mel(hertz), librosa.hz_to_mel(hertz))
    np.testing.assert_array_equal(to_hertz(to_mel(hertz)), librosa.mel_to_hz(librosa.hz_to_mel(hertz)))
    np.testing.assert_allclose(to_hertz(to_mel(hertz)), hertz, rtol=1e-14)  # a few roundings of a logarithm
    assert to_mel(1_000) == pytest.approx(15) and to_mel(6_400) == pytest.approx(42)  # Slaney's definition


def test_a_bin_is_counted_from_the_centre_of_the_first_filter():
    audio = AudioConfig(mels=64)
    centres = librosa.mel_frequencies(66, fmin=audio.fmin, fmax=audio.highest)[1:-1]
    np.testing.assert_allclose(bin_of_hertz(centres, audio), np.arange(64), atol=1e-12)


def test_filters_that_hear_nothing_are_counted():
    audio = AudioConfig(mels=256)
    deaf = int((librosa_basis(audio).max(1) == 0).sum())
    assert deaf
    mel_basis.cache_clear()
    with pytest.warns(UserWarning, match=rf"audio.mels=256: {deaf} filters hear no frequency"):
        mel_basis(audio)
