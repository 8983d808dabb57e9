"""DATAR-JAX: audio event recognition with deformable attention, in JAX."""

__version__ = "0.1.0"
