"""Runs and exports that version 0.1 wrote load and predict what they predicted then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import datar_jax
from datar_jax.config import ConfigError
from datar_jax.config.loader import read_stored

FOLDER = Path(__file__).parents[1] / "golden" / "version_0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize(
    "path", ["run", "run/checkpoints/2", "export_params", "export_safetensors", "export_stablehlo"]
)
def test_models_of_version_0_1_predict_what_they_predicted(path):
    model = datar_jax.load(FOLDER / path)
    expected = EXPECTED["run" if path.startswith("run") else "run2"]
    assert list(model.labels) == expected["labels"]
    np.testing.assert_allclose(model(FOLDER / "bark_3.wav"), expected["scores"], atol=1e-6)


def test_a_configuration_of_version_0_1_is_read_under_todays_names():
    config = read_stored(FOLDER / "run" / "config.json")
    assert (config.audio.n_mels, config.model.num_classes, config.train.log_every_steps) == (32, 3, 1)
    assert config.train.checkpoint_every_epochs == 10 and config.model.spec == ("LS", "N", "D")


def test_a_run_of_version_0_1_is_known_as_the_same_run(tmp_path):
    """Its configuration, as stored, counts as equal to today's spelling of the same settings."""
    from datar_jax.training.workdir import check_workdir

    stored = FOLDER / "run" / "config.json"
    shutil.copy(stored, tmp_path / "config.json")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    config = read_stored(stored)
    check_workdir(config, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.seed=7: .* holds a run with train\.seed=0"):
        check_workdir(msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, seed=7)), tmp_path)
