"""Numbers that are not finite: the message names the layer, the clip or the parameters where they begin."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.config import DataConfig
from datar_jax.data.dataset import Clip, Dataset
from datar_jax.data.loader import TrainBatches
from datar_jax.data.splits import Splits
from datar_jax.models.spec import ModelSpec
from datar_jax.training.eval_loop import TrainingError
from datar_jax.training.input_pipeline import FoldPipeline
from datar_jax.training.monitoring.console import ProgressConsole
from datar_jax.training.monitoring.metric_writer import MetricWriter
from datar_jax.training.monitoring.nan_debug import diagnose
from datar_jax.training.tasks import classification as objective
from datar_jax.training.train_loop import fit
from tests.training.test_train_step import CLASSES, FRAMES, SMALL, STEPS, B, batch, mesh_of, put, start, with_train

pytestmark = pytest.mark.usefixtures("quick_compiles")

TASK = ModelSpec(SMALL, CLASSES, FRAMES, STEPS)
NAMES = [f"dog/{i}.wav" for i in range(B)]


def said(params: Any = None, clips: dict[str, np.ndarray] | None = None, spec: ModelSpec = TASK) -> str:
    state = start(SMALL)
    state = put(state.replace(params=params or state.params), mesh_of(1))
    return diagnose(spec, mesh_of(1), state, jax.device_put(clips or batch()), NAMES)


def poisoned(*path: str) -> Any:
    """The parameters with one number that is none."""
    params = copy.deepcopy(start(SMALL).params)
    leaf = params
    for part in path[:-1]:
        leaf = leaf[part]
    leaf[path[-1]].flat[0] = np.nan
    return params


def test_what_is_finite_is_said_to_be() -> None:
    assert said() == "run again, with the weights of now, it is finite; lower optim.learning_rate"


@pytest.mark.parametrize(
    "path",
    [
        ("stem", "project", "kernel"),
        ("stage_0_0", "mlp", "up", "bias"),
        ("stage_0_0", "norm_mixer", "scale"),
        ("stage_0_0", "mixer", "query", "kernel"),
        ("head", "kernel"),
    ],
)
def test_the_first_layer_is_named(path: tuple[str, ...]) -> None:
    layer, weight = "/".join(path[:-1]), "/".join(path)
    expected = f"begin in the layer {layer} (weights that are not finite: {weight});"
    assert expected in said(poisoned(*path))


def test_a_clip_is_named() -> None:
    clips = {**batch(), "mel": batch()["mel"].copy()}
    clips["mel"][5, 3, 3] = np.inf
    assert said(clips=clips).startswith("the input is not finite in dog/5.wav; repair")


def test_parameters_are_named_whose_gradient_alone_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    cross_entropy = objective.loss("single")

    def steep(logits: Any, target: Any, smoothing: float) -> Any:
        return cross_entropy(logits, target, smoothing) + jnp.sqrt(0 * jnp.square(logits[:, 0]))

    monkeypatch.setattr(objective, "loss", lambda labels, heads: steep)
    text = said(spec=ModelSpec(SMALL, CLASSES, FRAMES, STEPS + 1))  # another spec: programs are kept
    assert text.startswith("the forward pass is finite, the gradient is not, in head/bias, head/kernel, ")
    assert " more; lower" in text


class Clips(FoldPipeline):
    """Every batch is the same, with one clip that is not finite from the third batch on."""

    def train_batches(self, spec: ModelSpec) -> TrainBatches:
        def read(number: int) -> dict[str, np.ndarray]:
            clips = {**batch(), "mel": batch()["mel"].copy()}
            clips["mel"][2, 0, 0] += np.inf if number >= 2 else 0
            return clips

        def clips(number: int) -> np.ndarray:
            return np.roll(np.arange(B), number)

        return TrainBatches(grain.MapDataset.range(100).map(read), clips, "memory", DataConfig(), {"of": "a test"})


def test_a_run_stops_at_the_limit_and_states_step_and_clips(tmp_path: Path) -> None:
    config = with_train(SMALL, max_skipped=3, epochs=5)
    spec = ModelSpec(msgspec.structs.replace(config, data=DataConfig(threads=1)), CLASSES, FRAMES, STEPS)
    dataset = Dataset(tuple(Clip(name, name, (0,)) for name in NAMES), ("a", "b", "c", "d"))
    none = np.zeros(0, np.int64)
    material = Clips(None, dataset, Splits(np.arange(B), none, none, ()), -40.0, 15.0)  # type: ignore[arg-type]
    report = MetricWriter(tmp_path, ProgressConsole(quiet=True))
    checkpoints = CheckpointManager(tmp_path / "checkpoints")
    with pytest.raises(TrainingError) as error:
        fit(spec, mesh_of(1), material, checkpoints, report)
    report.end()
    checkpoints.close()
    text = str(error.value)
    assert (
        "no finite gradient for 3 steps in a row (train.max_skipped), up to step 5: the input is not finite in " in text
    )
    names = [NAMES[int(clip)] for clip in np.roll(np.arange(B), 4)]  # of batch 4
    assert f"not finite in {names[2]}; repair" in text
    assert text.endswith(f"clips of that batch: {', '.join(names)}") and "\n" not in text
