"""Applies a trained model to sounds: files, events, embeddings, attention maps."""
