"""Servers that send something else, redirect, break off, stand still or are not there; other processes."""

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import shutil
import threading
import types
from pathlib import Path

import pytest

from datar_jax.data.datasets.base import Download
from datar_jax.data.prepare import download as module
from datar_jax.data.prepare import extract as unpacking
from datar_jax.data.prepare import partial_files
from datar_jax.data.prepare.download import fetch
from datar_jax.data.prepare.extract import unpack
from datar_jax.data.prepare.partial_files import FetchError
from tests.data.prepare.server import (
    CONTENT,
    LOCK,
    PARTIAL,
    SHA256,
    fails,
    interrupted,
    names,
    of,
    says,
)

pytestmark = pytest.mark.usefixtures("waits")


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
