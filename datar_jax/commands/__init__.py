"""What `python -m datar_jax NAME` does, one file a command: options in, a file or a page out; the work is elsewhere."""

# In the order in which a person meets them: name and what the page of all commands says of it.
COMMANDS = {
    "predict": "what a model hears in files and folders: classes, and events on a timeline",
    "look": "one picture of a sound: what the model heard in it, and where it looked",
    "embed": "vectors of clips and of their parts, for what comes after",
    "evaluate": "scores a model on labelled sounds: numbers, a table by class, pictures",
    "export": "a model as files for others: its weights, or the whole program, and a model card",
    "prepare": "makes shards of a published data set from its lists and sounds",
    "plan": "compiles a training step for a TPU slice that is not there, and says what it would take",
}
