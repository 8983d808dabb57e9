"""A run of many classes trains, is scored and ends: 2,500 classes, three parts of one recording each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datar_jax.cli.main import main
from datar_jax.escaping import read_csv

ROOT = Path(__file__).parent.parent.parent
CLASSES = 2_500
FIELDS = {
    "audio.sample_rate": 8000,
    "audio.n_mels": 32,
    "audio.hop_ms": 25,
    "audio.window_ms": 50,
    "augment.freq_width": 4,
    "model.dims": "8",
    "model.spec": "L",
    "model.heads": "1",
    "model.window.sizes": "[[4,4]]",
    "model.stem": "patch",
    "model.mlp": "plain",
    "model.local_perception": "false",
    "train.batch_size": 64,
    "train.eval_batch_size": 64,
    "train.epochs": 1,
}


@pytest.mark.slow
def test_a_run_of_many_classes_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    rng = np.random.default_rng(0)
    soundfile.write(sounds / "a.wav", 0.1 * rng.standard_normal(8000 * (2 * CLASSES)), 8000)
    rows = ["path,label,split,start,end"]
    for i in range(CLASSES):
        for j, split in enumerate(("train", "validation", "test")):
            start = 0.6 * (3 * i + j)
            rows.append(f"a.wav,class {i},{split},{start:.1f},{start + 0.6:.1f}")
    (sounds / "manifest.csv").write_text("\n".join(rows) + "\n")
    data = [f"--config={ROOT / 'configs' / 'csv.py'}", f"--config.data.root={sounds}"]
    assert (
        main(["train", *data, f"--workdir={tmp_path / 'run'}", *(f"--config.{k}={v}" for k, v in FIELDS.items())]) == 0
    )
    assert main(["evaluate", str(tmp_path / "run"), *data, f"--out={tmp_path / 'out'}"]) == 0
    for folder in (tmp_path / "run", tmp_path / "out"):
        assert json.loads((folder / "result.json").read_text())["classes"] == CLASSES
        assert (folder / "confusion.png").stat().st_size < 2e6
        with (folder / "confusion.csv").open(newline="") as file:
            assert sum(int(row["clips"]) for row in read_csv(file)) == CLASSES
    output = capsys.readouterr().out
    assert output.count("\n") < 200 and "could not be drawn" not in output
