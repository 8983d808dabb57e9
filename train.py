"""Trains and evaluates DATAR on labelled sounds. The same command continues a run that was stopped or killed.

Exit status: 0 done; 2 something to mend, said in a line; 75 ended by SIGTERM, its state saved: start it again;
130 ended by Ctrl-C, its state saved.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from datar_jax.checkpoints.pretrained_config import base_sections
from datar_jax.config import Config, ConfigError
from datar_jax.config import loader as settings
from datar_jax.training.distributed import Cluster, start

USAGE = "python train.py --config=configs/NAME.py --workdir=DIR [--config.path.to.field=value ...]"


MEND, RESTART, INTERRUPTED = 2, os.EX_TEMPFAIL, 130


def main(arguments: list[str]) -> int:
    """Runs the main job; returns the exit status, as above."""
    try:
        config, workdir, cluster, profile = parse(arguments)
    except ConfigError as error:
        return _fail(error)

    with _terminable(), _without_stderr():
        # A typing mistake is answered above, before these take their seconds to load.
        from datar_jax.checkpoints.manager import CheckpointError
        from datar_jax.compilation_cache import keep_compiled
        from datar_jax.data.sources.base import DataError
        from datar_jax.training.eval_loop import TrainingError
        from datar_jax.training.train_loop import Stopped
        from datar_jax.training.trainer import train_and_evaluate

        keep_compiled(Path(config.data.cache or workdir / "cache") / "xla")
        try:
            start(cluster)
            train_and_evaluate(config, workdir, profile)
        except (ConfigError, DataError, CheckpointError, TrainingError) as error:
            return _fail(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return _fail(f"{error.filename or workdir}: {error.strerror}; make room, and the same command continues")
        except Stopped as stop:
            print(f"train.py: {stop}", file=sys.stderr)
            return RESTART if stop.signal == signal.SIGTERM else INTERRUPTED
        except KeyboardInterrupt:
            print("train.py: stopped at once; the same command continues at the newest checkpoint", file=sys.stderr)
            return INTERRUPTED
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the process with its own status. Where there is a state to save, the loop sees to it first."""

    def end(_number: int, _frame: object) -> None:
        os.write(2, b"train.py: terminated; the same command continues at the newest checkpoint\n")
        os._exit(RESTART)  # an exception would be lost in a destructor or a callback; nothing here minds a sudden end

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Orbax and tensorstore tell at length, from many threads, what they also raise and we say in a line."""
    import logging

    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def unraisable(told: sys.UnraisableHookArgs) -> None:
        if not any(part in str(told.exc_value) for part in ("Event loop is closed", "TensorStore")):
            show(told)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = show


def parse(arguments: list[str]) -> tuple[Config, Path, Cluster, bool]:
    """Reads the command line.

    Raises:
      ConfigError: an option that is not known, or a configuration that cannot be.
    """
    parser = argparse.ArgumentParser(usage=USAGE, description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a Python file with get_config(); see configs/")
    parser.add_argument("--workdir", required=True, type=Path, help="where everything of this run is kept")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where no cluster tells")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which this one is, from 0")
    parser.add_argument("--profile", action="store_true", help="leave a trace of a few steps in the work directory")
    known, rest = parser.parse_known_args(arguments)
    cluster = Cluster(known.coordinator, known.processes, known.process)
    config = settings.load_config(
        known.config, settings.read_overrides(rest, USAGE), partial(base_sections, workdir=known.workdir)
    )
    return config, known.workdir, cluster, known.profile


def _fail(error: Exception | str) -> int:
    print(f"train.py: error: {error}", file=sys.stderr)
    return MEND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
