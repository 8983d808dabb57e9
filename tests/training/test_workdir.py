"""A work directory is bound by its first checkpoint, and then to its settings and classes."""

import json
from pathlib import Path

import msgspec
import pytest

from datar_jax.checkpoints.model_info import MODEL_FILE, ModelInfo, write_model_info
from datar_jax.config import Config, ConfigError, DataConfig, ModelConfig
from datar_jax.training.workdir import check_labels, check_workdir

CONFIG = Config(data=DataConfig(root="sounds"))
STRICTER = msgspec.structs.replace(CONFIG, data=DataConfig(root="sounds", max_bad_fraction=0.5))


@pytest.mark.parametrize("place", ["", "fold_3"])
def test_settings_bind_from_the_first_checkpoint_on(tmp_path: Path, place: str) -> None:
    check_workdir(CONFIG, tmp_path)
    check_workdir(STRICTER, tmp_path)  # as an error advises
    assert json.loads((tmp_path / "config.json").read_text())["data"]["max_bad_fraction"] == 0.5
    (tmp_path / place / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    check_workdir(CONFIG, tmp_path)
    (tmp_path / place / "checkpoints" / "10").mkdir()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"data\.max_bad_fraction=0\.5: .* holds a run with"):
        check_workdir(STRICTER, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_other_classes_are_refused_by_name_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, model=ModelConfig(num_classes=3))
    info = ModelInfo(config=config, labels=("apple", "bear", "cat"), frames=9, mean_db=0.0, std_db=1.0)
    write_model_info(tmp_path / MODEL_FILE, info)
    check_labels(("bear", "cat", "zebra"), tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    check_labels(info.labels, tmp_path)
    with pytest.raises(ConfigError, match=r"without 'apple' and with 'zebra'.*same data, or another --workdir"):
        check_labels(("bear", "cat", "zebra"), tmp_path)
    with pytest.raises(ConfigError, match="without 'cat'; give"):
        check_labels(("apple", "bear"), tmp_path)
    with pytest.raises(ConfigError, match="in another order"):
        check_labels(("cat", "bear", "apple"), tmp_path)
