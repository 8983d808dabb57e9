"""The work directory of a run: from its first checkpoint on it belongs to one configuration and one data set.

The checks change no byte of it; `write_run` does, once nothing is left that could be refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import msgspec

from datar_jax.atomic_files import write_json
from datar_jax.checkpoints.model_info import MODEL_FILE, ModelError, read_model_info
from datar_jax.config import Config, ConfigError
from datar_jax.config.loader import read_stored
from datar_jax.data.identity import (
    RECORD,
    DataIdentity,
    differences,
    identity,
    other_classes,
    read_identity,
    with_checksums,
    write_identity,
)
from datar_jax.locks import LockHeld, locked_folder
from datar_jax.training.input_pipeline import LabelledData
from datar_jax.version import __version__

CONFIG_FILE = "config.json"
RESULT = "result.json"


def check_workdir(config: Config, workdir: Path) -> None:
    """Refuses a directory that belongs to another configuration.

    Without a checkpoint there is nothing that another configuration could spoil: a first failure binds no setting.

    Raises:
      ConfigError: names the setting and both values.
    """
    path = workdir / CONFIG_FILE
    if not (path.exists() and bound(workdir)):
        return
    before = read_stored(path).binding()
    for field, value in sorted(config.binding().items()):
        if value != before[field]:
            raise ConfigError(
                f"{field}={value!r}: {workdir} holds a run with {field}={before[field]!r}; "
                "give that value to continue it, or another --workdir"
            )


def check_data(data: LabelledData, workdir: Path) -> tuple[DataIdentity | None, str]:
    """Refuses to continue a run on other data than those that it has learned from.

    Returns:
      The identity of the data, with what is known of their files; None where no run is bound to any. And a line for a
      run of an earlier version, which kept no record of its data; otherwise an empty text.

    Raises:
      ConfigError: names the first clips or classes that differ.
    """
    if not bound(workdir):
        return None, ""
    before = read_identity(workdir / RECORD)
    if before is None:
        for folder in (workdir, *workdir.glob("fold_*")):
            check_labels(data.dataset.labels, folder)
        return None, f"{workdir}: of an earlier version, which kept no record of its data; from here on there is one"
    dataset, content = data.dataset, data.content
    if before.names.count(b"\0") == len(dataset):
        content = with_checksums(dataset, content, before.content, data.root)
    now = identity(dataset, data.splits, content)
    if found := differences(dataset, now, before):
        raise ConfigError(
            f"--workdir={workdir}: holds a run on other data, compared with which these have {'; '.join(found)}; "
            "give the same data, or another --workdir"
        )
    return now, ""


def check_labels(labels: Sequence[str], folder: Path) -> None:
    """Refuses to continue a run with other classes than those in its `model.json`.

    Raises:
      ConfigError: names the classes that are new and those that are missing.
    """
    try:
        before = read_model_info(folder / MODEL_FILE).labels if has_checkpoint(folder) else tuple(labels)
    except ModelError:
        return  # it is written anew
    if found := other_classes(labels, before):
        raise ConfigError(
            f"--workdir={folder}: holds a run of {len(before)} classes, compared with which the data have {found}; "
            "give the same data, or another --workdir"
        )


def write_run(config: Config, data: DataIdentity, workdir: Path) -> None:
    """Binds the directory to a configuration and a data set; on the first process only.

    Raises:
      ConfigError: it cannot be written.
    """
    if jax.process_index():
        return
    try:
        write_json(workdir / CONFIG_FILE, msgspec.to_builtins(config))
        write_identity(workdir / RECORD, data)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror}); give another one") from None


@contextmanager
def only_writer(workdir: Path) -> Iterator[None]:
    """Holds the lock on a work directory, for all processes of a run; on the first one only.

    Raises:
      ConfigError: another run writes there, or nobody can.
    """
    with ExitStack() as stack:
        if not jax.process_index():
            try:
                stack.enter_context(locked_folder(workdir))
            except LockHeld as held:
                why = f"{held.strerror}; wait for it, or give another --workdir"
                raise ConfigError(f"--workdir={workdir}: {why}") from None
            except OSError as error:
                why = f"cannot be written ({error.strerror}); give another one"
                raise ConfigError(f"--workdir={workdir}: {why}") from None
        yield


def bound(workdir: Path) -> bool:
    """Whether the run in a work directory, or one of its folds, has saved its state."""
    return any(map(has_checkpoint, (workdir, *workdir.glob("fold_*"))))


def result_checksum(clips: object, config: Config, workdir: Path, folders: Iterable[Path]) -> int:
    """Checksum of what the result of a run depends on: program, settings, clips, and the checkpoints of its folds.

    Args:
      clips: plain values that change when other clips are tested.
      config: of the run.
      workdir: folder of the run.
      folders: those of its folds.
    """
    files = [
        [path.relative_to(workdir).as_posix(), path.stat().st_size]
        for folder in folders
        for path in sorted((folder / "checkpoints").rglob("*"))
        if path.is_file()
    ]
    return int(hashlib.sha256(json.dumps([__version__, config.binding(), clips, files]).encode()).hexdigest()[:12], 16)


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


def write_on_first_process(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, on the first process only."""
    if not jax.process_index():
        write_json(path, value)
