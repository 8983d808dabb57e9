"""Eight pretended devices for every test, and repeatable property tests.

The environment has to be set before jax is imported: pytest reads this file before any test module.
"""

import os
import sys

assert "jax" not in sys.modules, "a pytest plugin imported jax before tests/conftest.py could set its devices"

os.environ["NPROC"] = "16"  # threads of the CPU client; fewer than twice the devices can deadlock a collective
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def quick_compiles() -> Iterator[None]:
    """For modules whose time goes into the compiler, whose optimisations are not what they test."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
