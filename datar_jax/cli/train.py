"""`train`: trains and evaluates a model on labelled sounds; continues a run that was stopped or killed."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from datar_jax.cli.options import escape_output, make_parser, path, quiet_libraries, report, report_error
from datar_jax.config import Config, ConfigError
from datar_jax.config import loader as settings
from datar_jax.data.root import data_root
from datar_jax.training.distributed import Cluster, start, surroundings
from datar_jax.training.termination import INTERRUPTED, RESTART, terminable

USAGE = "datar-jax train --config=configs/NAME.py --workdir=DIR [--config.path.to.field=value ...]"
SUMMARY = """Trains and evaluates DATAR on labelled sounds. The same command continues a run that was stopped or
killed, and shows the result of a finished one. Every setting can be given as --config.path.to.field=value.
--config=FILE.py runs that file, so give only a file that you trust; the config.json of a run, or TOML with the same
fields, runs nothing.

Exit status: 0 done; 2 bad input, explained in one line; 75 ended by SIGTERM with its state saved, start it
again; 130 ended by Ctrl-C with its state saved."""
EXAMPLE = "datar-jax train --config=configs/folder.py --workdir=runs/mine --config.data.root=SOUNDS"

BAD_INPUT = 2


def main(arguments: list[str], program: str = "datar-jax") -> int:
    """Trains and evaluates.

    Args:
      arguments: the options.
      program: stands before messages on standard error.

    Returns:
      The exit status, as in `SUMMARY`.
    """
    escape_output()
    try:
        config, workdir, cluster, profile = parse(arguments)
        data_root(config.data)
    except ConfigError as error:
        return _fail(program, error)

    if cluster.coordinator or surroundings():  # else XLA prints the loss of a process in its own way
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "4")
    with terminable(program), quiet_libraries():
        status, peers = 1, None
        try:
            peers = start(cluster, program, partial(report, program=program))
            status = _train(config, workdir, profile, program)
        except ConfigError as error:
            status = _fail(program, error)
        except Exception:
            if peers:
                peers.wait_for_loss()
            raise
        finally:
            if peers:
                peers.close(status)
    return status


def _train(config: Config, workdir: Path, profile: bool, program: str) -> int:
    """Trains and evaluates; returns the exit status."""
    # Imported here: a mistake in the options is reported before jax takes its seconds to load.
    from datar_jax.backend import require_backend
    from datar_jax.checkpoints.manager import CheckpointError
    from datar_jax.data.sources.base import DataError
    from datar_jax.training.eval_loop import TrainingError
    from datar_jax.training.train_loop import Stopped
    from datar_jax.training.trainer import train_and_evaluate

    try:
        require_backend()
        train_and_evaluate(config, workdir, profile)
    except (ConfigError, DataError, CheckpointError, TrainingError) as error:
        return _fail(program, error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{error.filename or workdir}: {error.strerror}"
        return _fail(program, OSError(f"{reason}; free some space, then the same command continues"))
    except Stopped as stop:
        report(str(stop), program)
        return RESTART if stop.signal == signal.SIGTERM else INTERRUPTED
    return 0


def parse(arguments: list[str]) -> tuple[Config, Path, Cluster, bool]:
    """Reads the options: configuration, work directory, cluster, and whether to record a profile.

    Raises:
      ConfigError: an unknown option, or a configuration that is invalid.
    """
    parser = make_parser("train", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument(
        "--config", required=True, help="a Python file, which is run (see configs/), or a run's config.json"
    )
    parser.add_argument("--workdir", required=True, type=path, help="folder of the run: checkpoints, metrics, pictures")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where no cluster manager provides it")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="index of this process, from 0")
    parser.add_argument("--profile", action="store_true", help="record a profiler trace of a few steps")
    known, rest = parser.parse_known_args(arguments)
    cluster = Cluster(known.coordinator, known.processes, known.process)
    overrides = settings.read_overrides(rest, USAGE)

    def base(source: str) -> dict[str, Any]:
        from datar_jax.checkpoints.pretrained_config import pretrained_sections

        return pretrained_sections(source, known.workdir)

    return settings.load_config(known.config, overrides, base), known.workdir, cluster, known.profile


def _fail(program: str, error: Exception) -> int:
    report_error(error, program)
    return BAD_INPUT
