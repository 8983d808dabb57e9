"""Files of one result get their names together; nothing that is written in place passes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import datar_jax
from datar_jax.atomic_files import atomic_write, atomic_writers, write_output

ROOT = Path(__file__).parent.parent
HARNESS = ROOT / "benchmarks" / "robustness" / "torn_writes.py"
PLAIN_WRITE = re.compile(r"\.write_(?:text|bytes)\(|open\([^)]*[\"'][wxa]b?\+?[\"']|savefig\((?!content)|np\.save")
# Each is of a partial name, of rows that are cut at the next start, or of a marker that is read as unfinished.
IN_PLACE = {
    "atomic_files.py",
    "checkpoints/safetensors.py",
    "export/exporter.py",
    "data/prepare/download.py",
    "data/prepare/extract.py",
    "data/synthetic.py",
    "training/monitoring/metric_writer.py",
}


@pytest.fixture(scope="module")
def torn() -> Any:
    """The harness."""
    spec = importlib.util.spec_from_file_location("torn_writes", HARNESS)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.addaudithook(module.audit)
    return module


def states(torn: Any, folder: Path, write: Any) -> tuple[list[dict[str, str]], Any]:
    found = []
    with torn.watched(folder, lambda *_: found.append(torn.state_of(folder))) as watch:
        write()
    return [*found, torn.state_of(folder)], watch


def test_a_kill_leaves_the_old_files_the_new_ones_or_a_part_of_one_result(torn: Any, tmp_path: Path) -> None:
    names = ("a.npy", "b.npy", "c.csv")

    def write(text: str) -> None:
        with atomic_writers(*(tmp_path / name for name in names)) as files:
            for file in files:
                file.write(text.encode() * 10_000)

    write("old")
    before = torn.state_of(tmp_path)
    seen, watch = states(torn, tmp_path, lambda: write("new"))
    command = torn.Command(["three files"], tmp_path, together=True)
    for now in seen:
        torn.check(command, before, watch.renamed, now, "here")
    assert len({repr(now) for now in seen}) >= 5 and set(seen[-1]) == set(names)
    with pytest.raises(torn.Broken, match="old beside new"):
        torn.check(command, before, watch.renamed, {**seen[-1], "a.npy": before["a.npy"]}, "here")


def test_a_write_in_place_is_found(torn: Any, tmp_path: Path) -> None:
    seen, watch = states(torn, tmp_path, lambda: (tmp_path / "a").write_text("text"))
    with pytest.raises(torn.Broken, match="neither old nor new"):
        torn.check(torn.Command(["text"], tmp_path), {}, watch.renamed, seen[-1], "here")


def stop(path: Path, keep: bool) -> None:
    with atomic_writers(path, keep=keep) as (file,):
        file.write(b"part")
        raise KeyboardInterrupt


def test_what_a_failed_writer_leaves(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"old")
    for keep in (False, True):
        with pytest.raises(KeyboardInterrupt):
            stop(tmp_path / "a", keep)
        assert (tmp_path / "a").read_bytes() == b"old"
        assert {path.name for path in tmp_path.iterdir()} == ({"a", "a.partial"} if keep else {"a"})
    assert (tmp_path / "a.partial").read_bytes() == b"part"
    with atomic_writers(tmp_path / "a", keep=True) as (file,):
        file.write(b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_links_pipes_devices_folders_and_long_names(tmp_path: Path) -> None:
    """Only a file that a person names is written through them; the law is of `output_writer`."""
    (tmp_path / "link").symlink_to("target")
    write_output(tmp_path / "link", b"text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"text"
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_output(tmp_path / "pipe", b"text")
    reader.join()
    assert read == [b"text"] and (tmp_path / "pipe").is_fifo()
    write_output(Path("/dev/null"), b"text")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="not a file"):
            atomic_write(path, b"text")
    assert Path("/dev/null").is_char_device() and (tmp_path / "pipe").is_fifo()
    write_output(tmp_path / ("é" * 127), b"text")
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target", "pipe", "é" * 127}


@pytest.mark.parametrize("target", ["letter", "gone", "folder"])
def test_a_link_in_place_of_a_file_is_replaced(target: str, tmp_path: Path) -> None:
    """As in a run folder of a stranger, whose `result.json` may be a link to any file of its reader."""
    (tmp_path / "letter").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run").mkdir()
    for name in ("a", "b"):
        (tmp_path / "run" / name).symlink_to(tmp_path / target)
    atomic_write(tmp_path / "run" / "a", b"new")
    with atomic_writers(tmp_path / "run" / "a", tmp_path / "run" / "b") as files:
        for file in files:
            file.write(b"newer")
    assert [path.read_bytes() for path in (tmp_path / "run").iterdir() if not path.is_symlink()] == 2 * [b"newer"]
    assert (tmp_path / "letter").read_bytes() == b"mine" and list((tmp_path / "folder").iterdir()) == []
    assert not (tmp_path / "gone").exists()


def test_files_are_written_by_one_mechanism() -> None:
    package = Path(datar_jax.__file__).parent
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        assert not PLAIN_WRITE.search(path.read_text()) or name in IN_PLACE, name


@pytest.mark.slow
def test_every_command_at_every_write() -> None:
    run = subprocess.run([sys.executable, HARNESS, "--full=2"], check=False, capture_output=True, text=True)
    assert run.returncode == 0 and "all laws held" in run.stdout, run.stdout + run.stderr
