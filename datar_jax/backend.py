"""The accelerator that jax computes on."""

from __future__ import annotations

import os

from datar_jax.config import ConfigError

PLUGINS = {"cuda": "jax[cuda13]", "gpu": "jax[cuda13]", "rocm": "jax-rocm7-plugin", "tpu": "jax[tpu]"}


def require_backend() -> None:
    """Starts jax's backend.

    Raises:
      ConfigError: it is not installed, or there is no such device.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts that one of the named backends has started
        asked = os.environ.get("JAX_PLATFORMS", "")
        name = next((name for name in asked.split(",") if name in PLUGINS), "")
        install = f"install it (pip install '{PLUGINS[name]}'), or " if name else ""
        reason = (str(error).splitlines() or ["its plugin is missing"])[0]
        raise ConfigError(
            f"JAX_PLATFORMS={asked!r}: jax cannot start this backend ({reason}); {install}give JAX_PLATFORMS=cpu"
        ) from None
