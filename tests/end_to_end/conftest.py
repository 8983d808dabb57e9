"""Sounds of three classes, and a finished run on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

import train
from datar_jax.data.synthetic_sounds import render
from tests.end_to_end.small_run import KINDS, command


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve one-second clips; some shorter, one broken file among them, and two lists."""
    root = tmp_path_factory.mktemp("sounds")
    rows, esc = ["path,label,split"], ["filename,fold,target,category"]
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    for target, kind in enumerate(KINDS):
        (root / "by_class" / kind).mkdir(parents=True)
        for i in range(12):
            sound = render(kind, np.random.default_rng([target, i]), 1.0 if i % 4 else 0.6, 8000)
            name = f"{kind}_{i:02d}.wav"
            soundfile.write(root / "by_class" / kind / name, sound, 8000)
            soundfile.write(root / "audio" / name, sound, 8000)
            both = f"{kind};{KINDS[(target + 1) % 3]}" if i % 3 == 0 else kind
            rows.append(f"by_class/{kind}/{name},{both},{('train', 'train', 'validation', 'test')[i % 4]}")
            esc.append(f"{name},{i % 2 + 1},{target},{kind}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "meta" / "tiny.csv").write_text("\n".join(esc) + "\n")
    return root


@pytest.fixture(scope="session")
def finished(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the sounds and the work directory of a finished run on them."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(sounds / "by_class", folder / "sounds")
    jax.config.update("jax_disable_most_optimizations", True)  # as `quick_compiles`, which lives for one module
    try:
        assert train.main(command("folder", folder / "run", data__root=str(folder / "sounds"))) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return folder
