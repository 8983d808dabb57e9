"""Clips of any length train with the settings of configs/folder.py, of which only the widths are made smaller."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import train

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOT = Path(__file__).parent.parent.parent
NARROW = {
    "model.dims": "8,8,8,8",
    "model.heads": "1,1,2,4",
    "train.batch_size": "8",
    "train.eval_batch_size": "8",
    "train.epochs": "1",
}


def noise(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Noise of one of two colors."""
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)
    return np.diff(samples, append=0) if seed % 2 else samples


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [
        (0.02, 16_000),
        pytest.param(0.06, 16_000, marks=pytest.mark.slow),
        pytest.param(0.5, 16_000, marks=pytest.mark.slow),
        pytest.param(30.0, 16_000, marks=pytest.mark.slow),
        pytest.param(3_600.0, 2_000, marks=pytest.mark.slow),
    ],
)
def test_a_folder_of_clips_trains_with_the_defaults(tmp_path: Path, seconds: float, rate: int) -> None:
    for i in range(16 if seconds > 600 else 24):
        folder = tmp_path / "sounds" / ("white", "blue")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{i}.wav", noise(seconds, rate, i), rate)
    settings = {**NARROW, "data.root": str(tmp_path / "sounds"), "data.test_fraction": "0.3"}
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    assert train.main([f"--config={ROOT / 'configs' / 'folder.py'}", f"--workdir={tmp_path / 'run'}", *arguments]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(result["loss"]) and result["clips"] >= 2
