"""A server that answers as a test says, and what tests of fetching and unpacking share."""

import contextlib
import hashlib
import http.server
import itertools
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from datar_jax.data.datasets.base import Download
from datar_jax.data.prepare.download import fetch
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


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def chunked(*chunks, end=b"0\r\n\r\n"):
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return says(200, {"Transfer-Encoding": "chunked"}, body)
