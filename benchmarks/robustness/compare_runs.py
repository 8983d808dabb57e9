"""Compares two work directories of one training: bit for bit, or up to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datar_jax.training.monitoring.metric_writer import read_rows

TIMINGS = {"clips_per_second", "steps_per_second", "data_wait", "train_seconds", "inputs_checksum"}


# One device adds up a batch in one order, four in another: sums differ in the last of 24 bits (6e-8), and Adam divides
# by the root of their mean square, so that a gradient near zero may move a weight by a whole step either way. What is
# compared is therefore not the single weight but the length of the difference of all.
TOLERANCE = 1e-3  # of the length of all weights, of all averages of gradients; and of each loss


class Broken(Exception):
    """A check that failed."""


def states(run: Path) -> dict[int, dict[str, Any]]:
    """Every checkpoint's numbers by path, read without the program that wrote them."""
    import logging

    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    read: dict[int, dict[str, Any]] = {}
    for folder in (run / "checkpoints").iterdir():
        if not folder.name.isdigit():
            raise Broken(f"{folder}: left behind")
        with ocp.StandardCheckpointer() as reader:
            tree = dict(reader.metadata(folder / "state").item_metadata.tree)
            shapes = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=alone), tree)
            leaves = jax.tree_util.tree_leaves_with_path(reader.restore(folder / "state", shapes))
        read[int(folder.name)] = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return read


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows, damaged = read_rows(run / "metrics.jsonl")
    if damaged:
        raise Broken(f"{run}: lines {damaged} of metrics.jsonl are no rows")
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def result_of(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    return {name: value for name, value in result.items() if name not in TIMINGS}


def compare_bits(last: int, alone: Path, killed: Path) -> list[str]:
    """What was found equal, bit for bit."""
    one, other = states(alone), states(killed)
    if sorted(one) != sorted(other) or max(one) != last:
        raise Broken(f"checkpoints of steps {sorted(one)} and {sorted(other)}")
    for step, leaves in one.items():
        if leaves.keys() != other[step].keys():
            raise Broken(f"step {step}: other leaves")
        for name, leaf in leaves.items():
            if leaf.tobytes() != other[step][name].tobytes():
                raise Broken(f"step {step}: {name} differs")
    mine, theirs = rows_of(alone), rows_of(killed)
    for a, b in zip(mine, theirs):
        if a != b:
            raise Broken(f"metrics.jsonl: {a} and {b}")
    if len(mine) != len(theirs):
        raise Broken(f"metrics.jsonl: {len(mine)} and {len(theirs)} rows")
    if result_of(alone) != result_of(killed):
        raise Broken(f"result.json: {result_of(alone)} and {result_of(killed)}")
    if left := [path for path in killed.rglob("*") if "partial" in path.name or "tmp" in path.name]:
        raise Broken(f"left behind: {left}")
    leaves = one[last]
    return [
        f"checkpoints {sorted(one)}: {len(leaves)} leaves each, {sum(leaf.size for leaf in leaves.values()):,} numbers",
        f"metrics.jsonl: {len(mine)} rows",
        f"result.json: {len(result_of(alone))} numbers",
    ]


def compare_closely(last: int, alone: Path, moved: Path, since: int) -> list[str]:
    """What was found equal up to rounding."""
    import numpy as np

    one, other = states(alone)[last], states(moved)[last]
    told = []
    for part in ("params", "ema", "mu", "nu"):  # the last two are Adam's
        a, b = (
            np.concatenate(
                [s[n].ravel().astype(np.float64) for n in sorted(s) if f"['{part}']" in n and s[n].dtype.kind == "f"]
            )
            for s in (one, other)
        )
        told.append((part, float(np.linalg.norm(a - b) / np.linalg.norm(a))))
    losses = [[row["loss"] for row in rows_of(run) if "split" not in row] for run in (alone, moved)]
    if len(losses[0]) != len(losses[1]):
        raise Broken("metrics.jsonl: not as many rows")
    if losses[0][:since] != losses[1][:since]:
        raise Broken("metrics.jsonl: rows from before the change differ")
    told.append(("loss, largest", max(abs(a - b) / abs(a) for a, b in zip(*losses))))
    for name, difference in told:
        if not difference < TOLERANCE:
            raise Broken(f"{name}: relative difference {difference:.1e}, more than {TOLERANCE:g}")
    return [f"{name}: relative difference {difference:.1e}" for name, difference in told]
