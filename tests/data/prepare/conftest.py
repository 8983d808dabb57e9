"""A small data set to prepare, and a server to fetch from."""

import os
import threading
import time
import types

import pytest
import soundfile

from datar_jax.data.prepare import download as module
from tests.data.prepare.server import Server
from tests.data.prepare.small_dataset import AUDIO, listing, segment, spec
from tests.helpers import sound


@pytest.fixture
def small(tmp_path):
    """Eight clips in two folders: six usable ones, a missing and an unreadable one; parts of one long recording."""
    audio = tmp_path / "audio"
    (audio / "bark").mkdir(parents=True)
    for i in range(3):
        soundfile.write(audio / "bark" / f"-id{i}_000030.wav", sound(AUDIO, 0.5, i), 8_000)
    soundfile.write(audio / "long.flac", sound(AUDIO, 6.0, 9), 8_000)
    (audio / "broken_000001.wav").write_bytes(b"RIFF nothing")
    soundfile.write(audio / "short.ogg", sound(AUDIO, 1.2, 5), 8_000)

    def read(lists):
        del lists
        names = [f"-id{i}_30" for i in range(3)]
        cut = [segment(n, 0, "train", (f"bark/{n[:-2]}000030",), ("-id",), 30.0, 40.0) for n in names]
        parts = [segment(f"long_{i}", 1, "train", (), ("long",), float(i), i + 1.0) for i in (1, 4)]
        rest = [
            segment("gone", 2, "train", ("gone_000001", "gone"), row=7),
            segment("broken", 2, "train", ("broken_000001",), row=8),
            segment("short", 2, "test", (), ("short",), 50.0, 51.0),
        ]
        return listing(tmp_path, *cut, *parts, *rest)

    return spec(read), audio


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


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited between tries, where nobody waits."""
    waited = []
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=waited.append)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(os, "sync", lambda: None)  # of all that the machine has to write
    return waited
