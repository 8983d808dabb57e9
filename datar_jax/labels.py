"""Classes and heads: what a score means."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

Labels = Literal["single", "multi"]


Heads = Sequence[tuple[str, int]]  # name and number of classes of each; none: one head over all classes


def head_slices(heads: Heads) -> dict[str, slice]:
    """Where each head's classes lie, by what stands before the names of its numbers: `verb_`; nothing for one head."""
    if len(heads) < 2:
        return {"": slice(None)}
    ends = itertools.accumulate(size for _, size in heads)
    return {f"{name}_": slice(end - size, end) for (name, size), end in zip(heads, ends)}


def class_names(labels: Sequence[str], heads: Heads = ()) -> tuple[str, ...]:
    """What a class is known by: its label; with several heads, its head's name before it (`verb: cut`)."""
    of_head = {prefix.removesuffix("_"): labels[part] for prefix, part in head_slices(heads).items()}
    return tuple(f"{head}: {label}" if head else label for head, of in of_head.items() for label in of)


class Head(NamedTuple):
    """A question that is answered of every clip, such as which verb and which noun."""

    name: str
    size: int  # how many classes answer it
