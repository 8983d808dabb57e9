"""A work directory is bound by its first checkpoint, and then to its settings and classes."""

import json
from pathlib import Path

import msgspec
import pytest

from datar_jax.atomic_files import write_json
from datar_jax.checkpoints.model_info import MODEL_FILE, ModelInfo, write_model_info
from datar_jax.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig
from datar_jax.training.workdir import RESULT, check_labels, check_workdir, finished_result, result_checksum

CONFIG = Config(data=DataConfig(root="sounds"))
STRICTER = msgspec.structs.replace(CONFIG, data=DataConfig(root="sounds", max_bad_fraction=0.5))


@pytest.mark.parametrize("place", ["", "fold_3"])
def test_settings_bind_from_the_first_checkpoint_on(tmp_path: Path, place: str) -> None:
    write_json(tmp_path / "config.json", msgspec.to_builtins(STRICTER))
    check_workdir(CONFIG, tmp_path)  # as an error advises
    (tmp_path / place / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    check_workdir(CONFIG, tmp_path)
    (tmp_path / place / "checkpoints" / "10").mkdir()
    check_workdir(STRICTER, tmp_path)
    with pytest.raises(ConfigError, match=r"data\.max_bad_fraction=0\.01: .* holds a run with .*=0\.5"):
        check_workdir(CONFIG, tmp_path)
    check_workdir(msgspec.structs.replace(STRICTER, mesh=MeshConfig(fsdp=2)), tmp_path)  # not a binding one


def test_other_classes_are_refused_by_name_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, model=ModelConfig(num_classes=3))
    info = ModelInfo(config=config, labels=("apple", "bear", "cat"), frames=9, mean_db=0.0, std_db=1.0)
    write_model_info(tmp_path / MODEL_FILE, info)
    check_labels(("bear", "cat", "zebra"), tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    check_labels(info.labels, tmp_path)
    with pytest.raises(ConfigError, match=r"no class 'apple' and a new class 'zebra'.*same data, or another --workdir"):
        check_labels(("bear", "cat", "zebra"), tmp_path)
    with pytest.raises(ConfigError, match="no class 'cat'; give"):
        check_labels(("apple", "bear"), tmp_path)
    with pytest.raises(ConfigError, match="in another order"):
        check_labels(("cat", "bear", "apple"), tmp_path)


def test_a_result_stands_for_its_settings_clips_and_checkpoints_only(tmp_path: Path) -> None:
    weights = tmp_path / "checkpoints" / "10" / "state"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1234")
    checksum = result_checksum(["a.wav"], CONFIG, tmp_path, [tmp_path])
    assert finished_result(tmp_path, checksum) is None, "there is none yet"
    (tmp_path / RESULT).write_text(json.dumps({"top1": 0.5, "inputs_checksum": checksum}))
    assert finished_result(tmp_path, checksum) == {"top1": 0.5, "inputs_checksum": checksum}
    moved = msgspec.structs.replace(CONFIG, data=DataConfig(root="elsewhere", threads=3))
    assert result_checksum(["a.wav"], moved, tmp_path, [tmp_path]) == checksum, "the same sounds, read otherwise"
    assert result_checksum(["b.wav"], CONFIG, tmp_path, [tmp_path]) != checksum
    weights.write_bytes(b"123")
    assert result_checksum(["a.wav"], CONFIG, tmp_path, [tmp_path]) != checksum
    weights.write_bytes(b"1234")
    assert finished_result(tmp_path, result_checksum(["a.wav"], STRICTER, tmp_path, [tmp_path])) is None
    (tmp_path / RESULT).write_text('{"top1": 0.5}')
    assert finished_result(tmp_path, checksum) is None, "of an earlier version"
