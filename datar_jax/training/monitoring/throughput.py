"""Throughput of a training loop."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jax.sharding import Mesh

from datar_jax.models.flops import macs_per_clip
from datar_jax.models.spec import ModelSpec
from datar_jax.training.monitoring.accelerators import peak_flops


@dataclass
class Throughput:
    """Throughput since the end of the first step, which includes compilation, and data wait since the last row."""

    spec: ModelSpec
    mesh: Mesh
    count: int = 0
    waited: float = 0.0
    started: float = 0.0
    logged: float = 0.0

    def clips_per_second(self) -> float:
        if self.count == 1:
            self.started = time.monotonic()
        seconds = time.monotonic() - self.started
        return (self.count - 1) * self.spec.config.train.batch_size / seconds if self.count > 1 else 0.0

    def data_wait(self) -> float:
        """Share of the time since the last row that went by waiting for a batch."""
        now = time.monotonic()
        share = self.waited / max(now - self.logged, 1e-9) if self.logged else 0.0
        self.waited, self.logged = 0.0, now
        return min(share, 1.0)

    def row(self) -> dict[str, float]:
        """Speed fields of a metrics row; those unknown on this device are omitted.

        `model_flop_utilisation` counts six operations per multiply-accumulate of the forward pass, none recomputed.
        """
        spec, rate = self.spec, self.clips_per_second()
        row = {
            "clips_per_second": rate,
            "steps_per_second": rate / spec.config.train.batch_size,
            "data_wait": self.data_wait(),
        }
        statistics = [device.memory_stats() or {} for device in self.mesh.local_devices]
        if used := [each["peak_bytes_in_use"] for each in statistics if "peak_bytes_in_use" in each]:
            row["device_memory_gib"] = max(used) / 2**30
        if peak := peak_flops(self.mesh.local_devices[0].device_kind):
            macs = macs_per_clip(spec.config.model, spec.classes, spec.config.audio.n_mels, spec.frames)
            row["model_flop_utilisation"] = 6 * macs * rate / (peak * self.mesh.size)
        return row
