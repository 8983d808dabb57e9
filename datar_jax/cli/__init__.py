"""What `python -m datar_jax NAME` does, one file a command: options in, a file or a page out; the work is elsewhere."""
