"""The work directory of a run, which belongs to one configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import msgspec

from datar_jax.config import Config, ConfigError
from datar_jax.config.loader import from_stored
from datar_jax.filesystem import write_json

# What may differ between two calls on one work directory: where things lie and how they are read and shown.
RESUMABLE_FIELDS = (
    *("data.root", "data.cache", "data.workers", "data.threads"),
    *(
        "train.checkpoint_every_epochs",
        "train.log_every_steps",
        "train.max_skipped",
        "train.stall_seconds",
        "mesh.data",
        "mesh.fsdp",
    ),
)


def check_workdir(config: Config, workdir: Path) -> None:
    """Writes the resolved configuration, or refuses a directory that belongs to another one."""
    path = workdir / "config.json"
    tree = msgspec.to_builtins(config)
    if path.exists():
        try:
            before = _flat(_completed(json.loads(path.read_text(encoding="utf-8"))))
        except json.JSONDecodeError:
            raise ConfigError(f"{path}: not readable as JSON; delete it, or give another --workdir") from None
        now = _flat(json.loads(msgspec.json.encode(tree)))
        for field in sorted(set(before) | set(now)):
            if field not in RESUMABLE_FIELDS and before.get(field) != now.get(field):
                raise ConfigError(
                    f"{field}={now.get(field)!r}: {workdir} holds a run with {field}={before.get(field)!r}; "
                    "give that value to continue it, or another --workdir"
                )
    try:
        write_on_first_process(path, tree)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror}); give another one") from None


def _completed(tree: Any) -> dict[str, Any]:
    """A stored configuration, completed with fields added since."""
    try:
        return dict(json.loads(msgspec.json.encode(from_stored(tree))))
    except ConfigError:
        return dict(tree)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def write_on_first_process(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, on the first process only."""
    if not jax.process_index():
        write_json(path, value)
