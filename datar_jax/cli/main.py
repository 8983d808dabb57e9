"""Command-line interface: `datar-jax COMMAND`, or `python -m datar_jax COMMAND`."""

from __future__ import annotations

import importlib
import os
import sys

from datar_jax.config import ConfigError

# In the order in which a new user meets them: module of the command, one line for the help page.
COMMANDS = {
    "train": ("datar_jax.cli.train", "trains and evaluates a model, or continues a run"),
    "predict": ("datar_jax.cli.predict", "classes and events of sound files"),
    "visualize": ("datar_jax.cli.visualize", "a picture of a sound: spectrogram, classes, where the model attends"),
    "embed": ("datar_jax.cli.embed", "embeddings of clips and of their frames"),
    "evaluate": ("datar_jax.cli.evaluate", "metrics of a model on labelled sounds: overall, per class, pictures"),
    "export": ("datar_jax.cli.export", "weights or a compiled program for others, with a model card"),
    "prepare": ("datar_jax.cli.prepare", "ArrayRecord shards of a published data set, from its lists and sounds"),
    "estimate": ("datar_jax.cli.estimate", "memory, communication and time of a train step on a TPU slice"),
}
RENAMED = {"look": "visualize", "plan": "estimate"}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: the command and its options; by default those of the process.

    Returns:
      The exit status. 0: done. 1: done, but some inputs could not be used. 2: bad input, one line on standard error.
      130: Ctrl-C. `train` has two more, see `datar-jax train --help`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(help_page())
        return 0 if arguments else 2
    if name == "--version":
        from datar_jax.version import __version__

        print(f"datar-jax {__version__}")
        return 0
    try:
        if name not in COMMANDS:
            hint = f"it is called {RENAMED[name]} now" if name in RENAMED else f"choose one of {', '.join(COMMANDS)}"
            raise ConfigError(f"{name}: no such command; {hint} (datar-jax --help)")
        status = int(importlib.import_module(COMMANDS[name][0]).main(arguments[1:]))
        print(end="", flush=True)  # so that a full disk is reported here and not by the interpreter at exit
        return status
    except BrokenPipeError:  # the reader of a pipe closed it, as `head` does
        discard_output()
        return 0
    except OSError as error:
        discard_output()
        print(f"datar-jax: error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"datar-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("datar-jax: interrupted", file=sys.stderr)
        return 130


def discard_output() -> None:
    """Points standard output at nothing, so that the interpreter does not retry a failed write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_page() -> str:
    """The page of all commands."""
    lines = [
        "DATAR-JAX: audio event recognition with deformable attention.",
        "",
        "usage: datar-jax COMMAND [options]      (also: python -m datar_jax COMMAND)",
        "",
        *(f"  {name:<11}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "`datar-jax COMMAND --help` lists the options of a command and gives an example.",
    ]
    return "\n".join(lines)
