"""Class names and classification heads: the meaning of each score."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

Labels = Literal["single", "multi"]


Heads = Sequence[tuple[str, int]]  # name and number of classes of each; none: one head over all classes


def head_slices(heads: Heads) -> dict[str, slice]:
    """Slice of each head's classes, by the prefix of its metrics: `verb_`; an empty prefix for a single head."""
    if len(heads) < 2:
        return {"": slice(None)}
    ends = itertools.accumulate(size for _, size in heads)
    return {f"{name}_": slice(end - size, end) for (name, size), end in zip(heads, ends)}


def class_names(labels: Sequence[str], heads: Heads = ()) -> tuple[str, ...]:
    """Display names of classes: the label, with several heads prefixed by the head (`verb: cut`)."""
    of_head = {prefix.removesuffix("_"): labels[part] for prefix, part in head_slices(heads).items()}
    return tuple(f"{head}: {label}" if head else label for head, of in of_head.items() for label in of)


class Head(NamedTuple):
    """A classification head, such as verb or noun."""

    name: str
    size: int  # number of classes
