"""Roofline model of a training step."""

from __future__ import annotations

import msgspec

from datar_jax.training.monitoring.accelerators import Chip


class Roofline(msgspec.Struct, frozen=True):
    """Seconds of one step, term by term."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Arithmetic and memory together, links after them."""
        return max(self.compute, self.memory) + self.links

    @property
    def bound(self) -> str:
        """The term that takes longest."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(chip: Chip, link_rate: float, operations: float, memory_bytes: float, sent_bytes: float) -> Roofline:
    """Work of one chip over its rates; a slice of one chip has no links and sends nothing."""
    links = sent_bytes / link_rate if sent_bytes else 0.0
    return Roofline(operations / chip.flops, memory_bytes / chip.memory_rate, links)


def largest_batch(usable: float, first: tuple[int, float], second: tuple[int, float]) -> int:
    """Where the line through two (clips on a chip, bytes) reaches `usable` bytes, rounded down; at least 0."""
    (few, less), (many, more) = sorted((first, second))
    slope = (more - less) / (many - few)
    return max(0, int(few + (usable - less) / slope)) if slope > 0 else many
