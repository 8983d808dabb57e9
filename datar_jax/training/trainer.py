"""Trains and evaluates a model on labelled sounds: weights, metrics and figures in a work directory.

A work directory belongs to one configuration. With `data.fold=0` it holds one folder for each fold, and their means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from datar_jax import metrics
from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.checkpoints.model_info import RUN, ModelInfo, write_model_info
from datar_jax.checkpoints.pretrained import PretrainedModel
from datar_jax.config import Config, ConfigError
from datar_jax.data.dataset import Dataset
from datar_jax.models.flops import count_parameters, macs_per_clip
from datar_jax.models.spec import Task
from datar_jax.training.eval_loop import score_clips
from datar_jax.training.evaluate import save_test_figures
from datar_jax.training.finetune import initialize_from, provenance, read_init_source, source_provenance, started_run
from datar_jax.training.input_pipeline import FoldData, InputPipeline
from datar_jax.training.monitoring.console import make_console, show_result
from datar_jax.training.monitoring.metric_writer import MetricWriter, NullWriter, Row, read_rows
from datar_jax.training.plots import save_training_curves
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_loop import Trained, fit
from datar_jax.training.train_step import TrainState
from datar_jax.training.workdir import check_workdir, write_on_first_process


@dataclass(frozen=True)
class Run:
    """What all folds of a run share."""

    pipeline: InputPipeline
    mesh: Mesh
    workdir: Path
    console: Console
    init_source: Callable[[], PretrainedModel | None]  # reads the pretrained model, once
    profile: bool

    @property
    def config(self) -> Config:
        """The resolved settings."""
        return self.pipeline.config

    def folder(self, fold: int) -> Path:
        """Where the model of a fold is stored."""
        return fold_folder(self.workdir, self.config, fold)


@dataclass(frozen=True)
class FoldResult:
    """Scores and targets of the test clips of one fold."""

    clips: np.ndarray  # (N,), indices into the data set
    score: np.ndarray  # (N, S)
    target: np.ndarray
    result: Row


def train_and_evaluate(config: Config, workdir: Path, profile: bool = False) -> Row:
    """Trains what is not trained yet, evaluates it, and writes everything to `workdir`.

    Args:
      config: settings of the run.
      workdir: of this configuration; an interrupted run in it is continued.
      profile: whether to record a profiler trace of a few steps.

    Returns:
      The contents of `result.json`.

    Raises:
      ConfigError: settings that contradict each other, the data, the devices or an earlier run in `workdir`.
      DataError: sounds that cannot be trained on.
      Stopped: a signal was received; the state is saved.
    """
    console = make_console()
    mesh = make_mesh(config.mesh)
    check_batch_sizes(config, mesh)
    init_source = cache(partial(read_init_source, config))

    def check(resolved: Config, folds: list[int]) -> None:
        check_workdir(resolved, workdir)
        if not all(started_run(fold_folder(workdir, config, fold)) for fold in folds):
            init_source()  # a mistake in init.from is reported before any audio is read

    pipeline = InputPipeline.open(config, workdir, console, check)
    run = Run(pipeline, mesh, workdir, console, init_source, profile)
    done = {fold: train_fold(run, fold) for fold in pipeline.splits}
    result = _cross_validated(run, done) if config.data.fold == 0 else done[config.data.fold].result
    show_result(console, result, workdir)
    return result


def fold_folder(workdir: Path, config: Config, fold: int) -> Path:
    """The work directory itself, or of a cross-validation one folder for each fold."""
    return workdir / f"fold_{fold}" if config.data.fold == 0 else workdir


def check_batch_sizes(config: Config, mesh: Mesh) -> None:
    """Checks that the global batches divide over the devices, before any data are read.

    Raises:
      ConfigError: they do not.
    """
    devices = mesh.size
    for field, size in (
        ("train.batch_size", config.train.batch_size // config.train.grad_accum_steps),
        ("train.eval_batch_size", config.train.eval_batch_size),
    ):
        if size % devices:
            raise ConfigError(
                f"{field}={getattr(config.train, field.split('.')[1])}: its {size} examples at a time do not divide "
                f"over {devices} devices; give a multiple of {devices * (config.train.batch_size // size or 1)}"
            )


def train_fold(run: Run, fold: int) -> FoldResult:
    """Trains the model of one fold, scores its test clips, and writes both to its folder."""
    pipeline, config, folder = run.pipeline, run.config, run.folder(fold)
    train, split = config.train, pipeline.splits[fold]
    steps = max(1, train.epochs * len(split.train) // train.batch_size)
    sizes = tuple(head.size for head in pipeline.dataset.heads)
    task = Task(config, config.model.num_classes, pipeline.frames, steps, sizes)
    info = _model_info(run, fold, steps)
    assert info.normalisation is not None
    data = FoldData(pipeline.source, pipeline.dataset, split, *info.normalisation)
    name = f"fold {fold}" if config.data.fold == 0 else ""
    writer = NullWriter() if jax.process_index() else MetricWriter(folder, run.console, name)
    if not jax.process_index():
        write_model_info(folder / RUN, info)
    checkpoints = CheckpointManager(folder / "checkpoints", writer.say)
    try:
        counts = f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test clips"
        writer.say(f"{name}{': ' if name else ''}{counts}; {steps} steps of {train.batch_size} clips")
        begin = partial(initialize_from, run.init_source, info, writer.say) if config.init.source else None
        trained = fit(task, run.mesh, data, checkpoints, writer, folder / "profile" if run.profile else None, begin)
        state = trained.state
        if len(split.validation):
            state = checkpoints.restore(state, best=True)[0]
        weights = state.ema or state.params
        score, target = score_clips(task, run.mesh, data.source, data.dataset, weights, state.statistics, split.test)
        numbers = metrics.evaluate(score, target, config.data.labels, data.dataset.heads)
        writer.row({"step": steps, "split": "test", **numbers})
        rows = writer.rows()
    finally:
        writer.end()
        checkpoints.close()
    done = FoldResult(split.test, score, target, _result(numbers, task, state, trained, data.dataset))
    _save_figures(folder, data.dataset, rows, [done], config)
    write_on_first_process(folder / "result.json", done.result)
    return done


def _model_info(run: Run, fold: int, steps: int) -> ModelInfo:
    """Describes the model of a fold; a resumed or pretrained one keeps its normalization."""
    pipeline, config = run.pipeline, run.config
    started = started_run(run.folder(fold)) if config.init.source else None
    pretrained = None if started else run.init_source()
    known = started or (pretrained and pretrained.description)
    mean, std = (known and known.normalisation) or pipeline.statistics(fold)
    origin = started.provenance.get("pretraining") if started else source_provenance(pretrained)
    return ModelInfo(
        config=config,
        labels=pipeline.dataset.labels,
        heads={head.name: head.size for head in pipeline.dataset.heads},
        frames=pipeline.frames,
        mean_db=mean,
        std_db=std,
        provenance=provenance(config, pipeline.dataset, pipeline.splits[fold], fold, steps, origin),
    )


def _result(numbers: dict[str, float], task: Task, state: TrainState, trained: Trained, dataset: Dataset) -> Row:
    """The contents of `result.json` for one fold."""
    config = task.config
    result: Row = {
        **numbers,
        "parameters": count_parameters(state.params),
        "macs_per_clip": macs_per_clip(config.model, task.classes, config.audio.n_mels, task.frames),
        "steps": task.steps,
        "train_seconds": trained.train_seconds,
        "clips_per_second": trained.clips_per_second,
    }
    if card := dataset.card:
        about = {"title": card.title, "listed": card.listed, "here": card.here, "clips_sha256": card.clips_sha256}
        result["data"] = about
    return result


def _cross_validated(run: Run, done: dict[int, FoldResult]) -> Row:
    """Writes the figures and the result over all folds; returns the result."""
    config, dataset = run.config, run.pipeline.dataset
    primary = metrics.primary_metric(config.data.labels, dataset.heads)
    result = _mean_over_folds([each.result for each in done.values()], list(done), primary)
    rows = [{**row, "fold": fold} for fold in done for row in read_rows(run.folder(fold) / "metrics.jsonl")[0]]
    _save_figures(run.workdir, dataset, rows, list(done.values()), config)
    write_on_first_process(run.workdir / "result.json", result)
    return result


def _save_figures(folder: Path, dataset: Dataset, rows: list[Row], done: list[FoldResult], config: Config) -> None:
    """Draws the training curves and the figures of the test clips."""
    if jax.process_index():
        return
    clips = np.concatenate([each.clips for each in done])
    score = np.concatenate([each.score for each in done])
    target = np.concatenate([each.target for each in done])
    save_test_figures(folder, dataset, clips, score, target, config.data.labels)
    save_training_curves(folder / "curves.png", rows, metrics.primary_metric(config.data.labels, dataset.heads))


def _mean_over_folds(results: list[Row], folds: list[int], primary: str) -> Row:
    """Means over folds, sums of clips, steps and seconds, and the sample standard deviation of the primary metric."""
    measured = [name for name, value in results[0].items() if isinstance(value, float)]  # counts are summed below
    mean = {name: float(np.mean([each[name] for each in results])) for name in measured}
    values = [each[primary] for each in results]
    return {
        **results[0],
        **mean,
        "clips": sum(each["clips"] for each in results),
        "steps": sum(each["steps"] for each in results),
        "train_seconds": sum(each["train_seconds"] for each in results),
        f"{primary}_std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "folds": [{"fold": fold, **each} for fold, each in zip(folds, results)],
    }
