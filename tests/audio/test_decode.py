"""Sound in, samples out: against what was written, and against files that are broken."""

import os
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from datar_jax.audio import decode as audio_room
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.audio.sound_file import SUFFIXES


def sound(seconds, seed=0):
    """A chirp in noise that fades by 60 dB, at 16 kHz."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    wave = 0.5 * np.sin(2 * np.pi * (200 + 900 * t) * t) + 0.05 * np.random.default_rng(seed).standard_normal(t.size)
    return (wave * 10 ** (-3 * t / seconds)).astype(np.float32)


def tone(rate, seconds=1.0, hertz=440.0, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


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
    soundfile.write(path, sound(2.0), 16_000)
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
    soundfile.write(tmp_path / "a.wav", sound(2.0), 16_000)
    with pytest.raises(AudioError, match=reason):
        decode(tmp_path / "a.wav", 16_000, start, end)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "w64", "rf64", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_truncated_files_are_distinguished_from_short_ones(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(3.0), 16_000)
    content = path.read_bytes()
    assert decode(path, 16_000).size == pytest.approx(48_000, abs=2)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        decode(path, 16_000)


def test_a_streamed_wav_without_a_length_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(1.0), 16_000)
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
    soundfile.write(path, sound(2.0), 16_000)
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
    soundfile.write(path, sound(1.0), 16_000)
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
    soundfile.write(path, sound(1.0), 16_000)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz"):
        decode(path, 16_000)


def test_two_samples_of_which_resampling_leaves_none_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5, -0.5]), 192_000)
    with pytest.raises(AudioError, match="too short: no sample is left at 8000 Hz"):
        decode(tmp_path / "a.wav", 8_000)


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
    soundfile.write(path, np.stack([sound(3.0), sound(3.0, 1)], 1), rate)
    read_N = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    whole_N = read_N if rate == 16_000 else soxr.resample(read_N, rate, 16_000, quality="HQ")
    np.testing.assert_allclose(decode(path, 16_000), whole_N, atol=2e-7 if suffix == "mp3" else 0)  # it seeks first
    once_N = decode(path, 16_000)
    monkeypatch.setattr(audio_room, "BLOCK", 5_000)
    np.testing.assert_array_equal(decode(path, 16_000), once_N)


def test_a_name_that_is_no_utf_8_can_be_read(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe.wav")
    soundfile.write(tmp_path / "a.wav", sound(1.0), 16_000)
    (tmp_path / "a.wav").rename(path)
    assert decode(path, 16_000).size == 16_000


def broken(folder):
    """One file of every kind of damage: name to the reason that must be given."""
    noise = sound(0.5)
    spoiled = noise.copy()
    spoiled[100] = np.nan
    endless = noise.copy()
    endless[100] = np.inf
    soundfile.write(folder / "nan.wav", spoiled, 16_000, subtype="FLOAT")
    soundfile.write(folder / "infinite.wav", endless, 16_000, subtype="FLOAT")
    soundfile.write(folder / "huge.wav", noise * 1e20, 16_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(8_000), 16_000)
    soundfile.write(folder / "constant.wav", np.full(8_000, 0.25), 16_000)
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
        "huge.wav": "full scale",
        "silent.wav": "silent",
        "constant.wav": "silent",
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
