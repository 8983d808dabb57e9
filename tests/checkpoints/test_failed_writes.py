"""Checkpoints on disks that are full or refuse to write: one is lost, no older one is."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from datar_jax.checkpoints.manager import CheckpointError, CheckpointManager
from tests.checkpoints.test_manager import Said, best_step, left, read, tiny, write

# A failed write leaves orbax's coroutines behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _full(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next writes of a state fail, behind the back of the caller, as on a full disk."""
    from orbax.checkpoint._src.handlers import base_pytree_checkpoint_handler as handler

    write_metadata = handler.BasePyTreeCheckpointHandler._write_metadata_after_commits
    lack = [None] * times

    async def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        if lack:
            lack.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await write_metadata(self, *args, **kwargs)

    monkeypatch.setattr(handler.BasePyTreeCheckpointHandler, "_write_metadata_after_commits", fail)


def test_a_full_disk_costs_one_checkpoint_and_no_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, 2, scores={1: 0.9})
    said = Said()
    checkpoints = CheckpointManager(tmp_path, said)
    checkpoints.restore(tiny(0))
    _full(monkeypatch, 2)
    checkpoints.save(tiny(3), {"next_batch": 3}, {"train_seconds": 0.5}, 0.99)
    checkpoints.save(tiny(4), {"next_batch": 4}, {"train_seconds": 0.5})
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / '3'}: could not be written (No space left on device)")
    with pytest.raises(
        CheckpointError, match=r"of step 4 could not be written \(No space left.*newest one is of step 2"
    ):
        checkpoints.finish()
    assert best_step(checkpoints) == 1
    checkpoints.save(tiny(5), {"next_batch": 5}, {"train_seconds": 0.5})
    checkpoints.finish()
    checkpoints.close()
    assert left(tmp_path) == ["1", "2", "5"], "nothing half-written that takes room"
    assert read(tmp_path) == (5, [])


def test_a_write_that_fails_at_once_is_as_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    said = Said()
    checkpoints = CheckpointManager(tmp_path, said)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fail)
        checkpoints.save(tiny(2), {}, {})
    assert len(said) == 1 and "No space left on device" in said[0]
    with pytest.raises(CheckpointError, match="step 2"):
        checkpoints.finish()
    checkpoints.close()
    assert read(tmp_path) == (1, [])


CHILD = """
import resource, sys
from pathlib import Path
import logging; logging.disable(logging.CRITICAL)
import jax.numpy as jnp, jax
from datar_jax.checkpoints.manager import CheckpointError, CheckpointManager
from datar_jax.training.train_step import TrainState
def state(step):
    noise = jax.random.normal(jax.random.key(step), (300, 100))
    return TrainState(jnp.int32(step), {"kernel": noise}, {}, (), jnp.int32(0), jnp.ones(2))
c = CheckpointManager(Path(sys.argv[1]))
c.save(state(1), {}, {}); c.finish()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
c.save(state(2), {}, {})
try: c.finish()
except CheckpointError as error: print("REFUSED", error)
c.close(); c = CheckpointManager(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
c.save(state(3), {}, {}); c.finish()
print("READ", int(c.restore(state(0))[0].step)); c.close()
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """The kernel refuses to write, no patch."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] > 60_000 or resource.getrlimit(resource.RLIMIT_FSIZE)[0] < 0
    env = {**os.environ, "XLA_FLAGS": ""}
    child = subprocess.run([sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, env=env, check=True)
    lines = child.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / '2'}: could not be written (") and "File too large" in lines[0]
    assert lines[1].startswith("REFUSED") and "newest one is of step 1" in lines[1]
    assert lines[2] == "READ 3" and left(tmp_path) == ["1", "3"]


def test_a_file_in_place_of_the_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot hold checkpoints"):
        CheckpointManager(tmp_path / "checkpoints")
