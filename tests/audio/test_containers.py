"""All sound of a file is heard, whatever its header tells: against what was written into it."""

import contextlib
import os
import resource
import shutil
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from datar_jax.audio import containers
from datar_jax.audio.containers import find_sections
from datar_jax.audio.containers.mpeg import mpeg_frame
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.config import AudioConfig
from tests import helpers

RATE = 16_000
ENCODINGS = [
    *(("wav", subtype) for subtype in ("PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
    *(("flac", subtype) for subtype in ("PCM_16", "PCM_24", "PCM_S8")),
    ("ogg", "VORBIS"),
    ("ogg", "OPUS"),
    ("mp3", "MPEG_LAYER_III"),
    *(("aiff", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM")),
    *(("au", subtype) for subtype in ("PCM_16", "FLOAT", "ULAW")),
    *(("w64", subtype) for subtype in ("PCM_16", "FLOAT", "MS_ADPCM")),
    *(("caf", subtype) for subtype in ("PCM_16", "FLOAT", "ULAW", "ALAC_16")),
    *(("rf64", subtype) for subtype in ("PCM_16", "FLOAT")),
    ("nist", "PCM_16"),
]


def sound(seconds, seed=0):
    return helpers.sound(AudioConfig(sample_rate=RATE), seconds, seed)


def write(path, samples_N, subtype="PCM_16", rate=RATE, channels=1, **options):
    soundfile.write(path, np.repeat(samples_N[:, None], channels, 1), rate, subtype=subtype, **options)
    return path.read_bytes()


@pytest.mark.parametrize(("suffix", "subtype"), ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_joined_files_are_heard_one_after_another(tmp_path, suffix, subtype, channels):
    parts = [tmp_path / f"{i}.{suffix}" for i in range(3)]
    content = b"".join(write(p, sound(1.0 + i, i), subtype, channels=channels) for i, p in enumerate(parts))
    path, notes = tmp_path / f"joined.{suffix}", []
    path.write_bytes(content)
    whole = np.concatenate([decode(part, RATE) for part in parts])
    heard = decode(path, RATE, note=notes.append)
    np.testing.assert_allclose(heard, whole, atol=1e-6)
    assert "joined" in notes[0]
    if suffix != "mp3" and "ADPCM" not in subtype:  # whose frames depend on those before them
        np.testing.assert_allclose(decode(path, RATE, 0.5, 2.5), whole[8_000:40_000], atol=1e-4)
        np.testing.assert_allclose(decode(path, RATE, 1.5), whole[24_000:], atol=1e-4)


def test_a_chunk_between_joined_files_hides_nothing(tmp_path):
    path, notes = tmp_path / "joined.wav", []
    parts = [write(tmp_path / f"{i}.wav", sound(1.0, i)) for i in range(3)]
    path.write_bytes(b"LIST\x04\x00\x00\x00INFO".join(parts))
    whole = np.concatenate([decode(tmp_path / f"{i}.wav", RATE) for i in range(3)])
    np.testing.assert_array_equal(decode(path, RATE, note=notes.append), whole)
    assert "3 files that were joined" in notes[0]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_thousands_of_joined_files_are_read_with_one_open(tmp_path, suffix):
    content = write(tmp_path / f"a.{suffix}", sound(0.1), soundfile.default_subtype(suffix))
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(2_000 * content)
    before, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limit))
    try:
        heard = decode(path, RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, limit))
    assert heard.size == pytest.approx(2_000 * decode(tmp_path / f"a.{suffix}", RATE).size, rel=0.01)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@given(data=st.data())
@settings(max_examples=150)
def test_a_spoiled_header_is_read_or_refused_and_nothing_else(tmp_path_factory, suffix, data):
    folder = tmp_path_factory.mktemp("spoiled", numbered=True)
    path = folder / f"a.{suffix}"
    content = bytearray(2 * write(path, sound(0.2), soundfile.default_subtype(suffix)))
    for _ in range(data.draw(st.integers(0, 6))):
        near = data.draw(st.sampled_from([80, 600, len(content)]))
        content[data.draw(st.integers(0, min(near, len(content)) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.integers(1, 900), st.integers(1, len(content))))])
    with contextlib.suppress(AudioError):
        sections = find_sections(path).sections
        assert all(0 <= each.first < each.last <= path.stat().st_size for each in sections)
        decode(path, RATE)
    shutil.rmtree(folder)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_joined_files_of_other_rates_are_refused(tmp_path, suffix):
    parts = [tmp_path / f"{rate}.{suffix}" for rate in (8_000, 16_000)]
    subtype = soundfile.default_subtype(suffix)
    for part, rate in zip(parts, (8_000, 16_000)):
        write(part, sound(1.0), subtype, rate)
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(AudioError, match="joined files of 8000 and 16000 Hz"):
        decode(path, RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_the_last_of_joined_files_may_not_be_truncated(tmp_path, suffix):
    content = write(tmp_path / f"a.{suffix}", sound(2.0), soundfile.default_subtype(suffix))
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(content + content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        decode(path, RATE)


@pytest.mark.parametrize("first_loud", [True, False])
@pytest.mark.parametrize("rate", [44_100, 22_050, 11_025])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tag", [b"", b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)])
def test_every_frame_of_a_variable_bitrate_is_heard_without_its_xing_header(tmp_path, first_loud, rate, channels, tag):
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 10 * rate)
    loud = np.arange(noise.size) < noise.size // 2
    samples = np.where(loud if first_loud else ~loud, noise, 1e-4 * noise)
    path = tmp_path / "a.mp3"
    content = write(path, samples, "MPEG_LAYER_III", rate, channels, bitrate_mode="VARIABLE", compression_level=0.5)
    frame = mpeg_frame(content, 0)
    assert frame is not None and (b"Xing" in content[: frame.length] or b"Info" in content[: frame.length])
    path.write_bytes(tag + content[frame.length :])
    assert decode(path, RATE).size / RATE == pytest.approx(10, abs=0.15)


def test_a_xing_header_with_nothing_behind_it_holds_no_sound(tmp_path):
    path = tmp_path / "a.mp3"
    content = bytearray(write(path, sound(1.0), "MPEG_LAYER_III", bitrate_mode="VARIABLE"))
    frame = mpeg_frame(bytes(content), 0)
    at = max(content.find(b"Xing"), content.find(b"Info"))
    content[at + 4 : at + 8] = bytes(4)  # it states neither frames nor bytes
    for size in (at + 6, frame.length, frame.length + 3):
        path.write_bytes(content[:size])
        with pytest.raises(AudioError):
            decode(path, RATE)


def sized(content, told):
    """A WAV whose header tells another size of its samples."""
    at = content.index(b"data") + 4
    return content[:at] + struct.pack("<I", told) + content[at + 4 :]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tail", [b"", b"LIST\x04\x00\x00\x00INFO"])
@pytest.mark.parametrize("told", [0, 2_000_000_000, 0x7FFF_FFFF, 0x7FFF_F000, 0xFFFF_FFFF, 1_000_000_000, 20_000])
def test_a_size_that_cannot_be_is_replaced_by_what_is_there(tmp_path, subtype, channels, tail, told):
    path, notes = tmp_path / "a.wav", []
    content = write(path, sound(3.0), subtype, channels=channels)
    whole = decode(path, RATE)
    path.write_bytes(sized(content, told) + tail)
    heard = decode(path, RATE, note=notes.append)
    np.testing.assert_array_equal(heard, whole)
    assert f"the header states {told} bytes" in notes[0]


@pytest.mark.parametrize("off", [-44, -2, 2, 44])
def test_a_size_that_is_a_little_off_is_no_reason_to_refuse(tmp_path, off):
    path = tmp_path / "a.wav"
    content = write(path, sound(3.0))
    whole = decode(path, RATE)
    path.write_bytes(sized(content, 96_000 + off))
    heard = decode(path, RATE)
    np.testing.assert_array_equal(heard, whole[: heard.size])
    assert whole.size - heard.size <= 22


def test_a_wav_without_sound_is_empty_whatever_follows(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(write(path, np.zeros(0)) + b"LIST\x04\x00\x00\x00INFO")
    with pytest.raises(AudioError, match="holds no samples"):
        decode(path, RATE)


@pytest.mark.parametrize("tail", [b"TAG" + bytes(5000), b"ID3\x03" + b"x" * 5000, bytes(9000), b"id3 \x04\0\0\0abcd"])
def test_what_is_no_sound_behind_a_wav_is_not_heard(tmp_path, tail):
    path = tmp_path / "a.wav"
    content = write(path, sound(1.0))
    path.write_bytes(content + tail)
    assert decode(path, RATE).size == RATE


def test_a_wav_above_four_gigabytes_is_all_there(tmp_path):
    """Its header tells the remainder of a division by 2**32. The file has a hole, and takes no room."""
    path, size = tmp_path / "a.wav", 2**32 + 96_000
    content = write(path, sound(3.0))
    with path.open("wb") as file:
        file.write(sized(content, size % 2**32))
        file.truncate(44 + size)
    (section,), note = find_sections(path)
    assert (section.first, section.last) == (44, 44 + size) and f"there are {size}" in note


@pytest.mark.parametrize("told", [1, 16_000, 47_999])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_header_that_states_too_little_is_corrected(tmp_path, told, channels):
    path = tmp_path / "a.flac"
    content = bytearray(write(path, sound(3.0), channels=channels))
    whole = decode(path, RATE)
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36 | told
    content[18:26] = fields.to_bytes(8, "big")
    path.write_bytes(content)
    np.testing.assert_array_equal(decode(path, RATE), whole)
    np.testing.assert_array_equal(decode(path, RATE, 2.5), whole[40_000:])


@pytest.mark.parametrize(("suffix", "subtype"), ENCODINGS)
def test_a_file_as_its_encoder_wrote_it_is_left_to_libsndfile(tmp_path, suffix, subtype):
    for channels in (1, 2):
        for seconds in (0.02, 0.5, 3.0):
            write(tmp_path / f"a.{suffix}", sound(seconds), subtype, channels=channels)
            assert find_sections(tmp_path / f"a.{suffix}") == ((), "")


@pytest.mark.parametrize("left", [0, 10, 5_000])
@pytest.mark.parametrize(("suffix", "subtype"), ENCODINGS)
def test_a_file_that_is_cut_short_while_it_is_read_ends_no_process(tmp_path, monkeypatch, suffix, subtype, left):
    path = tmp_path / f"a.{suffix}"
    content = 3 * write(path, sound(1.0), subtype)

    class Cut(containers.Bytes):
        def __init__(self, file):
            super().__init__(file)
            os.truncate(path, left)

    monkeypatch.setattr(containers, "Bytes", Cut)
    path.write_bytes(content)
    with pytest.raises(AudioError):
        decode(path, RATE)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_cancel_each_other_are_not_averaged(tmp_path, channels):
    path, notes = tmp_path / "a.wav", []
    left = sound(1.0)
    signs = np.resize([1, -1], channels)
    soundfile.write(path, left[:, None] * signs, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(decode(path, RATE, note=notes.append), left)
    assert "cancel" in notes[0]
    soundfile.write(path, np.stack([left, 0 * left], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(decode(path, RATE), left / 2, atol=1e-7)


@pytest.mark.parametrize("scale", [2**15, 2**31])
def test_floats_at_the_scale_of_integers_are_refused(tmp_path, scale):
    soundfile.write(tmp_path / "a.wav", scale * sound(1.0), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="full scale"):
        decode(tmp_path / "a.wav", RATE)
