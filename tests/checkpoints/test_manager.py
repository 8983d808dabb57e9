"""CheckpointManager: what was saved comes back or is refused, and no failure costs an older one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from datar_jax.checkpoints.manager import CheckpointError, CheckpointManager
from datar_jax.config import MeshConfig
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_step import TrainState

# A failed read leaves orbax's coroutines behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WHOLE = P()
MESH = make_mesh(MeshConfig(fsdp=2))  # 4 x 2 devices


def tiny(step: int, spec: P = WHOLE, width: int = 600, mesh: Any = MESH) -> TrainState:
    """A state whose numbers follow from the step; one matrix may be divided over devices."""
    rng = np.random.default_rng(step)

    def put(x: Any, spec: P = WHOLE) -> jax.Array:
        return jax.device_put(jnp.asarray(x), NamedSharding(mesh, spec))

    kernel = rng.normal(size=(8, width)).astype(np.float32)
    return TrainState(
        step=put(np.int32(step)),
        params={"head": {"kernel": put(kernel, spec), "bias": put(kernel[0].astype(jnp.bfloat16))}},
        ema={},
        opt_state=(put(kernel * 2, spec), put(np.int32(step))),
        skipped=put(np.int32(0)),
        statistics=put(np.float32([-40, 15])),
    )


class Said(list[str]):
    """What a person was told."""

    def __call__(self, line: str) -> None:
        self.append(line)


def best_step(checkpoints: CheckpointManager) -> int:
    return int(checkpoints.restore(tiny(0), best=True)[0].step)


def write(folder: Path, *steps: int, scores: dict[int, float] | None = None, said: Said | None = None) -> None:
    checkpoints = CheckpointManager(folder, said if said is not None else Said())
    for step in steps:
        checkpoints.save(tiny(step), {"next_batch": step}, {"train_seconds": 0.5}, (scores or {}).get(step))
    checkpoints.finish()
    checkpoints.close()


def read(folder: Path, best: bool = False) -> tuple[int, Said]:
    """Step of the checkpoint that is read, after comparing all that it holds."""
    said = Said()
    checkpoints = CheckpointManager(folder, said)
    state, data, meta = checkpoints.restore(tiny(0), best)
    checkpoints.close()
    step = int(state.step)
    chex.assert_trees_all_equal(state, tiny(step))
    assert data == {"next_batch": step} and meta == {"train_seconds": 0.5}
    return step, said


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def payload(folder: Path) -> Path:
    """The file that holds the numbers."""
    return max(files(folder / "state"), key=lambda path: path.stat().st_size)


def test_the_latest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5, scores={1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1})
    assert left(tmp_path) == ["3", "4", "5"], "of equal scores the later is the best"
    assert read(tmp_path) == (5, []) and read(tmp_path, best=True) == (3, [])


def _truncate(step: Path) -> None:
    payload(step).write_bytes(payload(step).read_bytes()[:10_000])


def _flip(step: Path) -> None:
    content = bytearray(payload(step).read_bytes())
    content[::97] = bytes(byte ^ 1 for byte in content[::97])  # one alone may lie where nothing is stored
    payload(step).write_bytes(content)


def _flip_digit(step: Path) -> None:
    meta = step / "meta" / "metadata"
    text = meta.read_text()
    assert '"next_batch": 3' in text
    meta.write_text(text.replace('"next_batch": 3', '"next_batch": 2'))


def _other_model(step: Path) -> None:
    shutil.rmtree(step)
    checkpoints = CheckpointManager(step.parent.parent / "other")
    checkpoints.save(tiny(3, width=700), {}, {})
    checkpoints.close()
    (step.parent.parent / "other" / "3").rename(step)


def _half_deleted(step: Path) -> None:
    for path in files(step / "state")[::2]:
        path.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, ""),
    "flipped": (_flip, ""),
    "flipped digit": (_flip_digit, "meta/metadata is not what was written"),
    "missing file": (lambda step: payload(step).unlink(), ""),
    "half written": (_half_deleted, ""),
    "no state": (lambda step: shutil.rmtree(step / "state"), ""),
    "no meta": (lambda step: shutil.rmtree(step / "meta"), "not a complete checkpoint of this program"),
    "cut meta": (lambda step: (step / "meta" / "metadata").write_bytes(b'{"data'), "meta/metadata cannot be read"),
    "meta of zeros": (lambda step: (step / "meta" / "metadata").write_bytes(bytes(99)), "meta/metadata cannot be read"),
    "meta of nothing": (lambda step: (step / "meta" / "metadata").write_bytes(b"[]"), "meta/metadata cannot be read"),
    "empty": (lambda step: (shutil.rmtree(step), step.mkdir()), "not a complete checkpoint of this program"),
    "holiday": (
        lambda step: (shutil.rmtree(step), step.mkdir(), (step / "beach.jpg").write_bytes(b"sun")),
        "not a complete checkpoint of this program",
    ),
    "another model": (
        _other_model,
        "of another model: params/head/bias is bfloat16[700] in the checkpoint, bfloat16[600] in the model",
    ),
    "another step": (lambda step: (shutil.rmtree(step), shutil.copytree(step.with_name("2"), step)), "it is of step 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "checkpoints"
    write(folder, 2, 3)
    damage, why = DAMAGE[kind]
    damage(folder / "3")
    step, said = read(folder)
    assert step == 2
    assert len(said) == 1 and "\n" not in said[0] and len(said[0]) < 400
    assert f"{folder / '3'}: skipped and renamed to 3.damaged" in said[0] and why in said[0]
    assert "taking step 2" in said[0] and "pybind" not in said[0]
    write(folder, 3)
    assert read(folder) == (3, []), "and the step is stored anew"
    assert left(folder) == ["2", "3", "3.damaged"]


def test_a_byte_flipped_anywhere_is_seen_or_changes_nothing(tmp_path: Path) -> None:
    good = tmp_path / "good"
    write(good, 1)
    seen = 0
    for file in files(good / "1"):
        whole = file.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 3)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            checkpoints = CheckpointManager(good, Said())
            try:
                state, data, meta = checkpoints.restore(tiny(0))
            except CheckpointError:
                seen += 1
            else:
                chex.assert_trees_all_equal(state, tiny(1))
                assert data == {"next_batch": 1} and meta == {"train_seconds": 0.5}
            checkpoints.close()
            file.write_bytes(whole)
    assert seen >= 10, "it was not all in vain"
    assert read(good) == (1, [])


def test_the_last_good_one_outlives_two_damaged_newer_ones(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for step in (3, 4):  # as a copy that a faulty disk made
        shutil.copytree(tmp_path / "2", tmp_path / str(step))
    said = Said()
    checkpoints = CheckpointManager(tmp_path, said)
    assert int(checkpoints.restore(tiny(0))[0].step) == 2 and len(said) == 2
    checkpoints.save(tiny(3), {"next_batch": 3}, {"train_seconds": 0.5})
    checkpoints.close()
    assert left(tmp_path) == ["2", "3", "3.damaged", "4.damaged"]
    assert read(tmp_path) == (3, [])


def test_a_deletion_that_was_cut_off_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(CheckpointManager, "_sweep", lambda self: None)
        write(tmp_path, 1, 2, 3)
    assert left(tmp_path) == ["2", "3", "deleted"] and left(tmp_path / "deleted") == ["1"]
    _half_deleted(tmp_path / "deleted" / "1")
    assert read(tmp_path) == (3, [])
    assert left(tmp_path) == ["2", "3"]
    write(tmp_path / "other", 0, 1)
    for step in ("0", "1"):  # as if the run was killed before it deleted them
        (tmp_path / "other" / step).rename(tmp_path / step)
    (tmp_path / "other").rmdir()
    assert read(tmp_path) == (3, [])
    assert left(tmp_path) == ["2", "3"]


def test_a_folder_of_somebody_else_is_not_deleted_as_an_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 2, 3)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "beach.jpg").write_bytes(b"sun")
    step, said = read(tmp_path)
    assert step == 3 and len(said) == 1 and "not a complete checkpoint" in said[0]
    assert (tmp_path / "1.damaged" / "beach.jpg").read_bytes() == b"sun"


def test_a_step_that_was_neither_read_nor_written_here_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    _truncate(tmp_path / "2")
    write(tmp_path, 2)
    assert read(tmp_path) == (2, [])
    assert left(tmp_path) == ["1", "2", "2.damaged"]


def test_when_none_can_be_read_all_stay_and_each_reason_is_reported(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "meta" / "metadata").unlink()
    with pytest.raises(CheckpointError, match=r"step 2: it has no meta.*step 1: it has no meta.*delete that folder"):
        read(tmp_path)
    assert left(tmp_path) == ["1", "2"]


def test_a_damaged_best_one_gives_way_to_the_next_best(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, scores={1: 0.9, 2: 0.5, 3: 0.4})
    _flip(tmp_path / "1")
    step, said = read(tmp_path, best=True)
    assert step == 2 and len(said) == 1 and "renamed to 1.damaged" in said[0]


def test_a_score_that_comes_later_joins_its_step(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, scores={1: 0.5})
    checkpoints = CheckpointManager(tmp_path, Said())
    state, *_ = checkpoints.restore(tiny(0))
    assert checkpoints.has_score(1) and not checkpoints.has_score(2) and best_step(checkpoints) == 1
    checkpoints.save(state, {"next_batch": 2}, {"train_seconds": 9.0}, 0.75)
    checkpoints.finish()
    assert best_step(checkpoints) == 2
    checkpoints.close()
    assert read(tmp_path, best=True) == (2, []), "and nothing else of it has changed"


@pytest.mark.parametrize("written, wanted", [(P("fsdp"), P()), (P(), P("data")), (P("data"), P(None, "fsdp"))])
def test_checksums_follow_a_state_to_another_mesh(tmp_path: Path, written: P, wanted: P) -> None:
    checkpoints = CheckpointManager(tmp_path, Said())
    for step in (1, 2):
        checkpoints.save(tiny(step, written), {}, {})
    checkpoints.finish()
    record = json.loads((tmp_path / "2" / "meta" / "metadata").read_text())
    parts = {P(): 1, P("fsdp"): 2, P("data"): 4}[written]
    assert len(record["leaves"]["params/head/kernel"]["crc"]) == parts
    devices, fsdp = (4, 2) if wanted != P() else (1, 1)
    like = tiny(0, wanted, mesh=make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices]))
    state = checkpoints.restore(like)[0]
    assert state.params["head"]["kernel"].sharding == like.params["head"]["kernel"].sharding
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(tiny(2)))
    _flip(tmp_path / "2")
    assert int(checkpoints.restore(like)[0].step) == 1
    checkpoints.close()


# Processes


PROCESS = """
import logging, sys
from pathlib import Path
logging.disable(logging.CRITICAL)
import jax, numpy as np
rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, rank, initialization_timeout=60)
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.config import MeshConfig
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_step import TrainState
mesh = make_mesh(MeshConfig(fsdp=2))
def put(x, spec=P()):
    return jax.make_array_from_callback(np.shape(x), NamedSharding(mesh, spec), lambda i: np.asarray(x)[i])
