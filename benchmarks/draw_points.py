"""Draws where the last deformable attention of a trained run looked, one test clip per class.

    python benchmarks/draw_points.py --workdir=runs/esc10/fold_1 --config-from=runs/esc10 --out=docs/points.png

The points are those of the last deformable block, all offset groups, on the spectrogram that the model saw.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datar_jax.augment import normalise  # noqa: E402
from datar_jax.cache import prepare  # noqa: E402
from datar_jax.checkpoint import Checkpoints  # noqa: E402
from datar_jax.datasets import read_dataset  # noqa: E402
from datar_jax.inspection import inspect  # noqa: E402
from datar_jax.plot import examples_png  # noqa: E402
from datar_jax.settings import from_dict  # noqa: E402
from datar_jax.sharding import make_mesh  # noqa: E402
from datar_jax.splits import split  # noqa: E402
from datar_jax.step import Task, init_state  # noqa: E402
from datar_jax.store import default_window  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder with checkpoints/ (of one fold)")
    parser.add_argument("--config-from", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--fold", type=int, default=1, help="the fold that was tested on")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    config = from_dict(json.loads((given.config_from / "config.json").read_text()))
    dataset = read_dataset(config.data)
    features = prepare(dataset, config.audio, Path(config.data.cache or given.config_from / "cache"))
    each = split(dataset, config.data, given.fold)
    frames = default_window(features, each.train, config.audio)
    task = Task(config, config.model.classes, frames, steps=1_000)
    checkpoints = Checkpoints(given.workdir / "checkpoints")
    state = checkpoints.restore(init_state(task, make_mesh(config.mesh)))[0]
    checkpoints.close()

    first = {dataset.clips[i].labels[0]: int(i) for i in reversed(each.test)}
    clips = [first[label] for label in sorted(first)]
    batch = features.batch(np.array(clips), np.zeros(len(clips), int), frames)
    params, sizes = state.ema or state.params, (config.model.classes, config.audio.mels, frames)
    points = []
    for mel_FxT, valid in zip(np.asarray(normalise(batch["mel"], *state.statistics)), batch["frames"]):
        block = inspect(config.model, params, *sizes, mel_FxT, int(valid)).blocks[-1]
        points.append(block.on_spectrogram(block.position_GxNx2[:, block.counted_N]).reshape(-1, 2))
    names = [dataset.labels[dataset.clips[i].labels[0]].replace("_", " ") for i in clips]
    hop = config.audio.hop / config.audio.sample_rate
    examples_png(given.out, list(batch["mel"]), names, config.audio.sample_rate, hop, points)
    print(f"{given.out}: {block.name}, {len(points[0])} points a clip, {jax.default_backend()}")


if __name__ == "__main__":
    main()
