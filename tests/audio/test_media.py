"""Recordings of phones, decoded by PyAV: against the samples that were encoded."""

import builtins
import sys
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from benchmarks.robustness.intact_audio import Base, with_fields
from datar_jax.audio.decode import decode, duration
from datar_jax.audio.errors import AudioError
from datar_jax.audio.media import MEDIA_SUFFIXES, MediaFile
from datar_jax.audio.sound_file import SUFFIXES
from datar_jax.inference.windows import iter_audio_files

RATE = 16_000
# Ending, container of FFmpeg, codec and rate.
KINDS = [
    ("m4a", "ipod", "aac", 44_100),
    ("m4a", "ipod", "alac", 44_100),
    ("mp4", "mp4", "aac", 48_000),
    ("mp4", "mp4", "aac", 16_000),
    ("mov", "mov", "aac", 44_100),
    ("3gp", "3gp", "aac", 32_000),
    ("aac", "adts", "aac", 44_100),
    ("webm", "webm", "libopus", 48_000),
    ("mka", "matroska", "aac", 44_100),
    ("caf", "caf", "alac", 44_100),
]


def click(rate, seconds=2.0, at=1.0):
    """Silence with a click."""
    samples = np.zeros(round(seconds * rate), np.float32)
    samples[round(at * rate)] = 0.9
    return samples


def encode(path, samples_N, container, codec, rate, channels=1):
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo"}[channels])
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=stream.layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.tile(samples_N, (channels, 1)), "fltp", stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        for each in resampler.resample(frame):
            fifo.write(each)
        size = stream.codec_context.frame_size or 1024
        count = 0
        while part := fifo.read(size, partial=True):
            part.pts, part.time_base = count, Fraction(1, rate)  # from which the encoder's delay is written
            count += part.samples
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))


def test_a_damaged_file_of_a_format_of_libsndfile_is_not_left_to_a_decoder_that_reads_over_damage(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, RATE), RATE)
    path.write_bytes(with_fields(Base("flac", path.read_bytes(), RATE), rate=0))
    with pytest.raises(AudioError, match="cannot be decoded"):
        decode(path, RATE)


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 23])
def test_every_channel_is_read(tmp_path, channels):
    """Of planes of eight channels or more PyAV counts some that are none, and reading these ended the process."""
    pytest.importorskip("av")
    sound_NxC = np.random.default_rng(0).uniform(-1, 1, (5_000, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound_NxC, RATE, "FLOAT")
    file = MediaFile(tmp_path / "a.wav")
    read_NxC = np.concatenate([file.read(1_000, "float32", True) for _ in range(100)])
    assert file.channels == channels
    np.testing.assert_array_equal(read_NxC, sound_NxC)


@pytest.mark.parametrize(("suffix", "container", "codec", "rate"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_click_lies_where_it_does_in_the_wav(tmp_path, suffix, container, codec, rate, channels):
    path = tmp_path / f"a.{suffix}"
    encode(path, click(rate), container, codec, rate, channels)
    soundfile.write(tmp_path / "a.wav", click(rate), rate)
    heard, wanted = decode(path, RATE), decode(tmp_path / "a.wav", RATE)
    assert abs(int(np.abs(heard).argmax()) - int(np.abs(wanted).argmax())) <= 0.002 * RATE
    assert heard.size / RATE == pytest.approx(2, abs=0.06)
    assert heard.dtype == np.float32


def test_a_part_is_the_slice_of_the_whole(tmp_path):
    path = tmp_path / "a.m4a"
    encode(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32), "ipod", "aac", RATE)
    whole = decode(path, RATE)
    np.testing.assert_array_equal(decode(path, RATE, 0.5, 1.25), whole[8_000:20_000])
    np.testing.assert_array_equal(decode(path, RATE, 1.5), whole[24_000:])
    for start, end in ((0.0, 3.0), (5.0, 0.0)):
        with pytest.raises(AudioError):
            decode(path, RATE, start, end)


@pytest.mark.parametrize("loud_first", [True, False])
def test_a_bare_stream_is_as_long_as_its_frames(tmp_path, loud_first):
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 8 * 48_000).astype(np.float32)
    loud = np.arange(noise.size) < noise.size // 2
    encode(tmp_path / "a.aac", np.where(loud == loud_first, noise, 1e-4 * noise), "adts", "aac", 48_000)
    assert decode(tmp_path / "a.aac", RATE).size / RATE == pytest.approx(8, abs=0.1)
    assert duration(tmp_path / "a.aac") == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_truncated_and_foreign_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 6 * 48_000).astype(np.float32)
    encode(path, noise, *{"m4a": ("ipod", "aac"), "webm": ("webm", "libopus")}[suffix], 48_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        decode(path, RATE)
    path.write_text("This is a letter, not a sound.\n" * 50)
    with pytest.raises(AudioError, match=r"cannot be decoded|no sound stream"):
        decode(path, RATE)


def test_a_film_without_sound_is_refused(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        out.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no sound stream"):
        decode(tmp_path / "a.mp4", RATE)


def test_the_length_of_a_recording_is_known_before_its_end(tmp_path):
    for name, container, codec in (("a.m4a", "ipod", "aac"), ("a.webm", "webm", "libopus"), ("a.aac", "adts", "aac")):
        encode(tmp_path / name, click(48_000, 3.0), container, codec, 48_000)
        assert duration(tmp_path / name) == pytest.approx(3, abs=0.1)


def without_pyav(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "av", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)


def test_without_pyav_every_media_file_is_named_with_the_command(tmp_path, monkeypatch):
    without_pyav(monkeypatch)
    assert MEDIA_SUFFIXES < SUFFIXES
    for suffix in MEDIA_SUFFIXES:
        (tmp_path / f"a{suffix}").write_bytes(b"x" * 99)
        with pytest.raises(AudioError, match=rf"\{suffix} needs PyAV to be decoded: pip install av"):
            decode(tmp_path / f"a{suffix}", RATE)
    (tmp_path / "notes.txt").touch()
    assert len(list(iter_audio_files([tmp_path]))) == len(MEDIA_SUFFIXES)


@pytest.mark.parametrize("name", ["a.caf", "a.wav", "a.mp3", "a"])
def test_without_pyav_its_formats_are_named_under_other_endings(tmp_path, monkeypatch, name):
    path = tmp_path / name
    encode(path, click(RATE), *(("caf", "alac") if name == "a.caf" else ("ipod", "aac")), RATE)
    content = bytearray(path.read_bytes())
    if name == "a.caf":  # a codec that libsndfile does not know
        at = content.index(b"desc") + 12 + 8
        content[at : at + 4] = b"aac "
    path.write_bytes(content)
    without_pyav(monkeypatch)
    with pytest.raises(AudioError, match="needs PyAV to be decoded: pip install av"):
        decode(path, RATE)
    path.write_text("no sound at all, but a letter")
    with pytest.raises(AudioError, match="cannot be decoded"):
        decode(path, RATE)
