"""Class names and classification heads: the meaning of each score."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import msgspec

Labels = Literal["single", "multi"]


class Head(msgspec.Struct, frozen=True):
    """A classification head, such as verb or noun. Scores are those of all heads, one head after another."""

    name: str
    classes: tuple[str, ...]  # in the order of the scores

    @property
    def size(self) -> int:
        """Number of classes."""
        return len(self.classes)


Heads = Sequence[Head]  # none: one head over all classes


def heads_from_sizes(sizes: dict[str, int], labels: Sequence[str]) -> tuple[Head, ...]:
    """The heads whose classes follow one another in `labels`.

    Args:
      sizes: number of classes by name of head; together as many as there are labels.
      labels: classes of all heads.
    """
    ends = itertools.accumulate(sizes.values())
    return tuple(Head(name, tuple(labels[end - size : end])) for (name, size), end in zip(sizes.items(), ends))


def head_slices(heads: Heads) -> dict[str, slice]:
    """Slice of each head's classes, by the prefix of its metrics: `verb_`; an empty prefix for a single head."""
    if len(heads) < 2:
        return {"": slice(None)}
    ends = itertools.accumulate(head.size for head in heads)
    return {f"{head.name}_": slice(end - head.size, end) for head, end in zip(heads, ends)}


def class_names(labels: Sequence[str], heads: Heads = ()) -> tuple[str, ...]:
    """Display names of classes: the label, with several heads prefixed by the head (`verb: cut`)."""
    of_head = {prefix.removesuffix("_"): labels[part] for prefix, part in head_slices(heads).items()}
    return tuple(f"{head}: {label}" if head else label for head, of in of_head.items() for label in of)
