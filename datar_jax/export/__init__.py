"""Writes a trained model as weights or as a program for other software."""
