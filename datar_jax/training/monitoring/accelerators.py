"""Published rates of accelerators."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One generation."""

    name: str
    flops: float  # bfloat16 operations a second, dense
    memory_rate: float  # bytes a second between chip and HBM
    memory: float  # GiB of HBM that a program may use
    link_rate: float  # bytes a second that a chip can send over all its links together
    slices: tuple[str, ...]  # shapes that can be had as one slice
    config: str | None = None  # of its two cores, where they can be used as one device


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 1228e9, 30.75, 300e9, CUBES, "megacore"),
        Chip("v5e", 197e12, 819e9, 15.75, 200e9, FLAT),
        Chip("v5p", 459e12, 2765e9, 95.74, 600e9, (*CUBES, "16x16x24")),
        Chip("v6e", 918e12, 1640e9, 31.25, 400e9, FLAT),
    )
}


# Bfloat16 operations a second, dense, by what jax calls the device. GPUs: NVIDIA's data sheets (SXM).
PEAKS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of a device by jax's name for it; None if unknown."""
    return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), None)
