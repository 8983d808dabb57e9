"""The command: what it fetches, and one line for what cannot be."""

import dataclasses
import functools
import hashlib
import http.server
import io
import threading
import zipfile

import pytest
import soundfile

from datar_jax.cli.main import main
from datar_jax.config import AudioConfig
from datar_jax.data.datasets import CORPORA
from datar_jax.data.datasets.base import Download
from tests.data.datasets.published_lists import LISTS
from tests.data.prepare.small_dataset import AUDIO, opened
from tests.helpers import sound


def test_a_published_archive_is_fetched_unpacked_and_prepared(tmp_path, monkeypatch, capsys):
    site = tmp_path / "site"
    site.mkdir()
    with zipfile.ZipFile(site / "packed.zip", "w") as archive:
        archive.writestr("ESC-50-x/meta/esc50.csv", LISTS["esc50"]["meta/esc50.csv"])
        for i, name in enumerate(("1-100032-A-0", "1-100038-A-14", "1-100210-A-36")):
            stream = io.BytesIO()
            soundfile.write(stream, sound(AUDIO, 0.3, i), 8_000, format="WAV")
            archive.writestr(f"ESC-50-x/audio/{name}.wav", stream.getvalue())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://localhost:{server.server_port}/packed.zip"
    digest = hashlib.sha256((site / "packed.zip").read_bytes()).hexdigest()
    order = ["prepare", "esc50", f"--fetch={tmp_path / 'got'}", f"--out={tmp_path / 'out'}", "--workers=1"]

    def offer(sha256):
        download = Download(url, "ESC-50.zip", sha256, 0)
        monkeypatch.setitem(CORPORA, "esc50", dataclasses.replace(CORPORA["esc50"], downloads=(download,)))

    try:
        offer("0" * 64)
        assert main(order) == 2
        assert "ESC-50.zip" in capsys.readouterr().err
        offer(digest)
        assert main(order) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert "ESC-50: 3 of 3 listed clips are here" in capsys.readouterr().out
    assert main(order) == 0, "what was fetched is not fetched again"
    dataset, store = opened(tmp_path / "out", AudioConfig())
    assert dataset.folds == (1, 2, 5) and store.lengths.tolist() == [4_800] * 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--lists is missing"),
        (["--lists=a"], "--audio is missing"),
        (["--lists=a", "--audio=b", "--fetch=c"], "--fetch=c: replaces --lists and --audio"),
        (["--lists=META", "--audio=b", "--out="], "--out='': give a folder or a URL"),
        (["--lists=META", "--audio=META/esc50.csv"], "no such folder"),
        (["--lists=META", "--audio=b", "--config=README.md"], "README.md: not a Python file with"),
        (["--lists=META", "--audio=b", "--shard-clip=3"], "--shard-clip=3: not an option"),
    ],
)
def test_a_command_that_cannot_be_is_one_line(tmp_path, capsys, options, text):
    (tmp_path / "esc50.csv").write_text("filename,fold,target,category\n1-1-A-0.wav,1,0,dog\n")
    options = [option.replace("META", str(tmp_path)) for option in options]
    assert main(["prepare", "esc50", f"--out={tmp_path / 'out'}", *options]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_a_count_that_is_none_is_named(capsys, text):
    assert main(["prepare", "esc50", "--out=x", f"--shard-clips={text}"]) == 2
    error = capsys.readouterr().err
    assert f"--shard-clips: {text}: give a whole number, 1 or more" in error and error.count("\n") == 1
