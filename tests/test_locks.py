"""A folder has one writer, who is named to others; a lock ends with its process, and readers need none."""

import errno
import fcntl
import os
import re
import subprocess
import sys

import pytest

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.config import ConfigError
from datar_jax.data.prepare.build import _sole_writer
from datar_jax.data.prepare.partial_files import FetchError, sole_writer
from datar_jax.export.exporter import _prepared_folder
from datar_jax.filesystem import storage_path
from datar_jax.inference.embeddings import NumpyFiles, embedding_files
from datar_jax.locks import LockHeld, exclusive, locked_folder
from datar_jax.training.workdir import only_writer

HOLDER = """
import sys
from pathlib import Path
from datar_jax.locks import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock on `tmp_path / "out"`."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "out"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        (only_writer, ConfigError),
        (lambda out: _prepared_folder(out, "params"), ModelError),
        (lambda out: embedding_files(NumpyFiles, out), LockHeld),
        (lambda out: _sole_writer(storage_path(str(out), "--out")), ConfigError),
    ],
    ids=["train", "export", "embed", "prepare"],
)
def test_every_writer_of_a_folder_is_refused_while_another_holds_it(tmp_path, holder, writer, error):
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(error, match=rf"another process \({holder.pid} on .+\) is writing there"), writer(out):
        pass
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    holder.kill()
    holder.wait()
    with writer(out):  # whose file is still there
        assert (out / ".lock").read_text().startswith(f"{os.getpid()} on ")
    assert not (out / ".lock").exists()


def test_a_file_that_is_fetched_has_one_writer(tmp_path):
    with sole_writer(tmp_path / "a.zip"), pytest.raises(FetchError, match=rf"another process \({os.getpid()} on "):
        sole_writer(tmp_path / "a.zip").__enter__()


def test_a_folder_that_was_made_for_a_refused_command_goes(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive(tmp_path / "lock"), exclusive(tmp_path / "lock"):
        assert re.match(r"\d+ on ", (tmp_path / "lock").read_text())


@pytest.mark.parametrize("target", ["letter", "gone"])
def test_a_link_in_place_of_a_lock_is_not_written_through(target, tmp_path):
    (tmp_path / "letter").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / target)
    with (
        pytest.raises(ConfigError, match=r"cannot be written \(\.lock is a link; remove it\)"),
        only_writer(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "letter").read_text() == "mine" and not (tmp_path / "gone").exists()
