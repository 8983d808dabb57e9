"""What `python -m datar_jax NAME` does, one file a command: options in, a file or a page out; the work is elsewhere."""

# In the order in which a person meets them: name and what the page of all commands says of it.
COMMANDS = {
    "prepare": "makes shards of a published data set from its lists and sounds",
    "plan": "compiles a training step for a TPU slice that is not there, and says what it would take",
}
