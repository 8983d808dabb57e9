"""Sound in, log-mel out: against librosa, against each other, and against files that are broken."""

import os
import tracemalloc

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from datar_jax import audio as audio_room
from datar_jax.audio import SUFFIXES, AudioError, decode, log_mel, log_mel_jax, mel_basis
from datar_jax.config import AudioConfig

FRONT_ENDS = (
    AudioConfig(),
    AudioConfig(mels=64, hop_ms=20.0),
    AudioConfig(sample_rate=22_050, window_ms=23.2, hop_ms=11.6, mels=96, fmin=0.0, fmax=10_000.0, floor_db=-60.0),
    AudioConfig(sample_rate=8_000, window_ms=32.0, mels=32),  # the window fills the transform
)


def reference(samples_N, audio):
    power = librosa.feature.melspectrogram(
        y=samples_N,
        sr=audio.sample_rate,
        n_fft=audio.fft,
        win_length=audio.window,
        hop_length=audio.hop,
        window="hann",
        pad_mode="reflect",
        power=2.0,
        n_mels=audio.mels,
        fmin=audio.fmin,
        fmax=audio.highest,
    )
    return librosa.power_to_db(power, ref=1.0, amin=10 ** (audio.floor_db / 10), top_db=None)


def sound(audio, seconds=1.0, seed=0):
    """A chirp in noise that fades by 60 dB."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * audio.sample_rate)) / audio.sample_rate
    wave = 0.5 * np.sin(2 * np.pi * (200 + 900 * t) * t) + 0.05 * rng.standard_normal(t.size)
    return (wave * 10 ** (-3 * t / max(seconds, 1e-9))).astype(np.float32)


def tone(rate, seconds=1.0, hertz=440.0, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


@pytest.mark.parametrize("audio", FRONT_ENDS)
@pytest.mark.parametrize("seconds", [0.31, 1.0, 1.237])
def test_log_mel_is_librosa_in_decibels(audio, seconds):
    samples = sound(audio, seconds)
    mel, expected = log_mel(samples, audio), reference(samples, audio)
    assert mel.dtype == np.float32
    assert mel.shape == (audio.mels, audio.frames(samples.size / audio.sample_rate))
    assert 0 <= expected.shape[1] - mel.shape[1] <= 1
    np.testing.assert_allclose(mel, expected[:, : mel.shape[1]], rtol=0, atol=2e-2)  # dB
    loud = expected[:, : mel.shape[1]] > -40
    np.testing.assert_allclose(mel[loud], expected[:, : mel.shape[1]][loud], rtol=0, atol=1e-3)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("audio", FRONT_ENDS[:3])
def test_device_and_host_front_ends_agree(audio, jit):
    samples_BxN = np.stack([sound(audio, 0.7, seed) for seed in range(3)])
    samples_BxN[1] = 0
    function = jax.jit(log_mel_jax, static_argnums=1) if jit else log_mel_jax
    mel_BxFxT = np.asarray(function(jnp.asarray(samples_BxN), audio))
    assert mel_BxFxT.dtype == np.float32
    np.testing.assert_allclose(mel_BxFxT, np.stack([log_mel(x, audio) for x in samples_BxN]), rtol=0, atol=1e-3)


def test_one_clip_does_not_change_its_neighbours():
    audio = AudioConfig()
    quiet, loud = 1e-3 * sound(audio, 0.3), 30 * sound(audio, 0.3, seed=1)
    together = log_mel_jax(jnp.stack([quiet, loud]), audio)
    np.testing.assert_allclose(together[0], log_mel_jax(jnp.asarray(quiet)[None], audio)[0], rtol=0, atol=1e-4)


@given(length=st.sampled_from([1, 2, 79, 80, 81, 159, 160, 256, 257, 399, 400, 512, 1000]))
def test_any_length_gives_the_frames_that_the_config_promises(length):
    audio = AudioConfig()
    samples = sound(audio, 1.0)[:length]
    mel = log_mel(samples, audio)
    assert mel.shape == (audio.mels, audio.frames(length / audio.sample_rate))
    assert np.isfinite(mel).all()
    np.testing.assert_allclose(log_mel_jax(jnp.asarray(samples)[None], audio)[0], mel, rtol=0, atol=1e-3)


@pytest.mark.parametrize("samples", [np.zeros((0,)), np.zeros((2, 100))])
def test_front_ends_refuse_other_shapes(samples):
    with pytest.raises(ValueError, match="has shape"):
        log_mel(samples, AudioConfig())
    with pytest.raises(ValueError, match="has shape"):
        log_mel_jax(jnp.zeros((1, 0)) if samples.ndim == 1 else jnp.zeros((5,)), AudioConfig())


def test_silence_is_the_floor_and_peaks_above_one_are_finite():
    audio = AudioConfig(floor_db=-70.0)
    for front_end in (log_mel, lambda x, a: np.asarray(log_mel_jax(jnp.asarray(x)[None], a)[0])):
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
    monkeypatch.setattr(audio_room, "COLUMNS", 7)
    np.testing.assert_allclose(log_mel(sound(audio, 1.0), audio), whole, atol=1e-4)


def test_every_mel_row_hears_something():
    for audio in FRONT_ENDS:
        assert (mel_basis(audio).sum(1) > 0).all()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_decode_gives_one_second_of_the_tone(tmp_path, suffix, rate, channels):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, 1.0, 440.0, channels), rate)
    samples = decode(path, 16_000)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert samples.size == pytest.approx(16_000, abs=2)
    middle = samples[4_000:12_000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)
    assert np.abs(np.fft.rfft(middle)).argmax() * 2 == pytest.approx(440, abs=2)  # bins of 2 Hz


def test_channels_are_averaged_and_levels_kept(tmp_path):
    left, right = np.full(1000, 2.5), np.linspace(-1, 1, 1000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(decode(tmp_path / "a.wav", 16_000), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_part_is_the_slice_of_the_whole(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(AudioConfig(), 2.0), 16_000)
    whole = decode(path, 16_000)
    np.testing.assert_allclose(decode(path, 16_000, 0.5, 1.25), whole[8_000:20_000], atol=1e-4)
    np.testing.assert_allclose(decode(path, 16_000, 1.5), whole[24_000:], atol=1e-4)
    assert decode(path, 16_000, 0.0, 2.05).size == whole.size  # lists round


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (2.0, 0.0, "starts at 2 s"),
        (1e305, 0.0, "starts at"),
        (0.0, 3.0, "ends at 3 s"),
        (1.0, 0.5, "is empty"),
        (-1.0, 0.0, "is empty"),
    ],
)
def test_parts_outside_the_file_are_refused(tmp_path, start, end, reason):
    soundfile.write(tmp_path / "a.wav", sound(AudioConfig(), 2.0), 16_000)
    with pytest.raises(AudioError, match=reason):
        decode(tmp_path / "a.wav", 16_000, start, end)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "w64", "rf64", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_truncated_files_are_told_from_short_ones(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(AudioConfig(), 3.0), 16_000)
    content = path.read_bytes()
    assert decode(path, 16_000).size == pytest.approx(48_000, abs=2)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        decode(path, 16_000)


def test_a_streamed_wav_without_a_length_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(AudioConfig(), 1.0), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # what a writer leaves that could not seek back
    assert content[36:40] == b"data"
    path.write_bytes(content)
    assert decode(path, 16_000).size == 16_000


def flac_header(path, rate=None, frames=None):
    """Overwrites two fields of a FLAC file's STREAMINFO: 20 bits rate, 8 bits others, 36 bits frames."""
    content = bytearray(path.read_bytes())
    fields = int.from_bytes(content[18:26], "big")
    fields = fields if rate is None else fields % 2**44 | rate << 44
    fields = fields if frames is None else fields >> 36 << 36 | frames
    content[18:26] = fields.to_bytes(8, "big")
    path.write_bytes(content)


