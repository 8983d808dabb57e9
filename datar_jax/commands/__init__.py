"""What `python -m datar_jax NAME` does, one file a command: options in, a file or a page out; the work is elsewhere."""

# In the order in which a person meets them: name and what the page of all commands says of it.
COMMANDS = {
    "predict": "what a model hears in files and folders: classes, and events on a timeline",
    "evaluate": "scores a model on any data: numbers, a table by class, the confusion picture",
    "look": "one picture of a sound: where the model looked, what it heard",
    "embed": "vectors of clips and of their frames, for what comes after",
    "export": "a model as files for others: weights, or the whole program, with a model card",
    "import": "official DAT and DAT++ weights as a model to fine-tune",
    "prepare": "makes shards of a published data set from its lists and sounds",
    "plan": "compiles a training step for a TPU slice that is not there, and says what it would take",
}
