"""Trains and evaluates a model on labelled data."""
