"""A published archive arrives whole or is asked for again."""

import hashlib
import json
import os

import pytest

from datar_jax.data.datasets.base import Download
from datar_jax.data.prepare import download as module
from datar_jax.data.prepare.download import fetch
from tests.data.prepare.server import (
    CONTENT,
    NOTES,
    OTHER,
    PARTIAL,
    SHA256,
    chunked,
    fails,
    interrupted,
    names,
    of,
    rest,
    says,
    umask,
)

pytestmark = pytest.mark.usefixtures("waits")


# Fetching


def test_a_file_is_fetched_once_and_reported(server, tmp_path):
    told = []
    path = fetch(of(server), tmp_path / "new" / "folder", lambda *counts: told.append(counts))
    assert path == tmp_path / "new" / "folder" / "sounds.zip"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["sounds.zip"]
    assert told == sorted(told) and told[-1] == (len(CONTENT), len(CONTENT))
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()

    assert fetch(of(server), path.parent) == path
    assert fetch(of(server, sha256=""), path.parent) == path
    assert server.asked("Accept-Encoding") == ["identity"]  # once, and not packed by the server


@pytest.mark.parametrize("version", [{"ETag": '"one"'}, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_broken_connection_is_gone_on_with(server, tmp_path, waits, version):
    server.version, server.cuts = version, [1_000_000, 500_000, 0]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert server.asked("If-Range") == [None, *version.values()] + 2 * [*version.values()]
    assert tuple(waits) == module.WAITS[:3]
    assert names(tmp_path) == ["sounds.zip"]


def test_without_ranges_it_starts_anew(server, tmp_path):
    server.ranges, server.cuts = False, [1_000_000, 2_000_000]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=1000000-", "bytes=2000000-"]


@pytest.mark.parametrize("version", [{}, {"ETag": 'W/"weak"'}, {"ETag": '"a b"'}, {"ETag": '"' + "x" * 999 + '"'}])
def test_where_nothing_states_a_version_no_part_is_gone_on_with(server, tmp_path, version):
    server.version, server.cuts = version, [1_000_000]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None, None]


@pytest.mark.parametrize("conditions", [True, False])
def test_ctrl_c_leaves_a_part_that_is_gone_on_with(server, tmp_path, conditions):
    server.conditions = conditions
    done = interrupted(server, tmp_path, after=3)
    assert 0 < done < len(CONTENT)
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={done}-"]


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:2_000_000], OTHER[:100], OTHER + OTHER])
def test_a_version_published_since_is_not_mixed_with_the_old_one(server, tmp_path, content, conditions):
    interrupted(server, tmp_path)
    server.content, server.version, server.conditions = content, {"ETag": '"two"'}, conditions
    assert fetch(of(server, sha256=""), tmp_path).read_bytes() == content
    assert names(tmp_path) == ["sounds.zip"]


def test_a_whole_of_another_length_under_the_same_version_is_not_gone_on_with(server, tmp_path):
    interrupted(server, tmp_path)
    server.content = OTHER + OTHER
    assert fetch(of(server, sha256=""), tmp_path).read_bytes() == OTHER + OTHER


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Range": "bytes 0-2999999/3000000"}, {"Content-Range": "bytes 1-2999999/3000000"}, {"ETag": '"x"'}],
)
def test_a_rest_that_is_not_the_one_asked_for_is_not_appended(server, tmp_path, headers):
    done = interrupted(server, tmp_path)
    right = rest(done, 3)
    server.answers = [says(206, {**right, **headers} if headers else {"Content-Length": "3"}, b"bad")]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={done}-", None]


@pytest.mark.parametrize("status", [203, 416])
def test_a_rest_under_another_status_is_not_appended(server, tmp_path, status):
    done = interrupted(server, tmp_path)
    server.answers = [says(status, rest(done, len(CONTENT) - done), CONTENT[done:])]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={done}-", None]


def test_of_a_rest_that_is_too_long_only_the_rest_is_appended(server, tmp_path):
    done = interrupted(server, tmp_path)
    server.answers = [says(206, rest(done, len(CONTENT) - done + 10), CONTENT[done:] + b"0123456789")]
    assert fetch(of(server, sha256=""), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [f"bytes={done}-"]


@pytest.mark.parametrize("status", [203, 204, 206, 416])
def test_an_answer_to_another_request_is_asked_for_again(server, tmp_path, status, waits):
    right = {"Content-Range": "bytes 0-2999999/3000000", "Content-Length": "0", "ETag": '"one"'}
    server.answers = [says(status, right)]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert len(waits) == 1


def test_a_part_of_another_address_is_not_gone_on_with(server, tmp_path):
    interrupted(server, tmp_path)
    other = Download(f"{server.url}?mirror", "sounds.zip", SHA256, 0)
    assert fetch(other, tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None]


def test_a_part_longer_than_the_whole_is_not_gone_on_with(server, tmp_path):
    interrupted(server, tmp_path)
    (tmp_path / PARTIAL).write_bytes(OTHER + b"more")
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None]


