"""What all settings share: frozen structs that check themselves when they are built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

MAX_TEXT = 4096  # characters of a text: a path, a regular expression
MAX_ENTRIES = 8  # of a tuple: stages of a model

# The type of a field that may differ between two calls on one work directory: where things lie, how they are read and
# shown.
_Type = TypeVar("_Type")
Resumable = Annotated[_Type, "resumable"]


class ConfigError(ValueError):
    """A setting that cannot be used; its text is one line for the person who typed it, or a line an argument."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def require(holds: bool, field: str, value: object, remedy: str) -> None:
    """Raises ConfigError, one line of field, value and remedy, unless the condition holds."""
    if not holds:
        shown = repr(value)
        raise ConfigError(f"{field}={shown if len(shown) <= 200 else shown[:200] + '...'}: {remedy}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean X? ` for the nearest of the known names; empty if none is near."""
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {names[near[0]]}? " if near else ""


class StrictStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings: immutable, hashable, no unknown names, every number finite and every size bounded.

    Configurations also come with models of other people, and whatever they ask for would be built.
    """

    largest: ClassVar[dict[str, float]] = {}  # of each number of its entries, without sign; of a text its length

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value, field = getattr(self, name), f"{self.section()}.{name}"
            for each in _entries(value):
                if isinstance(each, float):
                    require(math.isfinite(each), field, value, "give a finite number")
                if isinstance(each, str):
                    length = self.largest.get(name, MAX_TEXT)
                    require(len(each) <= length, field, value, f"give at most {length:,} characters")
                elif isinstance(each, int | float) and name in self.largest:
                    most = self.largest[name]
                    require(abs(each) <= most, field, value, f"give at most {most:,}")
                elif isinstance(each, tuple):
                    require(len(each) <= MAX_ENTRIES, field, value, f"give at most {MAX_ENTRIES} entries")
        self.check()

    def binding(self, prefix: str = "") -> dict[str, Any]:
        """Plain values of all fields but `Resumable` ones, by dotted name: what a work directory belongs to."""
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            value, name = getattr(self, field.name), f"{prefix}{field.encode_name}"
            if isinstance(value, StrictStruct):
                values |= value.binding(f"{name}.")
            elif "resumable" not in getattr(field.type, "__metadata__", ()):
                values[name] = msgspec.to_builtins(value)
        return values

    @classmethod
    def section(cls) -> str:
        """Dotted name of the field of `Config` that holds these settings."""
        return cls.__name__.removesuffix("Config").lower()

    def check(self) -> None:
        """Raises ConfigError if the fields contradict each other."""


def _entries(value: Any) -> Iterator[Any]:
    """A value, and the entries of a tuple after it."""
    yield value
    for each in value if isinstance(value, tuple) else ():
        yield from _entries(each)