def test_a_streamed_flac_without_a_length_is_whole(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(AudioConfig(), 2.0), 16_000)
    whole = decode(path, 16_000)
    flac_header(path, frames=0)
    np.testing.assert_array_equal(decode(path, 16_000), whole)
    np.testing.assert_array_equal(decode(path, 16_000, 0.5), whole[8_000:])
    np.testing.assert_array_equal(decode(path, 16_000, 0.5, 1.0), whole[8_000:16_000])
    with pytest.raises(AudioError, match="truncated"):
        decode(path, 16_000, 0.5, 3.0)


@pytest.mark.parametrize("frames", [36_000 * 16_000, 2**36 - 1])
def test_hours_that_a_header_promises_take_no_memory(tmp_path, frames):
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(AudioConfig(), 1.0), 16_000)
    flac_header(path, frames=frames)
    tracemalloc.start()
    with pytest.raises(AudioError, match="longer than an hour"):
        decode(path, 16_000)
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        decode(path, 16_000, 0.0, 3_500.0)
    assert tracemalloc.get_traced_memory()[1] < 16e6  # bytes
    tracemalloc.stop()


@pytest.mark.parametrize("told", [True, False])
def test_hours_in_a_small_file_take_no_memory(tmp_path, told):
    path = tmp_path / "a.flac"
    quiet = np.zeros(4_000_000, np.int16)
    quiet[::99_999] = 1
    soundfile.write(path, quiet, 1_000)  # at 16 kHz 256 MB
    assert path.stat().st_size < 40_000
    if not told:
        flac_header(path, frames=0)
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"longer than an hour.*list parts"):
        decode(path, 16_000)
    assert decode(path, 16_000, 3_900.0, 4_000.0).size == 100 * 16_000  # a part may be used
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


