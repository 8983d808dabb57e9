"""What the first answer does not have to wait for."""

import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import numpy as np

from datar_jax.checkpoints.model_info import MODEL_FILE, ModelInfo, write_model_info
from datar_jax.checkpoints.pretrained import SAFETENSORS, structure_checksum
from datar_jax.checkpoints.safetensors import save_safetensors
from datar_jax.config import Config, ModelConfig

UNUSED = [
    "orbax",
    "grain",
    "optax",
    "matplotlib",
    "chex",
    "tensorboardX",
    "array_record",
]


def test_an_export_is_loaded_without_training_packages_and_without_compiling(tmp_path):
    config = Config(model=ModelConfig(num_classes=2))
    params = {f"layer_{n}": {"kernel": np.zeros((n, 2), np.float32)} for n in range(1, 4)}  # as far as loading goes
    described = ModelInfo(config=config, labels=("a", "b"), frames=9, mean_db=0, std_db=1)
    described = msgspec.structs.replace(described, structure=structure_checksum(described, params))
    write_model_info(tmp_path / MODEL_FILE, described)
    save_safetensors(tmp_path / SAFETENSORS, params, "float32")
    program = f"""
        import sys, jax
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
        import datar_jax.inference.writers, datar_jax.cli.predict, datar_jax.compilation_cache
        model = datar_jax.load({str(tmp_path)!r})
        assert not (found := [name for name in compiled if "compile" in name]), found
        jax.numpy.zeros(3) + 1
        assert any("compile" in name for name in compiled), "compiling is no longer told of under that name"
        assert not (found := set({UNUSED}) & set(sys.modules)), found
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
