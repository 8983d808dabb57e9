"""Trains and evaluates DATAR on labelled sounds."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from datar_jax import settings
from datar_jax.config import Config, ConfigError
from datar_jax.distributed import Cluster, start

USAGE = "python train.py --config=configs/NAME.py --workdir=DIR [--config.path.to.field=value ...]"


def main(arguments: list[str]) -> int:
    """Runs the main job; the exit status is 0, 2 for what the caller has to mend, 130 when stopped."""
    try:
        config, workdir, cluster = parse(arguments)
    except ConfigError as error:
        return _fail(error)

    # A typing mistake is answered above, before these take their seconds to load.
    from datar_jax.cache import DataError
    from datar_jax.checkpoint import CheckpointError
    from datar_jax.loop import Stopped, TrainingError
    from datar_jax.run import run

    _keep_compiled(Path(config.data.cache or workdir / "cache") / "xla")
    try:
        start(cluster)
        run(config, workdir)
    except (ConfigError, DataError, CheckpointError, TrainingError) as error:
        return _fail(error)
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"train.py: {stop or 'stopped before training; the same command starts again'}", file=sys.stderr)
        return 130
    return 0


def _keep_compiled(folder: Path) -> None:
    """Lets the next call start without compiling anew; JAX_COMPILATION_CACHE_DIR names another place."""
    import logging

    import jax

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax talks to its own developers there
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def parse(arguments: list[str]) -> tuple[Config, Path, Cluster]:
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
    known, rest = parser.parse_known_args(arguments)
    overrides = {}
    queue = list(rest)
    while queue:
        option = queue.pop(0)
        name, given, value = option.partition("=")
        if not name.startswith("--config."):
            raise ConfigError(f"{option}: not an option; usage: {USAGE}")
        if not given:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"{option}: has no value; write {option}=VALUE")
            value = queue.pop(0)
        overrides[name.removeprefix("--config.")] = value
    cluster = Cluster(known.coordinator, known.processes, known.process)
    return settings.load(known.config, overrides), known.workdir, cluster


def _fail(error: Exception) -> int:
    print(f"train.py: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
