"""Entry point of `python -m datar_jax`."""

import sys

from datar_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