def state(step):
    kernel = np.random.default_rng(step).normal(size=(8, 600)).astype(np.float32)
    params = {"kernel": put(kernel, P(None, "fsdp"))}
    return TrainState(put(np.int32(step)), params, {}, (), put(np.int32(0)), put(np.float32([1, 2])))
said = []
checkpoints = CheckpointManager(folder, said.append)
for step in (1, 2):
    checkpoints.save(state(step), {}, {})
checkpoints.finish()
if rank == 0:  # damages what the other has written
    path = max((folder / "2" / "state" / "ocdbt.process_1" / "d").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
multihost_utils.sync_global_devices("damaged")
found = checkpoints.restore(state(0))[0]
part, same = (x.params["kernel"].addressable_shards[0].data for x in (found, state(1)))
assert int(found.step) == 1 and np.array_equal(part, same) and len(said) == 1 and "to 2.damaged (" in said[0], said
checkpoints.close()
print("BOTH AGREE")
"""


def test_two_processes_agree_on_what_is_damaged(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen([*command, str(rank), str(port), tmp_path], env=env, stdout=-1, stderr=-2, text=True)
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("BOTH AGREE" in each for each in told), told
    assert left(tmp_path) == ["1", "2.damaged"]
    record = json.loads((tmp_path / "1" / "meta" / "metadata").read_text())
    assert list(record["leaves"]["params/kernel"]["crc"]) == ["0:8,0:300", "0:8,300:600"]
