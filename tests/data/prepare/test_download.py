"""A published archive arrives whole or is asked for again."""

import contextlib
import errno
import fcntl
import hashlib
import http.server
import itertools
import json
import os
import re
import resource
import shutil
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from datar_jax.data.datasets.base import Download
from datar_jax.data.prepare import download as module
from datar_jax.data.prepare import extract as unpacking
from datar_jax.data.prepare import partial_files
from datar_jax.data.prepare.download import fetch
from datar_jax.data.prepare.extract import unpack
from datar_jax.data.prepare.partial_files import FetchError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
OTHER = np.random.default_rng(1).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PARTIAL, NOTES, LOCK = ".sounds.zip.partial", ".sounds.zip.partial.json", ".sounds.zip.lock"


class Server(http.server.ThreadingHTTPServer):
    """Answers as its fields say, which a test changes, and remembers what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/sounds.zip"
        self.content = CONTENT
        self.version = {"ETag": '"one"'}
        self.ranges = self.conditions = True
        self.cuts = []  # after how many bytes each of the next answers breaks off
        self.length = None  # that it says, where it lies
        self.answers = []  # functions that answer the next requests in some other way
        self.seen = []  # headers of each request, and its path
        self.done = threading.Event()

    def asked(self, header):
        return [headers.get(header) for headers in self.seen]


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        shelf = self.server
        shelf.seen.append({**self.headers, "path": self.path})
        if shelf.answers:
            shelf.answers.pop(0)(self)
            self.close_connection = True
        else:
            self.give(shelf)

    def give(self, shelf):
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if "Range" in self.headers else 0
        if not shelf.ranges or (shelf.conditions and self.headers.get("If-Range") not in shelf.version.values()):
            start = 0
        if start and start >= len(shelf.content):
            self.say(416, {"Content-Range": f"bytes */{len(shelf.content)}", "Content-Length": "0"})
            return
        body = shelf.content[start:]
        headers = {**shelf.version, "Content-Length": str(shelf.length or len(body))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(shelf.content) - 1}/{len(shelf.content)}"
        self.say(206 if start else 200, headers, body[: shelf.cuts.pop(0)] if shelf.cuts else body)

    def say(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


def says(status, headers=(), body=b""):
    return lambda answer: answer.say(status, headers, body)


def rest(done, length):
    return {"Content-Range": f"bytes {done}-2999999/3000000", "Content-Length": str(length), "ETag": '"one"'}


@pytest.fixture
def server(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.done.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited between tries, where nobody waits."""
    waited = []
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=waited.append)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(os, "sync", lambda: None)  # of all that the machine has to write
    return waited


def of(server, sha256=SHA256, size=0):
    return Download(server.url, "sounds.zip", sha256, size)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def interrupted(server, folder, after=1):
    """A call that ends by Ctrl-C after some blocks; how many bytes it left."""
    count = itertools.count(1)

    def stop(done, whole):
        if next(count) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(of(server), folder, stop)
    assert names(folder) == [PARTIAL, NOTES]
    server.seen.clear()
    return (folder / PARTIAL).stat().st_size


def fails(call, *parts):
    """Calls what must raise FetchError; its text is one printable line that holds `parts`."""
    with pytest.raises(FetchError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000
    for part in parts:
        assert part in text
    return text


# Fetching


def test_a_file_is_fetched_once_and_told_of(server, tmp_path):
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


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
def test_where_nothing_tells_a_version_no_part_is_gone_on_with(server, tmp_path, version):
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


def chunked(*chunks, end=b"0\r\n\r\n"):
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return says(200, {"Transfer-Encoding": "chunked"}, body)


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


def test_without_length_or_chunks_only_a_checksum_tells_the_end(server, tmp_path):
    server.answers = [says(200, {}, CONTENT)]
    fails(lambda: fetch(of(server, sha256=""), tmp_path), "does not say how long", "by hand")
    assert names(tmp_path) == []
    server.answers = [says(200, {}, CONTENT)]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("headers", [{"Content-Length": "3000000"}, {}, {"Transfer-Encoding": "chunked"}])
@pytest.mark.parametrize("size", [1_000_000, 9_000_000])
def test_what_is_far_larger_or_smaller_than_it_should_be_is_not_taken(server, tmp_path, headers, size):
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)
    server.answers = [says(200, headers, chunks if "Transfer-Encoding" in headers else CONTENT)]
    fails(lambda: fetch(of(server, size=size), tmp_path), f"not about {size / 1e6} MB", "by hand")
    assert not (tmp_path / "sounds.zip").exists()
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written < 2_500_000 if size < len(CONTENT) else written < 4_000_000
    assert written == 0 or headers != {"Content-Length": "3000000"}


