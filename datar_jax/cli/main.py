"""Command-line interface: `datar-jax COMMAND`, or `python -m datar_jax COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import discard_output, escape_output, quiet_libraries, report, report_error
from datar_jax.config import ConfigError
from datar_jax.config.base import did_you_mean
from datar_jax.version import __version__

# In the order in which a new user meets them, with a line for the help page.
COMMANDS = {
    "train": "trains and evaluates a model, or continues a run",
    "predict": "classes and events of sound files",
    "visualize": "a picture of a sound: spectrogram, classes, where the model attends",
    "embed": "embeddings of clips and of their frames",
    "evaluate": "metrics of a model on labelled sounds: overall, per class, pictures",
    "export": "weights or a compiled program for others, with a model card",
    "prepare": "ArrayRecord shards of a published data set, from its lists and sounds",
    "estimate": "memory, communication and time of a train step on a TPU slice",
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
    escape_output()
    name = arguments[0] if arguments else "--help"
    try:
        if name in ("-h", "--help"):
            print(help_page(), flush=True)
            return 0 if arguments else 2
        if name == "--version":
            print(f"datar-jax {__version__}", flush=True)
            return 0
        if name not in COMMANDS:
            one = f"choose one of {', '.join(COMMANDS)}"
            hint = f"it is called {RENAMED[name]} now" if name in RENAMED else did_you_mean(name, COMMANDS) + one
            raise ConfigError(f"{name}: no such command; {hint} (datar-jax --help)")
        with quiet_libraries():
            status = command(name)(arguments[1:])
        print(end="", flush=True)  # so that a full disk is reported here and not by the interpreter at exit
        return status
    except BrokenPipeError:  # the reader of a pipe closed it, as `head` does
        discard_output()
        return 0
    except OSError as error:
        discard_output()
        report(f"error: {error.filename or 'standard output'}: {error.strerror}")
        return 2
    except (ConfigError, ModelError) as error:
        report_error(error)
        return 2
    except KeyboardInterrupt:
        report("interrupted")
        return 130


def command(name: str) -> Callable[[list[str]], int]:
    """The function that runs a command; only its own module is imported, so that `--help` is quick."""
    if name == "train":
        from datar_jax.cli import train

        return train.main
    if name == "predict":
        from datar_jax.cli import predict

        return predict.main
    if name == "visualize":
        from datar_jax.cli import visualize

        return visualize.main
    if name == "embed":
        from datar_jax.cli import embed

        return embed.main
    if name == "evaluate":
        from datar_jax.cli import evaluate

        return evaluate.main
    if name == "export":
        from datar_jax.cli import export

        return export.main
    if name == "prepare":
        from datar_jax.cli import prepare

        return prepare.main
    from datar_jax.cli import estimate

    return estimate.main


def help_page() -> str:
    """The page of all commands."""
    lines = [
        "DATAR-JAX: audio event recognition with deformable attention.",
        "",
        "usage: datar-jax COMMAND [options]      (also: python -m datar_jax COMMAND)",
        "",
        *(f"  {name:<11}{text}" for name, text in COMMANDS.items()),
        "",
        "`datar-jax COMMAND --help` lists the options of a command and gives an example.",
    ]
    return "\n".join(lines)
