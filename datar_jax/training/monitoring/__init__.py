"""Metrics, throughput, stalls, profiles and non-finite values of a run."""
