"""Reads JSON that others may have written, as a typed value: descriptions of models, indices of data, checkpoints.

A text of N bytes takes at most 64 N bytes of memory, and time that grows as N.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

Value = TypeVar("Value")
LONGEST_MESSAGE = 300  # characters


class JsonError(ValueError):
    """A text is not the JSON that it should be; the message is part of a line, without the name of the file."""


def decode_json(content: bytes, kind: type[Value], upgrade: Callable[[Any], Any] | None = None) -> Value:
    """The value of a JSON text.

    Args:
      content: UTF-8. Numbers are finite, no name stands twice in an object.
      kind: a type that msgspec decodes, such as a struct or `dict[str, int]`.
      upgrade: takes the plain values of a text that an earlier version may have written, and returns today's.

    Raises:
      JsonError: not JSON, or a value of another type; names the field.
    """
    try:
        json.loads(content, object_pairs_hook=_once)
        if upgrade:
            content = msgspec.json.encode(upgrade(msgspec.json.decode(content)))
        return msgspec.json.decode(content, type=kind)
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except (ValueError, OverflowError, TypeError) as error:  # of Python's and of msgspec's decoder, and of `upgrade`
        line = "".join(c if c.isprintable() else " " for c in str(error))
        raise JsonError(line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}...") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Refuses an object that has a name twice: readers differ in which value counts."""
    if len({name for name, _ in pairs}) < len(pairs):
        name, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} stands twice in one object")
