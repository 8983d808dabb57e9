"""Flax modules, from layers and mixers to DATAR."""