def test_a_page_that_asks_to_log_in_does_not_cost_the_part(server, tmp_path):
    done = interrupted(server, tmp_path)
    server.answers = [says(200, {"Content-Length": "6"}, b"<html>")]
    fails(lambda: fetch(of(server, size=2_900_000), tmp_path), "a proxy answers in its place")
    assert (tmp_path / PARTIAL).stat().st_size == done


def test_what_does_not_fit_is_not_begun(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2_000_000))
    fails(lambda: fetch(of(server), tmp_path), "3.0 MB are to come, 2.0 MB fit", "make room")
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_the_part_is_gone_on_with(server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        fails(lambda: fetch(of(server), tmp_path), os.strerror(errno.EFBIG), "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.seen) == 1
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=1000000-"]


def test_a_folder_that_cannot_be_is_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    fails(lambda: fetch(of(server), tmp_path / "file" / "folder"), "cannot be written", "another folder")
    (tmp_path / PARTIAL).mkdir()
    fails(lambda: fetch(of(server), tmp_path), "cannot be written", "another folder")


@pytest.mark.parametrize("target", ["http://127.0.0.1:PORT/there", "/there", "there"])
def test_redirections_are_followed(server, tmp_path, target):
    server.answers = [says(302, {"Location": target.replace("PORT", str(server.server_port)), "Content-Length": "0"})]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("path") == ["/sounds.zip", "/there"]


@pytest.mark.parametrize(
    "target",
    ["file:///etc/hostname", "FILE:/etc/hostname", "ftp://127.0.0.1/x", "data:,x", "http://[", "//[", "x:\x1b[2J"],
)
def test_redirections_out_of_http_are_not_followed(server, tmp_path, target):
    server.answers = [says(302, {"Location": target})]
    fails(lambda: fetch(of(server, sha256=""), tmp_path), "not followed", "by hand")
    assert names(tmp_path) == []


def test_redirections_do_not_lead_out_of_https():
    assert module._redirected("https://a/b", "/c", Path("x")) == "https://a/c"
    assert module._redirected("http://a/b", "https://a/c d", Path("x")) == "https://a/c%20d"
    fails(lambda: module._redirected("https://a/b", "http://a/c", Path("x")), "not followed")


def test_redirections_end(server, tmp_path):
    server.answers = 20 * [says(302, {"Location": "/there", "Content-Length": "0"})]
    fails(lambda: fetch(of(server), tmp_path), "redirected more than 10 times")
    assert len(server.seen) == 11


def test_the_body_of_a_redirection_is_not_read(server, tmp_path):
    def endless(answer):
        answer.say(302, {"Location": "/there"}, b"some")
        server.done.wait(20)

    server.answers = [endless]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://x/y", "/etc/hostname", "data:,x"])
def test_only_http_is_fetched(tmp_path, url):
    fails(lambda: fetch(Download(url, "sounds.zip", "", 0), tmp_path), "only http and https")


def test_what_is_not_there_ends_at_once_and_what_is_busy_is_asked_again(server, tmp_path, waits):
    server.answers = [says(404, {"Content-Length": "0"})]
    fails(lambda: fetch(of(server), tmp_path), "404 Not Found", f"by hand to {tmp_path / 'sounds.zip'}")
    assert waits == []
    server.answers = [says(503, {"Content-Length": "0"}), says(429), lambda answer: None]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert len(waits) == 3


def test_a_busy_server_does_not_cost_the_part(server, tmp_path):
    done = interrupted(server, tmp_path)
    server.answers = 2 * [says(503, {"Content-Length": "0"})]
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked("Range") == 3 * [f"bytes={done}-"]


def test_no_server_at_all_ends_in_one_line(server, tmp_path, waits):
    closed = Download("http://127.0.0.1:1/sounds.zip", "sounds.zip", "", 0)
    fails(lambda: fetch(closed, tmp_path), os.strerror(errno.ECONNREFUSED), "same command starts again")
    assert tuple(waits) == module.WAITS
    assert names(tmp_path) == []


def test_what_a_server_says_cannot_write_to_the_terminal(server, tmp_path):
    def raw(text):
        return lambda answer: answer.wfile.write(text.encode("latin-1"))

    server.answers = [raw("HTTP/1.1 404 \x1b]0;gone\x07\r\n\r\n")]
    fails(lambda: fetch(of(server), tmp_path), "404")
    server.answers = [raw("\x1b]0;gone\x07" * 1000 + "\r\n\r\n") for _ in range(7)]
    fails(lambda: fetch(of(server), tmp_path), "x1b")


@pytest.mark.parametrize("head", [True, False])
def test_silence_ends(server, tmp_path, monkeypatch, head):
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    monkeypatch.setattr(module, "WAITS", (0.0,))

    def silent(answer):
        if head:
            answer.say(200, {"Content-Length": "3000000", **server.version}, CONTENT[:1_000_000])
        server.done.wait(20)

    server.answers = [silent, silent]
    fails(lambda: fetch(of(server), tmp_path), "timed out", "tried 2 times")


def test_a_trickle_is_taken_for_broken(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def sends(*amounts, seconds=25):  # a block every 25 s, where two timeouts are a minute
        amounts = iter(amounts)

        def read1(most):
            now[0] += seconds
            return b"x" * next(amounts)

        return module._receive(types.SimpleNamespace(read1=read1), 10**9)

    slowest = 25 * module.SLOWEST
    received = sends(*30 * [slowest])
    assert sum(len(block) for block in itertools.islice(received, 30)) == 30 * slowest
    received = sends(*3 * [100 * slowest], 1, 1, 1)  # that it was fast once does not help
    with pytest.raises(module._Broken, match="sent 3 bytes in 75 s"):
        list(received)


def test_proxies_are_those_of_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    download = Download("http://sounds.invalid/a.zip", "sounds.zip", SHA256, 0)
    assert fetch(download, tmp_path / "a").read_bytes() == CONTENT
    assert server.asked("path") == ["http://sounds.invalid/a.zip"]
    monkeypatch.setenv("no_proxy", "sounds.invalid")
    fails(lambda: fetch(download, tmp_path / "b"), "tried 7 times")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    monkeypatch.delenv("no_proxy")
    fails(lambda: fetch(download, tmp_path / "c"), "socks5")


def test_a_second_process_is_refused_while_one_is_at_it(server, tmp_path):
    with (tmp_path / LOCK).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(lambda: fetch(of(server), tmp_path), "another process")
        assert server.seen == []
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT  # a lock left by one that was killed
    assert names(tmp_path) == ["sounds.zip"]


def test_a_file_system_without_locks_does_without(server, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert fetch(of(server), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["sounds.zip"]


def test_of_many_at_once_each_has_the_file_or_is_refused(server, tmp_path):
    results = []

    def call():
        try:
            results.append(fetch(of(server), tmp_path).read_bytes() == CONTENT)
        except FetchError as error:
            results.append("another process" in str(error))

    for _ in range(5):
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert names(tmp_path) == ["sounds.zip"]
        (tmp_path / "sounds.zip").unlink()
    assert results == 40 * [True]
    assert len(server.seen) == 5


def test_what_another_process_was_quicker_with_is_taken(server, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def waited(path):
        (tmp_path / "sounds.zip").write_bytes(CONTENT)
        (tmp_path / "sounds" / "read me").parent.mkdir(exist_ok=True)
        (tmp_path / "sounds" / "read me").write_text("theirs")
        yield

    monkeypatch.setattr(module, "sole_writer", waited)
    monkeypatch.setattr(unpacking, "sole_writer", waited)
    assert fetch(of(server), tmp_path) == tmp_path / "sounds.zip"
    assert server.seen == []
    shutil.rmtree(tmp_path / "sounds")
    assert names(unpack(tmp_path / "sounds.zip", tmp_path / "sounds")) == ["read me"]


def test_a_lock_removed_while_it_is_waited_for_is_no_lock(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def late(number, how):  # the process that had the lock ends between our opening and our locking
        if not calls:
            os.unlink(tmp_path / LOCK)
        calls.append(number.fileno())
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with partial_files.sole_writer(tmp_path / "sounds.zip"):
        assert len(calls) == 2
        assert os.path.samestat(os.fstat(calls[1]), os.stat(tmp_path / LOCK))
