"""Checkpoints of a run: train state, data position and scores, saved asynchronously with orbax.

A checkpoint is a folder named by its step: `state` (orbax) and `meta/metadata`, one line of JSON with everything else
and with a CRC-32 of every shard of the state, since orbax does not detect a flipped bit. A damaged checkpoint is
reported, renamed to `STEP.damaged` and ignored from then on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from datar_jax.atomic_files import atomic_write
from datar_jax.checkpoints.integrity import (
    BadCheckpoint,
    Metadata,
    Mismatch,
    check_structure,
    fingerprint,
    metadata_path,
    rank_by_score,
    read_metadata,
    short_message,
    stored_steps,
    verify_checksums,
    with_checksum,
)

State = TypeVar("State")  # any pytree of jax arrays with a scalar attribute `step`
DELETED = "deleted"  # old checkpoints are moved here at once: a half-deleted one must not look like a checkpoint


class CheckpointError(RuntimeError):
    """Checkpoints cannot be read or written; the message says what to do."""


@dataclass
class _Keep:
    """`_kept` as an orbax preservation policy."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = _kept(self.scores, [each.step for each in checkpoints])
        return [each.step in kept for each in checkpoints]


class CheckpointManager:
    """Saves and restores the checkpoints of one work directory; keeps the latest two and the best one.

    Writes are asynchronous. An interrupted write never counts as a checkpoint, and older checkpoints are deleted only
    after a newer one is complete.

    Args:
      folder: created if missing.
      say: logs one line, such as a damaged checkpoint or a failed write.

    Raises:
      CheckpointError: the folder cannot be created.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self._folder, self._say = folder.absolute(), say
        self._scores: dict[int, float] = {}
        self._trusted: set[int] = set()  # written or verified by this process
        self._pending: int | None = None  # step that is being written
        self._failed: tuple[int, str] | None = None  # the last write, if it failed, and why
        self._writes = False  # whether anything in the folder has been changed
        self._partial = True  # whether there may be files of a killed or failed write
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(self._scores),
            lightweight_initialize=True,
            todelete_subdir=DELETED,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: cannot hold checkpoints ({short_message(error)}); give another --workdir"
            ) from None
        for step in self._manager.all_steps():
            try:
                score = read_metadata(self._folder, step).score
            except BadCheckpoint:  # reported by restore
                continue
            if score is not None:
                self._scores[step] = score

    def save(self, state: Any, data: dict[str, Any], meta: dict[str, Any], score: float | None = None) -> None:
        """Saves asynchronously. On failure logs why, keeps older checkpoints; `finish` raises.

        Args:
          state: pytree of jax arrays with a scalar attribute `step`; may be donated as soon as this returns.
          data: position of the training batches.
          meta: JSON values that `restore` returns, such as the seconds trained so far.
          score: on the validation clips, if any; the highest is the best. A later call for the same step may add it.
        """
        self._settle()
        self._sweep()
        step = int(state.step)
        if step in self._trusted and step in self._manager.all_steps():
            if score is not None and step not in self._scores:
                self._add_score(step, score)
            return
        if step in self._manager.all_steps():
            self._set_aside(step, "written by another run; this run now saves that step")
        metadata = {"step": step, "data": data, "run": meta, "score": score, "leaves": fingerprint(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(with_checksum(metadata)))
        if score is not None:
            self._scores[step] = score
        self._pending = step
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # orbax raises many kinds
            self._give_up(step, error)

    def finish(self) -> None:
        """Waits for the pending write.

        Raises:
          CheckpointError: the last write failed.
        """
        self._settle()
        if self._failed:
            step, why = self._failed
            newest = self.latest_step()
            older = "there is no older one" if newest is None else f"the newest one is of step {newest}"
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} could not be written ({why}); {older}; "
                "fix that, and the same command resumes"
            )

    def restore(self, like: State, best: bool = False) -> tuple[State, dict[str, Any], dict[str, Any]]:
        """Restores a checkpoint with the shardings of `like`. Corrupt checkpoints are reported, renamed and skipped.

        Args:
          like: a state with the shapes, dtypes and shardings of the result; its values are ignored.
          best: try checkpoints by score, best first, before the newest.

        Returns:
          State, data position, meta.

        Raises:
          CheckpointError: no checkpoint can be read; none is renamed.
        """
        self._settle()
        newest_first = sorted(self._manager.all_steps(), reverse=True)
        order = rank_by_score(self._scores, newest_first) if best else []
        bad: dict[int, str] = {}
        for step in [*order, *(step for step in newest_first if step not in order)]:
            why = ""
            try:
                state, meta = self._read(step, like)
            except Exception as error:  # orbax raises six kinds for a damaged folder, bare Exception among them
                why = short_message(error)
            if _any_process(bool(why)):
                bad[step] = why or "another process cannot read it"
                continue
            self._trusted.add(step)
            if not best:
                bad = self._foreign() | bad
            for each, why in bad.items():
                self._set_aside(each, f"{why}; taking step {step}")
            if not best:
                self._prune()
            return state, meta.data, meta.run
        raise _none_readable(self._folder, bad)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None without one."""
        return self._manager.latest_step()

    def has_score(self, step: int) -> bool:
        """Whether the checkpoint of that step has a score."""
        return step in self._scores

    def close(self) -> None:
        """Waits for the pending write; logs a failure."""
        self._settle()
        with suppress(Exception):  # orbax raises again what was already logged
            self._manager.close()

    # Writing

    def _settle(self) -> None:
        """Waits for the pending write."""
        if self._pending is not None:
            step = self._pending
            try:
                self._manager.wait_until_finished()
            except Exception as error:  # OSError from Python's files, ValueError from tensorstore's
                self._give_up(step, error)
            else:
                self._pending, self._failed = None, None
                self._trusted.add(step)
        if self._writes:
            self._sweep()

    def _give_up(self, step: int, error: Exception) -> None:
        """Handles a failed write: deletes its partial files, which may be what fills the disk."""
        why = short_message(error)
        self._pending, self._failed = None, (step, why)
        self._scores.pop(step, None)
        self._sweep()
        self._manager.reload()  # orbax has already dropped the checkpoints that it meant to delete
        self._say(f"{self._folder / str(step)}: could not be written ({why}); trying again at the next checkpoint")

    def _prune(self) -> None:
        """Applies the retention policy that a killed run did not reach; only after the newest checkpoint was read."""
        steps = self._manager.all_steps()
        for step in set(steps) - _kept(self._scores, steps):
            self._manager.delete(step)
        self._sweep()

    def _sweep(self) -> None:
        """Removes deleted checkpoints and partial files of killed or failed writes.

        Not before a checkpoint was read, where there are any: a run that is refused changes nothing. Repeated after a
        failure, whose threads may have gone on writing.
        """
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / DELETED, ignore_errors=True)
            for part in self._folder.glob("*.orbax-checkpoint-tmp*") if self._partial else ():
                shutil.rmtree(part, ignore_errors=True)
        self._writes, self._partial = True, bool(self._failed)

    def _add_score(self, step: int, score: float) -> None:
        """Rewrites the metadata of a checkpoint with its score."""
        path = metadata_path(self._folder, step)
        metadata = {**msgspec.to_builtins(read_metadata(self._folder, step)), "score": score}
        try:
            if jax.process_index() == 0:
                atomic_write(path, json.dumps(with_checksum(metadata)).encode())
        except OSError as error:
            self._failed = (step, short_message(error))
            self._say(f"{path}: its score could not be written ({short_message(error)})")
            return
        self._scores[step] = score

    def _set_aside(self, step: int, why: str) -> None:
        """Renames a checkpoint that is to be ignored; it is not deleted, so that it can be examined."""
        path = self._folder / str(step)
        names = (f"{step}.damaged{i or ''}" for i in range(1000))
        aside = next(self._folder / name for name in names if not (self._folder / name).exists())
        _any_process(False)  # every process has chosen the name
        if jax.process_index() == 0:
            path.rename(aside)
        _any_process(False)  # the rename is done
        self._manager.reload()
        self._scores.pop(step, None)
        self._trusted.discard(step)
        self._say(f"{path}: skipped and renamed to {aside.name} ({why})")

    # Reading

    def _foreign(self) -> dict[int, str]:
        """Folders named like a checkpoint that this program did not write; they must not be deleted as old ones."""
        found = {}
        for step in self._manager.all_steps():
            try:
                read_metadata(self._folder, step)
            except BadCheckpoint as bad:
                found[step] = str(bad)
        return found

    def _read(self, step: int, like: Any) -> tuple[Any, Metadata]:
        meta = read_metadata(self._folder, step)
        check_structure(meta.leaves, like)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = self._manager.restore(step, args=args).state
        verify_checksums(meta.leaves, state)
        return state, meta


def check_checkpoints(folder: Path, like: Any) -> None:
    """Checks, by their metadata alone, that a folder holds a checkpoint of a state like that; changes nothing.

    Raises:
      CheckpointError: none of them is.
    """
    bad = {}
    for step in stored_steps(folder):
        try:
            check_structure(read_metadata(folder, step).leaves, like)
        except (BadCheckpoint, Mismatch) as error:
            bad[step] = str(error)
        else:
            return
    raise _none_readable(folder, bad)


def _none_readable(folder: Path, bad: dict[int, str]) -> CheckpointError:
    reasons = "; ".join(f"step {step}: {why}" for step, why in bad.items()) or "there is none"
    return CheckpointError(
        f"{folder}: no checkpoint can be read ({reasons}); delete that folder to start over, or give another --workdir"
    )


def _kept(scores: dict[int, float], steps: Sequence[int]) -> set[int]:
    """Steps of the latest two checkpoints and of the best one."""
    return {*sorted(steps)[-2:], *rank_by_score(scores, steps)[:1]}


def _any_process(flag: bool) -> bool:
    """Whether `flag` is true on any process; waits for all of them."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
