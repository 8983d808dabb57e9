"""Trains and evaluates DATAR on labelled sounds; the same as `datar-jax train`."""

import sys

from datar_jax.cli.train import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="train.py"))
