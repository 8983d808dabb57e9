"""Checkpoints of a run: the whole train state, the data position, and what was measured. Built on orbax.

A checkpoint is a folder named by its step: `state` (orbax) and `meta/metadata`, a line of JSON with the rest and with a
CRC-32 of every part of the state, since orbax itself does not notice a flipped bit. What was read and is not what was
written is renamed to `STEP.damaged`, said, and never counted again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from datar_jax.checkpoints.integrity import compare, describe, verify
from datar_jax.checkpoints.metadata import BadCheckpoint, rank_by_score, read_record, reason, record_path, sealed

DELETED = "deleted"  # where old checkpoints go in one move: one whose deletion was cut off must not look like one


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be used; its text says what to do."""


@dataclass
class _Keep:
    """`_kept` as a preservation policy of orbax."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = _kept(self.scores, [each.step for each in checkpoints])
        return [each.step in kept for each in checkpoints]


class CheckpointManager:
    """The checkpoints of one work directory: the latest two and the best one are kept, written in the background.

    A write that was cut off never counts as a checkpoint, and older ones are deleted only after a newer one is whole.

    Args:
      folder: made when missing.
      say: takes a line for the person who watches: a damaged checkpoint, a write that failed.

    Raises:
      CheckpointError: the folder cannot be made.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self._folder, self._say = folder.absolute(), say
        self._scores: dict[int, float] = {}
        self._trusted: set[int] = set()  # written or read here
        self._pending: int | None = None  # the write under way
        self._failed: tuple[int, str] | None = None  # the last write, if it failed, and why
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(self._scores),
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            todelete_subdir=DELETED,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: no place for checkpoints ({reason(error)}); give another --workdir"
            ) from None
        self._sweep()
        for step in self._manager.all_steps():
            try:
                score = read_record(self._folder, step)["score"]
            except BadCheckpoint:  # said when it is asked for
                continue
            if score is not None:
                self._scores[step] = score

    def save(self, state: Any, data: dict[str, Any], meta: dict[str, Any], score: float | None = None) -> None:
        """Starts to store a state. If that fails, it is said, older checkpoints stay, and `finish` raises.

        Args:
          state: the state; may be donated as soon as this returns.
          data: position of the training batches.
          meta: plain values that are wanted back, such as the seconds trained so far.
          score: of the validation clips, where there are any; the highest is the best. May be given later.
        """
        self._settle()
        step = int(state.step)
        if step in self._trusted and step in self._manager.all_steps():
            if score is not None and step not in self._scores:
                self._add_score(step, score)
            return
        if step in self._manager.all_steps():
            self._set_aside(step, "not of this run, which now stores that step itself")
        record = {"step": step, "data": data, "run": meta, "score": score, "leaves": describe(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(sealed(record)))
        if score is not None:
            self._scores[step] = score
        self._pending = step
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # of many kinds, as below
            self._give_up(step, error)

    def finish(self) -> None:
        """Waits for the write under way.

        Raises:
          CheckpointError: the state that was saved last is not stored.
        """
        self._settle()
        if self._failed:
            step, why = self._failed
            newest = self.latest_step()
            there = "there is no older one" if newest is None else f"the newest one is of step {newest}"
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} could not be written ({why}); {there}; "
                "mend that, and the same command continues"
            )

    def restore(self, like: Any, best: bool = False) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint onto the devices of `like`. A damaged one is said, renamed, and the next one read.

        Args:
          like: a state of the same shapes, on the devices that the result shall have; its values do not matter.
          best: the one with the best score, then the next best, before the newest.

        Returns:
          State, data position, meta.

        Raises:
          CheckpointError: none can be read. Then nothing is renamed.
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
                why = reason(error)
            if _any_process(bool(why)):
                bad[step] = why or "another process cannot read it"
                continue
            self._trusted.add(step)
            if not best:
                bad = self._strangers() | bad
            for each, why in bad.items():
                self._set_aside(each, f"{why}; taking step {step}")
            if not best:
                self._prune()
            return state, meta["data"], meta["run"]
        reasons = "; ".join(f"step {step}: {why}" for step, why in bad.items()) or "there is none"
        raise CheckpointError(
            f"{self._folder}: no checkpoint can be read ({reasons}); "
            "delete that folder to start anew, or give another --workdir"
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best validation score; the latest one when nothing was scored."""
        self._settle()
        return next(iter(rank_by_score(self._scores, self._manager.all_steps())), self.latest_step())

    def has_score(self, step: int) -> bool:
        """Whether a score is stored with that step."""
        return step in self._scores

    def close(self) -> None:
        """Waits for the write under way; a failure is said."""
        self._settle()
        with suppress(Exception):  # orbax raises once more what was said
            self._manager.close()

    # Writing

    def _settle(self) -> None:
        """Waits for the write under way."""
        if self._pending is not None:
            step = self._pending
            try:
                self._manager.wait_until_finished()
            except Exception as error:  # OSError from Python's files, ValueError from tensorstore's
                self._give_up(step, error)
            else:
                self._pending, self._failed = None, None
                self._trusted.add(step)
        self._sweep()  # also after an earlier failure, whose threads may have gone on writing

    def _give_up(self, step: int, error: Exception) -> None:
        """A write failed: what is left of it goes, since it may be what fills the disk."""
        why = reason(error)
        self._pending, self._failed = None, (step, why)
        self._scores.pop(step, None)
        self._sweep()
        self._manager.reload()  # orbax has struck out what it meant to delete
        self._say(f"{self._folder / str(step)}: could not be written ({why}); trying again at the next checkpoint")

    def _prune(self) -> None:
        """Deletes what a run that was killed would have deleted next. Only after the newest one was read."""
        steps = self._manager.all_steps()
        for step in set(steps) - _kept(self._scores, steps):
            self._manager.delete(step)
        self._sweep()

    def _sweep(self) -> None:
        """Removes old checkpoints, and what failed writes have left, which orbax does only at the next start."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / DELETED, ignore_errors=True)
            for part in self._folder.glob("*.orbax-checkpoint-tmp*") if self._failed else ():
                shutil.rmtree(part, ignore_errors=True)

    def _add_score(self, step: int, score: float) -> None:
        """Writes the line of a checkpoint anew."""
        path = record_path(self._folder, step)
        record = {**read_record(self._folder, step), "score": score}
        try:
            if jax.process_index() == 0:
                partial = path.with_name("metadata.partial")
                with partial.open("w", encoding="utf-8") as file:
                    json.dump(sealed(record), file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
        except OSError as error:
            self._failed = (step, reason(error))
            self._say(f"{path}: its score could not be written ({reason(error)})")
            return
        self._scores[step] = score

    def _set_aside(self, step: int, why: str) -> None:
        """Renames a checkpoint that shall not count; nothing is deleted that somebody may want to look at."""
        path = self._folder / str(step)
        names = (f"{step}.damaged{i or ''}" for i in range(1000))
        aside = next(self._folder / name for name in names if not (self._folder / name).exists())
        _any_process(False)  # all have looked
        if jax.process_index() == 0:
            path.rename(aside)
        _any_process(False)  # and see it gone
        self._manager.reload()
        self._scores.pop(step, None)
        self._trusted.discard(step)
        self._say(f"{path}: passed over and renamed to {aside.name} ({why})")

    # Reading

    def _strangers(self) -> dict[int, str]:
        """Folders named like a checkpoint that are none of this program: they must not be deleted as old ones."""
        found = {}
        for step in self._manager.all_steps():
            try:
                read_record(self._folder, step)
            except BadCheckpoint as bad:
                found[step] = str(bad)
        return found

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        meta = read_record(self._folder, step)
        compare(meta["leaves"], like)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = self._manager.restore(step, args=args).state
        verify(meta["leaves"], state)
        return state, meta


def _kept(scores: dict[int, float], steps: Sequence[int]) -> set[int]:
    """The latest two, and the best one."""
    return {*sorted(steps)[-2:], *rank_by_score(scores, steps)[:1]}


def _any_process(flag: bool) -> bool:
    """Whether it holds on any process; waits for all of them."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
