"""Finds clips of a test split whose decoded sound is that of a training clip."""

from __future__ import annotations

import numpy as np

from datar_jax.data.dataset import Dataset
from datar_jax.data.sources.base import ClipSource
from datar_jax.data.splits import Splits
from datar_jax.wording import count

MOST_KEPT = 20_000  # clips whose checksums go into model.json: 107 kB of base64


def copies(source: ClipSource, split: Splits) -> list[tuple[int, int]]:
    """Pairs of a test clip and an equal training or validation clip, by checksum and then by content.

    None where the source has no checksums of clips, as shards that 0.1 prepared.
    """
    if source.checksums is None:
        return []
    key_C = source.checksums.astype(np.uint64) << np.uint64(32) | source.frames.astype(np.uint64)
    learned = np.concatenate([split.validation, split.train])
    tested = split.test[np.isin(key_C[split.test], key_C[learned])]
    known = {int(key_C[i]): int(i) for i in learned[np.isin(key_C[learned], key_C[tested])]}
    pairs = ((int(i), known[int(key_C[i])]) for i in tested)
    return [(i, j) for i, j in pairs if np.array_equal(source.get(i), source.get(j))]


def pack_checksums(source: ClipSource, split: Splits) -> bytes:
    """Checksums of the training and validation clips, to be kept with the model; empty where they are not known.

    Four bytes a clip; none of more than `MOST_KEPT` clips.
    """
    if source.checksums is None or len(split.train) + len(split.validation) > MOST_KEPT:
        return b""
    learned = np.sort(source.checksums[np.concatenate([split.train, split.validation])])
    return learned.astype("<u4").tobytes()


def learned_note(source: ClipSource, indices: np.ndarray, packed: bytes) -> str | None:
    """One line on clips that a model was trained on; empty if there is none, None if that is not known.

    Args:
      source: of the clips, decoded as for the model.
      indices: the clips.
      packed: from `pack_checksums` of the model's own data.
    """
    if source.checksums is None or not packed:
        return None
    learned = np.frombuffer(packed, "<u4")
    learned_here = int(np.isin(source.checksums[indices], learned).sum())
    if not learned_here:
        return ""
    share = f"{learned_here:,} of these {count(len(indices), 'clip')}"
    return f"the model was trained on, or chosen by, {share}: this is no test of it"


def copies_note(dataset: Dataset, source: ClipSource, split: Splits) -> str:
    """One line on test clips that are copies of training clips; empty if none is."""
    pairs = copies(source, split)
    if not pairs:
        return ""
    few = ", ".join(f"{dataset.where(i)} = {dataset.where(j)}" for i, j in pairs[:3])
    copied = "is a copy" if len(pairs) == 1 else "are copies"
    return (
        f"{len(pairs)} of {count(len(split.test), 'test clip')} {copied} of training or validation clips ({few}"
        f"{', ...' if len(pairs) > 3 else ''}): the test score is too good"
    )
