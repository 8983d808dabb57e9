"""`embed`: vectors of sounds, in files."""

from __future__ import annotations

import importlib.util
import sys

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import folder, make_parser, say_notes, whole
from datar_jax.config import ConfigError

USAGE = "python -m datar_jax embed MODEL FILE_OR_FOLDER... --out=DIR [--format=npy|parquet] [--batch=32]"
SUMMARY = """Writes a vector for every sound (what the model's head reads, averaged over views) and one for every
column of the model's last map, with its times:
  npy      clips.npy and columns.npy (float32, a row each), and clips.csv and columns.csv that say of what
  parquet  clips.parquet and columns.parquet (pip install "datar-jax[parquet]")
What cannot be read is said in a line, the rest goes on, and the exit status is then 1."""
EXAMPLE = "python -m datar_jax embed runs/quickstart runs/quickstart-data/alarm --out=vectors"


def main(arguments: list[str]) -> int:
    """Embeds.

    Raises:
      ConfigError: an option or a model that cannot be used.
    """
    parser = make_parser("embed", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument("paths", metavar="FILE_OR_FOLDER", nargs="+", help="sounds; folders at any depth")
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--format", choices=("npy", "parquet"), default="npy")
    parser.add_argument("--batch", type=whole, default=32, help="windows at a time (32)")
    given = parser.parse_args(arguments)
    if given.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError('--format=parquet: needs pyarrow; pip install "datar-jax[parquet]", or give npy')

    from datar_jax.compilation_cache import keep_compiled
    from datar_jax.filesystem import printable
    from datar_jax.inference.classifier import load
    from datar_jax.inference.embeddings import NumpyFiles, ParquetFiles, embed
    from datar_jax.inference.windows import FailedFile

    keep_compiled()
    done = failed = 0
    try:
        model = load(given.model)
        if model.params is None:
            raise ModelError(f"{model.source}: a program gives probabilities only; use an export of its weights")
        say_notes(model.notes)
        writer = (ParquetFiles if given.format == "parquet" else NumpyFiles)(given.out)
        try:
            for sound in embed(model, given.paths, given.batch):
                if isinstance(sound, FailedFile):
                    failed += 1
                    print(f"datar_jax: {printable(sound.path)}: {sound.reason}", file=sys.stderr)
                else:
                    done += 1
                    writer.write(sound)
        finally:
            writer.close()
    except ModelError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or given.out}: {error.strerror}") from None
    print(f"{given.out}: vectors of {done} sounds" + (f"; {failed} could not be used" if failed else ""))
    return 1 if failed else 0
