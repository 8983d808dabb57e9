"""`evaluate`: metrics of a trained model on labelled sounds."""

from __future__ import annotations

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.cli.options import make_parser, path, print_notes
from datar_jax.config import ConfigError
from datar_jax.config import loader as settings
from datar_jax.data.root import data_root
from datar_jax.wording import count

USAGE = (
    "datar-jax evaluate MODEL --config=configs/NAME.py [--config.data.field=value ...] "
    "[--split=test|validation|train|all] [--out=evaluation]"
)
SUMMARY = """Scores a model on the data of a configuration. Front end and sizes are the model's; classes are matched by
name. Writes result.json and tables (classes.csv, hardest.csv, confusion.csv), then pictures, in --out. A picture
that cannot be drawn is one line. Of more than 60 classes, confusion.png shows the most confused."""
EXAMPLE = """datar-jax evaluate runs/quickstart --config=configs/quickstart.py \\
      --config.data.root=runs/quickstart-data"""


def main(arguments: list[str]) -> int:
    """Evaluates a model.

    Raises:
      ConfigError: an invalid option, or a model or data that cannot be used.
    """
    parser = make_parser("evaluate", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="a run's work directory, one of its checkpoints, or an export")
    parser.add_argument(
        "--config", required=True, help="a Python file, which is run, or a run's config.json; its data are scored"
    )
    parser.add_argument(
        "--split", choices=("test", "validation", "train", "all"), default="test", help="clips to score"
    )
    parser.add_argument("--out", type=path, default="evaluation", help="folder for the results (evaluation)")
    given, rest = parser.parse_known_args(arguments)
    overrides = settings.read_overrides(rest, USAGE)
    if ours := next((field for field in overrides if field.partition(".")[0] in ("audio", "model", "init")), None):
        raise ConfigError(f"--config.{ours}: front end and sizes are the model's; leave it out")
    config = settings.load_config(given.config, overrides)
    data_root(config.data)

    from datar_jax.backend import require_backend
    from datar_jax.checkpoints.pretrained import load_pretrained
    from datar_jax.compilation_cache import keep_compiled
    from datar_jax.data.sources.base import DataError
    from datar_jax.metrics import format_metric
    from datar_jax.training.eval_loop import TrainingError
    from datar_jax.training.evaluate import evaluate
    from datar_jax.training.monitoring.console import ProgressConsole

    keep_compiled()
    require_backend()
    console = ProgressConsole()
    try:
        with console.progress:
            console.progress.stage("reading the model")
            saved = load_pretrained(given.model)
            with console.progress.aside():
                print_notes(saved.notes)
            result = evaluate(saved, config, given.split, given.out, console)
    except (ModelError, DataError, TrainingError) as error:
        raise ConfigError(*error.args) from None
    except OSError as error:
        raise ConfigError(f"{error.filename or given.out}: {error.strerror}") from None
    for field, value in result.items():
        if metric := format_metric(field, value):
            console.print(" ".join(metric))
    console.say(f"{count(result['clips'], 'clip')}; in {given.out}: result.json, tables (CSV), pictures")
    return 0
