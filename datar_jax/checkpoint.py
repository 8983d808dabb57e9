"""Checkpoints of a run: the whole train state, the data position, and what was measured. Built on orbax."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from datar_jax.step import TrainState

SCORE = "top1"  # of the validation clips: what "best" means


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be used; its text says what to do."""


class Checkpoints:
    """The checkpoints of one work directory: the latest two and the best one are kept, written in the background.

    A write that was cut off never counts as a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(2),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda m: m[SCORE], n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda m: m[SCORE],  # the policy keeps the best; only with this are scores stored
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder

    def save(self, state: TrainState, data: dict[str, Any], meta: dict[str, Any], score: float | None = None) -> None:
        """Stores a state.

        Args:
          state: the state; may be donated as soon as this returns.
          data: position of the training batches.
          meta: plain values that are wanted back, such as the seconds trained so far.
          score: of the validation clips, where there are any.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            if score is None or self._manager.metrics(step):
                return
            self._manager.wait_until_finished()
            self._manager.delete(step)  # the same state, now with its score
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave({"data": data, "run": meta, "checksums": _checksums(state)}),
            ),
            metrics=None if score is None else {SCORE: score},
            force=True,
        )

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint onto the devices of `like`; a damaged one is passed over for the one before it.

        Args:
          like: a state of the same shapes, on the devices that the result shall have; its values do not matter.
          step: the checkpoint; the latest one by default.

        Returns:
          State, data position, meta.

        Raises:
          CheckpointError: none can be read, or it is of another model.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        steps = [step] if step is not None else sorted(self._manager.all_steps(), reverse=True)
        failures = []
        for each in steps:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
            try:
                found = self._manager.restore(each, args=args)
                _verify(found.state, found.meta["checksums"])
            except Exception as error:  # orbax raises six kinds for a damaged folder, bare Exception among them
                failures.append(f"step {each}: {str(error).splitlines()[0][:200]}")
                continue
            return found.state, found.meta["data"], found.meta["run"]
        raise CheckpointError(
            f"{self._folder}: no checkpoint can be read ({'; '.join(failures)}); "
            "delete that folder to start anew, or give another --workdir"
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best validation score; the latest one when nothing was scored."""
        self._manager.wait_until_finished()
        scored = {s: m[SCORE] for s in self._manager.all_steps() if (m := self._manager.metrics(s))}
        return max(scored, key=lambda s: (scored[s], s)) if scored else self.latest_step()

    def close(self) -> None:
        """Waits for the write under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _checksums(state: TrainState) -> list[int]:
    """CRC-32 of every leaf: orbax itself does not notice a flipped bit. Empty if other hosts hold parts of it."""
    leaves = jax.tree.leaves(state)
    if not all(leaf.is_fully_addressable for leaf in leaves):
        return []
    return [zlib.crc32(np.asarray(leaf).tobytes()) for leaf in leaves]


def _verify(state: TrainState, checksums: list[int]) -> None:
    if checksums and checksums != _checksums(state):
        raise ValueError("its numbers are not those that were written")
