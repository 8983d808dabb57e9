"""`plan`: what a training step would take on a TPU slice that is not there, from its own compiler."""

from __future__ import annotations

import importlib.util
import os
import sys

import msgspec

from datar_jax.checkpoints.pretrained_config import base_sections
from datar_jax.cli.options import make_parser, seconds, whole
from datar_jax.config import ConfigError
from datar_jax.config import loader as settings
from datar_jax.training.estimate.topology import ENVIRONMENT, LIBTPU, topology

USAGE = (
    "python -m datar_jax plan --config=configs/NAME.py [--config.path.to.field=value ...] --topology=v5e:16x16 "
    "[--batch=16] [--seconds=10] [--classes=527] [--largest] [--scaling=1x1,2x2,4x4,8x8,16x16] [--json]"
)
SUMMARY = "Compiles the real train step with libtpu, which needs no TPU: memory, collectives, roofline (docs/plan.md)."
EXAMPLE = "python -m datar_jax plan --config=configs/folder.py --topology=v5e:2x2"


def main(arguments: list[str]) -> int:
    """Compiles and prints one page, or with `--scaling` one page and a table.

    Raises:
      ConfigError: an option, a setting or a slice that cannot be, or libtpu is not there.
    """
    parser = make_parser("plan", USAGE, SUMMARY, EXAMPLE)
    parser.add_argument("--config", required=True, help="a Python file with get_config(); see configs/")
    parser.add_argument("--topology", required=True, help="generation and shape of a slice, such as v5e:16x16")
    parser.add_argument("--batch", type=whole, default=16, help="clips on each chip (16)")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="of a clip (10)")
    parser.add_argument("--classes", type=whole, default=527, help="width of the head (527, AudioSet's)")
    parser.add_argument("--largest", action="store_true", help="a second compile for the largest batch that fits")
    parser.add_argument("--scaling", default="", help="slices of a weak-scaling table; one more compile for each")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a page")
    known, rest = parser.parse_known_args(arguments)
    config = settings.load_config(known.config, settings.read_overrides(rest, USAGE), base_sections)
    place = topology(known.topology)
    others = [topology(each, place.chip.name) for each in known.scaling.split(",") if each]
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"libtpu is not installed, and it is what compiles for a TPU: pip install {LIBTPU}")

    os.environ |= ENVIRONMENT
    from datar_jax.training.estimate.estimate import make_plan
    from datar_jax.training.estimate.report import page, scaling

    plans = {}
    for each in dict.fromkeys([place, *others]):
        print(f"compiling for {each.name}: minutes", file=sys.stderr, flush=True)
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
