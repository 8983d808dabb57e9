"""The settings of a small run, its command, and its files as tests read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parent.parent.parent
KINDS = ("alarm", "bark", "rain")

# Two stages: most of the time of such a run goes by in the compiler.
TINY = {
    "audio.n_mels": "32",
    "audio.hop_ms": "25",
    "audio.window_ms": "50",
    "audio.sample_rate": "8000",
    "augment.freq_width": "4",
    "model.dims": "8,16",
    "model.spec": "L,D",
    "model.heads": "1,2",
    "model.window.sizes": "[[4,4],[4,4]]",
    "model.deformable.groups": "1,2",
    "model.deformable.strides": "2,1",
    "model.deformable.kernels": "3,3",
    "model.stem": "patch",
    "model.mlp": "plain",
    "model.local_perception": "false",
    "train.batch_size": "8",
    "train.eval_batch_size": "8",
    "train.epochs": "3",
    "train.log_every_steps": "1",
}


def command(config: str, workdir: Path, **fields: str) -> list[str]:
    given = {**TINY, **{name.replace("__", "."): value for name, value in fields.items()}}
    return [
        f"--config={ROOT / 'configs' / config}.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in given.items()),
    ]


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def params_of(workdir: Path) -> Any:
    """The last checkpoint's numbers, read back without knowing the model."""
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager((workdir / "checkpoints").absolute())
    step = manager.latest_step()
    manager.close()
    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.StandardCheckpointer() as reader:
        abstract = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(
                m.shape, m.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
            ),
            dict(reader.metadata(folder.absolute()).item_metadata.tree),
        )
        return reader.restore(folder.absolute(), abstract)["params"]


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def swap_files(one: Path, other: Path) -> None:
    """Two files of the same size change places."""
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second) and first != second
    one.write_bytes(second)
    other.write_bytes(first)
