"""Finds clips of a test split whose decoded sound is that of a training clip."""

from __future__ import annotations

import numpy as np

from datar_jax.data.dataset import Dataset
from datar_jax.data.sources.base import ClipSource
from datar_jax.data.splits import Splits


def copies(source: ClipSource, split: Splits) -> list[tuple[int, int]]:
    """Pairs of a test clip and an equal training or validation clip, by checksum and then by content.

    None where the source has no checksums of clips, as prepared shards.
    """
    checksums = source.checksums
    if checksums is None:
        return []
    known = {(checksums[i], int(source.frames[i])): int(i) for i in (*split.validation, *split.train)}
    pairs = ((int(i), known.get((checksums[i], int(source.frames[i])))) for i in split.test)
    return [(i, j) for i, j in pairs if j is not None and np.array_equal(source.get(i), source.get(j))]


def copies_note(dataset: Dataset, source: ClipSource, split: Splits) -> str:
    """One line on test clips that are copies of training clips; empty if none is."""
    pairs = copies(source, split)
    if not pairs:
        return ""
    few = ", ".join(f"{dataset.where(i)} = {dataset.where(j)}" for i, j in pairs[:3])
    return (
        f"{len(pairs)} of {len(split.test)} test clips are copies of training or validation clips ({few}"
        f"{', ...' if len(pairs) > 3 else ''}): the test score is too good"
    )
