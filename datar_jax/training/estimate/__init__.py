"""Estimates a train step on a TPU slice from its compiled program."""
