"""What is no training, a command each: `python -m datar_jax --help` has the page of all."""

from __future__ import annotations

import os
import sys

from datar_jax.cli import embed, estimate, evaluate, export, predict, prepare, visualize
from datar_jax.config import ConfigError

# In the order in which a person meets them, and what the page of all commands says of each.
COMMANDS = {
    "predict": (predict.main, "what a model hears in files and folders: classes, and events on a timeline"),
    "look": (visualize.main, "one picture of a sound: what the model heard in it, and where it looked"),
    "embed": (embed.main, "vectors of clips and of their parts, for what comes after"),
    "evaluate": (evaluate.main, "scores a model on labelled sounds: numbers, a table by class, pictures"),
    "export": (export.main, "a model as files for others: its weights, or the whole program, and a model card"),
    "prepare": (prepare.main, "makes shards of a published data set from its lists and sounds"),
    "plan": (estimate.main, "compiles a training step for a TPU slice that is not there, and says what it would take"),
}


def main(arguments: list[str]) -> int:
    """Runs a command.

    Returns:
      The exit status: 0 done; 1 done, but not for all that was given; 2 something to mend, said in a line; 130 Ctrl-C.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(page())
        return 0 if arguments else 2
    try:
        if name not in COMMANDS:
            raise ConfigError(f"{name}: not a command; there are {', '.join(COMMANDS)} (python -m datar_jax --help)")
        run, _ = COMMANDS[name]
        status = run(arguments[1:])
        print(end="", flush=True)  # or a full disk would be told by the interpreter as it ends
        return status
    except BrokenPipeError:  # as `head` leaves it
        _forget_output()
        return 0
    except OSError as error:
        _forget_output()
        print(f"datar_jax: error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"datar_jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("datar_jax: stopped", file=sys.stderr)
        return 130


def _forget_output() -> None:
    """What could not be written is not tried again as the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def page() -> str:
    """All commands, for a person."""
    lines = [
        "DATAR-JAX: audio event recognition with deformable attention.",
        "",
        "  python train.py --config=configs/NAME.py --workdir=DIR   trains, evaluates, continues (README.md)",
        "",
        "And with what was trained, `python -m datar_jax COMMAND`:",
        "",
        *(f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "`python -m datar_jax COMMAND --help` has the options of a command and an example.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
