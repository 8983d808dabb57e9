"""TPU slices: available shapes and links between chips. Imports no jax.

Rates: Google Cloud TPU documentation, cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (system architecture). The link
rates are what one chip can send: the tables once gave it in Gbps (v4 2400, v5e 1600, v5p 4800, v6e 3200) and now give
"bidirectional bandwidth per chip", twice as much. For v6e an older table said 3584 Gbps; 3200 agrees with the 102.4
TB/s of a pod of 256. Usable memory is what the compiler allows a program on one chip.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from datar_jax.config import ConfigError
from datar_jax.config.base import did_you_mean
from datar_jax.training.monitoring.accelerators import CHIPS, Chip

LIBTPU = "libtpu==0.0.42.1"  # as in requirements-bench.txt
# libtpu compiles without a TPU and says nothing; read when jax and libtpu are loaded.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """A slice of one generation."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is typed, such as v5e:16x16."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def link_rate(self) -> float:
        """Bytes a second that the chip with the fewest neighbours can send.

        Along each axis a chip has two links. A corner uses both where the axis is closed to a ring: axes of 16 on the
        flat generations, every axis of a slice of whole 4x4x4 cubes on the others.
        """
        if len(self.shape) == 2:
            closed = [size == 16 for size in self.shape]
        else:
            closed = [all(size % 4 == 0 for size in self.shape)] * len(self.shape)
        used = sum(0 if size == 1 else 1 + ring for size, ring in zip(self.shape, closed))
        return self.chip.link_rate * used / (2 * len(self.shape))


def slice_lines() -> list[str]:
    """The slices of each generation, a line each."""
    return [f"{name}: {', '.join(each.slices)}" for name, each in CHIPS.items()]


def topology(text: str, chip: str = "") -> Topology:
    """The slice that a text such as `v5e:16x16` names; `16x16` alone is one of `chip`.

    Raises:
      ConfigError: no such generation, or no such slice of it; the message lists those there are.
    """
    name, given, shape = text.partition(":")
    if not given:
        name, shape = chip, text
    if name not in CHIPS:
        raise ConfigError(f"--topology={text}: give GENERATION:SHAPE, one of {'; '.join(slice_lines())}")
    slices = CHIPS[name].slices
    if shape not in slices:
        near = did_you_mean(text, [f"{name}:{each}" for each in slices])
        raise ConfigError(f"--topology={text}: {name} has no such slice; {near}there are {', '.join(slices)}")
    return Topology(CHIPS[name], tuple(map(int, shape.split("x"))))
