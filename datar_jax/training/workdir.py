"""The work directory of a run: from its first checkpoint on it belongs to one configuration and one list of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec

from datar_jax.checkpoints.model_info import MODEL_FILE, ModelError, read_model_info
from datar_jax.config import Config, ConfigError
from datar_jax.config.loader import read_stored
from datar_jax.filesystem import write_json
from datar_jax.version import __version__

RESULT = "result.json"

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
    """Writes the resolved configuration, or refuses a directory that belongs to another one.

    Without a checkpoint there is nothing that another configuration could spoil: a first failure binds no setting.

    Raises:
      ConfigError: names the setting and both values, or the directory that cannot be written.
    """
    path = workdir / "config.json"
    tree = msgspec.to_builtins(config)
    if path.exists() and any(map(has_checkpoint, (workdir, *workdir.glob("fold_*")))):
        before, now = _flat(msgspec.to_builtins(read_stored(path))), _flat(tree)
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


def check_labels(labels: Sequence[str], folder: Path) -> None:
    """Refuses to continue a run with other classes than those that it has learned.

    Raises:
      ConfigError: names the classes that are new and those that are missing.
    """
    try:
        before = read_model_info(folder / MODEL_FILE).labels if has_checkpoint(folder) else tuple(labels)
    except ModelError:
        return  # it is written anew
    if tuple(labels) == before:
        return
    new, missing = ([n for n in a if n not in b] for a, b in ((labels, before), (before, labels)))
    changes = [f"without {', '.join(map(repr, missing[:5]))}"] if missing else []
    changes += [f"with {', '.join(map(repr, new[:5]))}"] if new else []
    raise ConfigError(
        f"--workdir={folder}: holds a run of {len(before)} classes, the data have {len(labels)}, "
        f"{' and '.join(changes) or 'in another order'}; give the same data, or another --workdir"
    )


def result_checksum(clips: object, workdir: Path, folders: Iterable[Path]) -> int:
    """Checksum of what the result of a run depends on: program, settings, clips, and the checkpoints of its folds.

    Args:
      clips: plain values that change when other clips are tested.
      workdir: folder of the run.
      folders: those of its folds.
    """
    tree = {
        name: value
        for name, value in _flat(msgspec.to_builtins(read_stored(workdir / "config.json"))).items()
        if name not in RESUMABLE_FIELDS
    }
    files = [
        [path.relative_to(workdir).as_posix(), path.stat().st_size]
        for folder in folders
        for path in sorted((folder / "checkpoints").rglob("*"))
        if path.is_file()
    ]
    return int(hashlib.sha256(json.dumps([__version__, tree, clips, files]).encode()).hexdigest()[:12], 16)


def finished_result(workdir: Path, checksum: int) -> dict[str, Any] | None:
    """The numbers of a finished run, if what they depend on is unchanged."""
    try:
        result = dict(json.loads((workdir / RESULT).read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None
    return result if result.get("inputs_checksum") == checksum else None


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in a folder has saved its state."""
    return any(each.name.isdecimal() for each in (folder / "checkpoints").glob("*"))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def write_on_first_process(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, on the first process only."""
    if not jax.process_index():
        write_json(path, value)