def test_a_part_that_only_lacks_its_name_gets_it(server, tmp_path):
    interrupted(server, tmp_path)
    (tmp_path / PARTIAL).write_bytes(CONTENT)
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.seen == []
    assert names(tmp_path) == ["sounds.zip"]


NO_NOTES = [b"", b"\xff", b"[]", b"7", b"{}", b'{"url": 1}', b"[" * 100_000]
WRONG_NOTES = [
    *({"version": None, "size": 3_000_000}, {"version": '"a"\r\nX: y', "size": 3_000_000}),
    *({"version": '"one"', "size": size} for size in (None, 3e6, "3000000", -1)),
]


@pytest.mark.parametrize("notes", [*NO_NOTES, *(json.dumps({"url": "URL", **notes}).encode() for notes in WRONG_NOTES)])
def test_damaged_notes_make_it_start_anew(server, tmp_path, notes):
    interrupted(server, tmp_path)
    (tmp_path / NOTES).write_bytes(notes.replace(b"URL", server.url.encode()))
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None]


def test_a_wrong_checksum_names_both_and_removes_the_download_alone(server, tmp_path):
    server.content = OTHER
    (tmp_path / "mine").touch()
    found = hashlib.sha256(OTHER).hexdigest()
    fails(lambda: fetch(of(server), tmp_path), str(tmp_path / "sounds.zip"), f"{found}, not {SHA256}", "same command")
    assert names(tmp_path) == ["mine"]


def test_a_file_is_on_the_disk_before_it_has_its_name(server, tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: order.append("synced"))
    monkeypatch.setattr(os, "replace", lambda *paths: order.append("renamed") or replace(*paths))
    fetch(of(server), tmp_path)
    assert order == ["synced", "renamed"]


def test_a_part_spoilt_on_the_disk_is_found_by_the_checksum(server, tmp_path):
    done = interrupted(server, tmp_path)
    (tmp_path / PARTIAL).write_bytes(bytes(done))
    fails(lambda: fetch(of(server), tmp_path), SHA256)
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT


def test_a_file_that_was_there_is_verified_and_never_removed(server, tmp_path):
    path = tmp_path / "sounds.zip"
    path.write_bytes(OTHER)
    found = hashlib.sha256(OTHER).hexdigest()
    fails(lambda: fetch(of(server), tmp_path), str(path), f"{found}, not {SHA256}", "move it away")
    assert path.read_bytes() == OTHER
    assert server.seen == []
    path.unlink()
    path.symlink_to("nowhere")
    fails(lambda: fetch(of(server), tmp_path), "no file")
    assert path.is_symlink()


def test_a_length_longer_than_what_comes_ends_in_one_line(server, tmp_path, waits):
    server.length = len(CONTENT) + 10
    text = fails(lambda: fetch(of(server), tmp_path), "tried 7 times", "broke off", "by hand to")
    assert "same command goes on after 3.0 MB" in text
    assert tuple(waits) == module.WAITS
    assert names(tmp_path) == [PARTIAL, NOTES]


def test_a_length_shorter_than_what_comes_does_not_pass_for_the_whole(server, tmp_path):
    server.length = 1_000_000
    fails(lambda: fetch(of(server), tmp_path), SHA256)
    assert (fetch(of(server, sha256=""), tmp_path)).read_bytes() == CONTENT[:1_000_000]  # as HTTP has it


def test_chunks_say_where_the_end_is(server, tmp_path, waits):
    server.answers = [
        chunked(CONTENT[:1000], end=b""),
        chunked(CONTENT[:1000], CONTENT[1000:], end=b"7"),
        chunked(CONTENT[:1000], end=b"no number\r\n"),
        chunked(CONTENT[:1000], end=b"-5\r\nabcdefgh"),
        chunked(CONTENT[:1000], CONTENT[1000:]),
    ]
    assert fetch(of(server, sha256=""), tmp_path).read_bytes() == CONTENT
    assert len(waits) == 4


def test_without_length_or_chunks_only_a_checksum_states_the_end(server, tmp_path):
    server.answers = [says(200, {}, CONTENT)]
    fails(lambda: fetch(of(server, sha256=""), tmp_path), "does not say how long", "by hand")
    assert names(tmp_path) == []
    server.answers = [says(200, {}, CONTENT)]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_a_link_is_not_written_through(server, tmp_path):
    done = interrupted(server, tmp_path)
    (tmp_path / PARTIAL).rename(tmp_path / "letter")
    (tmp_path / PARTIAL).symlink_to("letter")
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert (tmp_path / "letter").stat().st_size == done and not (tmp_path / "sounds.zip").is_symlink()
