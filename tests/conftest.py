"""Eight simulated devices for every test, one cache of compiled programs per session, repeatable property tests.

The environment has to be set before jax is imported: pytest reads this file before any test module.
"""

import os
import shutil
import sys
import tempfile

assert "jax" not in sys.modules, "a pytest plugin imported jax before tests/conftest.py could set its devices"

os.environ["NPROC"] = "16"  # threads of the CPU client; fewer than twice the devices can deadlock a collective
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same programs, in several processes.
OWN_CACHE = "" if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="datar-jax-programs-")
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes meet on purpose, or not at all

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("repeatable")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Deletes the session's cache; workers got its name from this process."""
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_lines_of_progress() -> Iterator[None]:
    """A busy machine must not add lines of progress to what a test reads of standard error."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("datar_jax.progress.FIRST_LINE", float("inf"))
        yield


@pytest.fixture(scope="module")
def quick_compiles() -> Iterator[None]:
    """Turns most compiler optimizations off, for modules that do not test what they do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