@pytest.mark.parametrize("rate", [1, 7, 999, 1_000_001, 2**31 - 1])
def test_rates_that_no_recording_has_are_refused(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(AudioConfig(), 1.0), 16_000)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz"):
        decode(path, 16_000)


def test_a_wav_that_promises_ten_hours_is_no_stream(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(44_100), 44_100)
    content = bytearray(path.read_bytes())
    content[40:44] = (36_000 * 88_200).to_bytes(4, "little")  # over 2 GiB, but not the largest number
    path.write_bytes(content)
    with pytest.raises(AudioError, match="truncated: 88200 of 3175200000 promised bytes"):
        decode(path, 16_000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_long_file_is_read_in_pieces_that_do_not_show(tmp_path, monkeypatch, suffix, rate):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([sound(AudioConfig(), 3.0), sound(AudioConfig(), 3.0, 1)], 1), rate)
    read_N = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    whole_N = read_N if rate == 16_000 else soxr.resample(read_N, rate, 16_000, quality="HQ")
    np.testing.assert_allclose(decode(path, 16_000), whole_N, atol=2e-7 if suffix == "mp3" else 0)  # it seeks first
    once_N = decode(path, 16_000)
    monkeypatch.setattr(audio_room, "BLOCK", 5_000)
    np.testing.assert_array_equal(decode(path, 16_000), once_N)


def test_a_name_that_is_no_utf_8_can_be_read(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe.wav")
    soundfile.write(tmp_path / "a.wav", sound(AudioConfig(), 1.0), 16_000)
    (tmp_path / "a.wav").rename(path)
    assert decode(path, 16_000).size == 16_000


def broken(folder):
    """One file of every kind of damage: name to the reason that must be given."""
    noise = sound(AudioConfig(), 0.5)
    spoiled = noise.copy()
    spoiled[100] = np.nan
    endless = noise.copy()
    endless[100] = np.inf
    soundfile.write(folder / "nan.wav", spoiled, 16_000, subtype="FLOAT")
    soundfile.write(folder / "infinite.wav", endless, 16_000, subtype="FLOAT")
    soundfile.write(folder / "huge.wav", noise * 1e20, 16_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(8_000), 16_000)
    soundfile.write(folder / "constant.wav", np.full(8_000, 0.25), 16_000)
    soundfile.write(folder / "opposed.wav", np.stack([noise, -noise], 1), 16_000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is a letter, not a sound.\n" * 50)
    for name in ("text.mp3", "text.au", "text.snd", "text.vox", "text.raw"):
        (folder / name).write_text("This is a letter, not a sound.\n" * 50)
    (folder / "folder.wav").mkdir()
    (folder / "link.wav").symlink_to("gone")
    (folder / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(folder / "pipe.wav")
    return {
        "nan.wav": "NaN or infinity",
        "infinite.wav": "NaN or infinity",
        "huge.wav": "no sound",
        "silent.wav": "silent",
        "constant.wav": "silent",
        "opposed.wav": "silent",
        "none.wav": "no samples",
        "empty.wav": "empty file",
        "text.wav": "cannot be decoded",
        "text.mp3": "no MPEG frame",
        "text.au": "without a header",
        "text.snd": "without a header",
        "text.vox": "without a header",
        "text.raw": "without a header",
        "folder.wav": "a folder, not a file",
        "link.wav": "a link to nothing",
        "loop.wav": "cannot be read",
        "pipe.wav": "a pipe or device",
        "missing.wav": "no such file",
    }


def test_each_kind_of_damage_is_named(tmp_path):
    for name, reason in [*broken(tmp_path).items(), ("null\0.wav", "no such file")]:
        with pytest.raises(AudioError, match=reason) as caught:
            decode(tmp_path / name, 16_000)
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_suffixes_cover_the_formats_people_have():
    assert {".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff"} <= SUFFIXES
    assert not {".txt", ".csv", ".json", ".raw", ".mat"} & SUFFIXES
