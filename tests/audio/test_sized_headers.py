"""Sizes in the headers of AIFF, AU, Wave64, RF64, BW64, CAF, 8SVX and SPHERE: what is there is read, or refused."""

import os
import struct

import numpy as np
import pytest
import soundfile

from datar_jax.audio.containers import find_sections
from datar_jax.audio.decode import decode
from datar_jax.audio.errors import AudioError
from datar_jax.config import AudioConfig
from tests import helpers

RATE = 16_000
SOUND = helpers.sound(AudioConfig(sample_rate=RATE), 1.0)
GUID = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
# Of each format: what stands before the size of its samples, its form, bytes that it counts besides samples, and where
# samples begin behind it.
SIZES = {
    "wav": (b"data", "<I", 0, 4),
    "rf64": (b"ds64\x1c\0\0\0" + struct.pack("<Q", 0), "<Q", 0, 0),
    "aiff": (b"SSND", ">I", 8, 12),
    "svx": (b"BODY", ">I", 0, 4),
    "w64": (b"data" + GUID, "<Q", 24, 8),
    "caf": (b"data", ">q", 4, 12),
}
FORMATS = [
    *(("wav", subtype) for subtype in ("PCM_16", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    *(("aiff", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM")),
    *(("au", subtype) for subtype in ("PCM_16", "FLOAT", "ULAW", "G721_32")),
    *(("w64", subtype) for subtype in ("PCM_16", "FLOAT", "MS_ADPCM")),
    *(("caf", subtype) for subtype in ("PCM_16", "FLOAT", "ULAW")),
    *(("rf64", subtype) for subtype in ("PCM_16", "FLOAT")),
    ("svx", "PCM_16"),
]
UNKNOWN = {"w64": 2**64 - 1, "caf": -1, "rf64": 2**64 - 1}  # the others have 32 bits
TAILS = {
    "wav": b"LIST\x10\0\0\0" + b"INFOabcdefghijkl",
    "rf64": b"LIST\x10\0\0\0" + b"INFOabcdefghijkl",
    "aiff": b"ANNO\0\0\0\x10" + b"abcdefghijklmnop",
    "svx": b"ANNO\0\0\0\x10" + b"abcdefghijklmnop",
    "w64": b"levl" + GUID + struct.pack("<Q", 40) + b"abcdefghijklmnop",
    "caf": b"info" + struct.pack(">q", 16) + b"abcdefghijklmnop",
}


def write(path, subtype, samples_N=SOUND):
    soundfile.write(path, samples_N, RATE, subtype=subtype)
    return path.read_bytes()


def size_of(suffix, content):
    """Where the size of the samples stands, its form, its value, and bytes that it counts besides samples."""
    if suffix == "au":
        return 8, ">I", struct.unpack_from(">I", content, 8)[0], 0
    before, form, besides, _ = SIZES[suffix]
    at = content.index(before[:8] if suffix == "rf64" else before) + len(before)
    return at, form, struct.unpack_from(form, content, at)[0], besides


def stated(suffix, content, change):
    """The file with another size in its header."""
    at, form, size, _ = size_of(suffix, content)
    spoiled = bytearray(content)
    struct.pack_into(form, spoiled, at, change(size))
    return bytes(spoiled)


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
@pytest.mark.parametrize("size", [0, "unknown", 2_000_000_000, 0x7FFF_FFFF, "half", "third"])
def test_a_size_that_cannot_be_is_replaced_by_what_is_there(tmp_path, suffix, subtype, size):
    path, notes = tmp_path / f"a.{suffix}", []
    content = write(path, subtype)
    whole = decode(path, RATE)
    changes = {"unknown": lambda _: UNKNOWN.get(suffix, 2**32 - 1), "half": lambda n: n // 2, "third": lambda n: n // 3}
    path.write_bytes(stated(suffix, content, changes.get(size, lambda _: size)))
    np.testing.assert_array_equal(decode(path, RATE, note=notes.append), whole)
    allowed = size == "unknown" and suffix in ("au", "caf")  # their formats have a size for "to the end of the file"
    assert bool(notes) is not allowed


@pytest.mark.parametrize(("suffix", "subtype"), [each for each in FORMATS if each[0] != "au"])
@pytest.mark.parametrize("size", ["as it is", 0])
def test_chunks_behind_the_samples_are_not_sound(tmp_path, suffix, subtype, size):
    path = tmp_path / f"a.{suffix}"
    content = write(path, subtype)
    content += bytes(-len(content) % (8 if suffix == "w64" else 2))
    whole = decode(path, RATE)
    path.write_bytes(stated(suffix, content, lambda n: 0 if size == 0 else n) + TAILS[suffix])
    heard = decode(path, RATE)
    np.testing.assert_array_equal(heard[: whole.size], whole)
    assert heard.size - whole.size <= (0 if size else 4)  # padding, which no size tells from samples


@pytest.mark.parametrize(("suffix", "subtype"), [each for each in FORMATS if each[1] != "G721_32"])
@pytest.mark.parametrize("off", [-44, -2, 2, 44])
def test_a_size_that_is_a_little_off_is_no_reason_to_refuse(tmp_path, suffix, subtype, off):
    path = tmp_path / f"a.{suffix}"
    content = write(path, subtype)
    whole = decode(path, RATE)
    path.write_bytes(stated(suffix, content, lambda n: n + off))
    heard = decode(path, RATE)
    np.testing.assert_array_equal(heard, whole[: heard.size])
    block = {"MS_ADPCM": 1_012, "IMA_ADPCM": 64, "GSM610": 320}.get(subtype, 0)
    assert whole.size - heard.size <= max(44, block)
    if off > 0:
        assert heard.size == whole.size


@pytest.mark.parametrize(("suffix", "subtype"), [*FORMATS, ("caf", "ALAC_16"), ("nist", "PCM_16"), ("nist", "ULAW")])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_a_truncated_file_is_refused(tmp_path, suffix, subtype, part):
    path = tmp_path / f"a.{suffix}"
    content = write(path, subtype)
    samples = 1_500 if subtype == "GSM610" else len(content) // 2
    path.write_bytes(content[: len(content) - samples + int(part * samples)])
    with pytest.raises(AudioError, match="truncated"):
        decode(path, RATE)


@pytest.mark.parametrize(("suffix", "subtype"), [each for each in FORMATS if each[0] != "rf64"])
def test_joined_files_whose_recorder_crashed_are_read_one_after_another(tmp_path, suffix, subtype):
    path, notes = tmp_path / f"a.{suffix}", []
    content = stated(suffix, write(path, subtype), lambda _: 0)
    path.write_bytes(content)
    whole = decode(path, RATE)
    path.write_bytes(2 * content)
    heard = decode(path, RATE, note=notes.append)
    np.testing.assert_array_equal(heard, np.concatenate([whole, whole]))
    assert "2 files that were joined" in notes[0]


@pytest.mark.parametrize("suffix", ["wav", "aiff", "w64", "caf", "au"])
def test_a_file_above_four_gigabytes_is_all_there(tmp_path, suffix):
    """A size of 32 bits states the remainder of a division. The file has a hole, and takes no room."""
    path, size = tmp_path / f"a.{suffix}", 2**32 + 96_000
    content = write(path, "PCM_16")
    at, form, _, besides = size_of(suffix, content)
    start = {"au": 24}.get(suffix) or at + SIZES[suffix][3]
    limit = 2 ** (8 * struct.calcsize(form))
    with path.open("wb") as file:
        file.write(stated(suffix, content, lambda _: (size + besides) % limit if limit == 2**32 else 0))
        file.truncate(start + size)
    (section,), note = find_sections(path)
    assert (section.first, section.last) == (start, start + size) and f"there are {size}" in note


def test_bw64_is_read_as_the_rf64_that_it_is(tmp_path, monkeypatch):
    path = tmp_path / "a.rf64"
    content = write(path, "PCM_16")
    whole = decode(path, RATE)
    monkeypatch.setattr("datar_jax.audio.media.MediaFile.recognized", lambda _: None)
    for each, wanted in ((content, whole), (content + content, np.concatenate([whole, whole]))):
        path.write_bytes(each.replace(b"RF64", b"BW64"))
        np.testing.assert_array_equal(decode(path, RATE), wanted)


def test_sound_behind_a_pause_is_not_taken_for_padding(tmp_path):
    path = tmp_path / "a.wav"
    content = write(path, "PCM_16", np.concatenate([SOUND, np.zeros(8_000), SOUND]))
    path.write_bytes(stated("wav", content, lambda _: 2 * SOUND.size))
    assert decode(path, RATE).size == 2 * SOUND.size + 8_000


@pytest.mark.parametrize("head", [b"   8192\nsample_count -i " + b"9" * 5_000, b"   0000\n", b"9999999\n"])
def test_a_header_of_sphere_that_cannot_be_is_refused(tmp_path, head):
    path = tmp_path / "a.nist"
    path.write_bytes(
        (b"NIST_1A\n" + head + b"\nchannel_count -i 1\nsample_n_bytes -i 2\nend_head\n").ljust(9_000, b"\1")
    )
    with pytest.raises(AudioError):
        decode(path, RATE)


def test_many_joined_files_are_found_in_time_that_grows_as_the_file(tmp_path, monkeypatch):
    """The end of each is looked for before the next one begins, and no further."""
    path, read = tmp_path / "a.wav", []
    path.write_bytes(500 * stated("wav", write(path, "PCM_16", SOUND[:1_000]), lambda _: 0))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: read.append(part := pread(file, size, at)) or part)
    assert len(find_sections(path).sections) == 500
    assert sum(map(len, read)) < 100 * path.stat().st_size
