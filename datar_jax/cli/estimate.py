"""`estimate`: memory, communication and time of a train step on a TPU slice, from the TPU compiler alone."""

from __future__ import annotations

import importlib.util
import os

import msgspec

from datar_jax.cli.options import duration, make_parser, positive_int, report
from datar_jax.config import ConfigError
from datar_jax.config import loader as settings
from datar_jax.training.estimate.topology import ENVIRONMENT, LIBTPU, slice_lines, topology

USAGE = (
    "datar-jax estimate --config=configs/NAME.py [--config.path.to.field=value ...] --topology=v5e:16x16 "
    "[--batch=16] [--seconds=10] [--classes=527] [--largest] [--scaling=1x1,2x2,4x4,8x8,16x16] [--json]"
)
SUMMARY = "Compiles the train step with libtpu, which needs no TPU: memory, collectives and a roofline."
EXAMPLE = "datar-jax estimate --config=configs/folder.py --topology=v5e:2x2"


def main(arguments: list[str]) -> int:
    """Compiles and prints a page of results, with `--scaling` a table of slices as well.

    Raises:
      ConfigError: an invalid option, setting or slice, or libtpu is not installed.
    """
    slices = "\n  ".join(slice_lines())
    parser = make_parser("estimate", USAGE, f"{SUMMARY}\n\nslices:\n  {slices}", EXAMPLE)
    parser.add_argument(
        "--config", required=True, help="a Python file, which is run (see configs/), or a run's config.json"
    )
    parser.add_argument("--topology", required=True, help="generation and shape of a slice, such as v5e:16x16")
    parser.add_argument("--batch", type=positive_int, default=16, help="clips per chip (16)")
    parser.add_argument("--seconds", type=duration, default=10.0, help="length of a clip (10)")
    parser.add_argument("--classes", type=positive_int, default=527, help="width of the head (527, AudioSet's)")
    parser.add_argument("--largest", action="store_true", help="a second compile for the largest batch that fits")
    parser.add_argument("--scaling", default="", help="slices of a weak-scaling table; one more compile for each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    known, rest = parser.parse_known_args(arguments)
    from datar_jax.checkpoints.pretrained_config import pretrained_sections

    config = settings.load_config(known.config, settings.read_overrides(rest, USAGE), pretrained_sections)
    place = topology(known.topology)
    others = [topology(each, place.chip.name) for each in known.scaling.split(",") if each]
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"libtpu, the TPU compiler, is not installed: pip install {LIBTPU}")

    os.environ |= ENVIRONMENT
    from datar_jax.training.estimate.estimate import make_plan
    from datar_jax.training.estimate.report import page, scaling

    plans = {}
    for each in dict.fromkeys([place, *others]):
        report(f"compiling for {each.name}: minutes")
        largest = known.largest and each == place
        plans[each] = make_plan(config, each, known.batch, known.seconds, known.classes, largest)
    table = [plans[each] for each in others]
    if known.json:
        tree = {**msgspec.to_builtins(plans[place]), "scaling": [msgspec.to_builtins(row) for row in table]}
        print(msgspec.json.encode(tree).decode())
    else:
        print(page(plans[place]))
        if table:
            print(f"\n{scaling(table)}")
    return 0 if plans[place].fits else 1
