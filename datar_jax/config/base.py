"""What all settings share: frozen structs that check themselves when they are built."""

from __future__ import annotations

import math

import msgspec


class ConfigError(ValueError):
    """A setting that cannot be used; its text is one line for the person who typed it."""


def require(holds: bool, field: str, value: object, remedy: str) -> None:
    """Raises ConfigError, one line of field, value and remedy, unless the condition holds."""
    if not holds:
        raise ConfigError(f"{field}={value!r}: {remedy}")


class StrictStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings: immutable, hashable, no unknown names, no number that is not finite."""

    def __post_init__(self) -> None:
        section = self.section()
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                finite = not isinstance(number, float) or math.isfinite(number)
                require(finite, f"{section}.{name}", value, "give a finite number")
        self.check()

    @classmethod
    def section(cls) -> str:
        """Dotted name of the field of `Config` that holds these settings."""
        return cls.__name__.removesuffix("Config").lower()

    def check(self) -> None:
        """Raises ConfigError if the fields contradict each other."""
