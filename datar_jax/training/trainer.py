"""The main job: from a folder of sounds to a trained, evaluated model, its numbers and its pictures.

A work directory belongs to one configuration. With `data.fold=0` it holds one folder per fold, and the numbers of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from datar_jax import metrics
from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.checkpoints.model_info import MODEL_FILE, ModelInfo, write_model_info
from datar_jax.checkpoints.pretrained import PretrainedModel
from datar_jax.config import Config, ConfigError, check_windows
from datar_jax.data.dataset import Dataset
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.base import ClipSource, default_window_frames
from datar_jax.data.splits import Split, check_heads, split
from datar_jax.models.flops import count_parameters, macs_per_clip
from datar_jax.models.spec import Task
from datar_jax.training.eval_loop import score_clips
from datar_jax.training.evaluate import save_test_figures
from datar_jax.training.finetune import initialize_from, provenance, read_init_source, source_provenance, started_run
from datar_jax.training.input_pipeline import InputPipeline, normalisation, open_source, usable_split
from datar_jax.training.monitoring.console import make_console, show_result
from datar_jax.training.monitoring.metric_writer import MetricWriter, NullWriter, Row, read_rows
from datar_jax.training.plots import save_training_curves
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_loop import fit
from datar_jax.training.workdir import check_workdir, write_on_first_process


@dataclass(frozen=True)
class Scores:
    """Scores and targets of the test clips of one fold."""

    clips: np.ndarray  # (N,), which of the data set
    score: np.ndarray  # (N, S)
    target: np.ndarray
    result: Row


def run(config: Config, workdir: Path, profile: bool = False) -> Row:
    """Trains what is not trained yet, evaluates, and leaves everything in `workdir`; `profile`: a trace of steps too.

    Returns:
      The numbers of `result.json`.

    Raises:
      ConfigError: settings that contradict each other, the data, the devices or an earlier run in `workdir`.
      DataError: sounds that cannot be trained on.
      Stopped: a signal came; the state is saved.
    """
    console = make_console()
    mesh = make_mesh(config.mesh)
    _check_batches(config, mesh)
    dataset = read_dataset(config.data)
    config = _resolve(config, dataset)
    folds = list(dataset.folds) if config.data.fold == 0 else [config.data.fold]
    splits = {fold: split(dataset, config.data, fold) for fold in folds}
    for note in dict.fromkeys([*dataset.notes, *(note for each in splits.values() for note in each.notes)]):
        console.print(note, markup=False, soft_wrap=True)
    check_workdir(config, workdir)
    crossed = config.data.fold == 0
    folders = {fold: workdir / f"fold_{fold}" if crossed else workdir for fold in folds}
    source = cache(partial(read_init_source, config))
    if not all(map(started_run, folders.values())):
        source()  # a mistake is told before any sound is read

    store = open_source(config, dataset, workdir, console)
    splits = {fold: usable_split(dataset, store, each, console) for fold, each in splits.items()}
    frames = config.audio.frames(config.data.window_seconds) if config.data.window_seconds else 0
    frames = frames or max(default_window_frames(store, each.train, config.audio) for each in splits.values())
    check_windows(config, frames, f"a window of {frames * config.audio.hop_length / config.audio.sample_rate:g} s")

    done = [
        _run_split(config, mesh, dataset, store, splits[fold], frames, folder, console, crossed, fold, profile, source)
        for fold, folder in folders.items()
    ]
    headline = metrics.primary_metric(config.data.labels, dataset.heads)
    result = _summarise([each.result for each in done], folds, headline) if crossed else done[0].result
    if crossed:
        rows = [
            {**row, "fold": fold} for fold in folds for row in read_rows(workdir / f"fold_{fold}" / "metrics.jsonl")[0]
        ]
        _draw(workdir, dataset, rows, done, config)
        write_on_first_process(workdir / "result.json", result)
    show_result(console, result, workdir)
    return result


def _check_batches(config: Config, mesh: Mesh) -> None:
    """The global batches must divide over the devices before anything is read."""
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


def _resolve(config: Config, dataset: Dataset) -> Config:
    """The configuration with what the lists of the data decide."""
    classes = len(dataset.labels)
    if config.model.num_classes not in (0, classes):
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: the data have {classes} classes; give {classes}, or 0"
        )
    if config.data.fold == 0 and not dataset.folds:
        raise ConfigError("data.fold=0: these data have no folds to cross-validate over; give 1")
    check_heads(config.data, dataset)
    model = msgspec.structs.replace(config.model, num_classes=classes)
    return msgspec.structs.replace(config, model=model)


def _run_split(
    config: Config,
    mesh: Mesh,
    dataset: Dataset,
    store: ClipSource,
    each: Split,
    frames: int,
    folder: Path,
    console: Console,
    crossed: bool,
    fold: int,
    profile: bool,
    source: Callable[[], PretrainedModel | None],
) -> Scores:
    """Trains and scores one split."""
    train = config.train
    steps = max(1, train.epochs * len(each.train) // train.batch_size)
    task = Task(config, config.model.num_classes, frames, steps, tuple(head.size for head in dataset.heads))
    own = started_run(folder) if config.init.source else None
    other = None if own else source()
    known = own or (other and other.description)  # a network that was trained goes on seeing sound as it did
    mean, std = (known and known.normalisation) or normalisation(config, dataset, store, each.train)
    pretraining = own.provenance.get("pretraining") if own else source_provenance(other)
    material = InputPipeline(store, dataset, each, mean, std)
    report = NullWriter() if jax.process_index() else MetricWriter(folder, console, f"fold {fold}" if crossed else "")
    heads = {head.name: head.size for head in dataset.heads}
    description = ModelInfo(
        config=config,
        labels=dataset.labels,
        heads=heads,
        frames=frames,
        mean_db=mean,
        std_db=std,
        provenance=provenance(config, dataset, each, fold, steps, pretraining),
    )
    if not jax.process_index():
        write_model_info(folder / MODEL_FILE, description)
    checkpoints = CheckpointManager(folder / "checkpoints", report.say)
    try:
        sides = f"{len(each.train)} training, {len(each.validation)} validation, {len(each.test)} test clips"
        name = f"fold {fold}: " if crossed else ""
        report.say(f"{name}{sides}; {steps} steps of {train.batch_size} clips")
        begin = partial(initialize_from, source, description, report.say) if config.init.source else None
        trained = fit(task, mesh, material, checkpoints, report, folder / "profile" if profile else None, begin)
        state = trained.state
        if len(each.validation):
            state = checkpoints.restore(state, best=True)[0]
        weights = state.ema or state.params
        score, target = score_clips(task, mesh, store, dataset, weights, state.statistics, each.test)
        numbers = metrics.evaluate(score, target, config.data.labels, dataset.heads)
        result: Row = {
            **numbers,
            "parameters": count_parameters(state.params),
            "macs_per_clip": macs_per_clip(config.model, task.classes, config.audio.n_mels, frames),
            "steps": steps,
            "train_seconds": trained.train_seconds,
            "clips_per_second": trained.clips_per_second,
        }
        if card := dataset.card:
            about = {"title": card.title, "listed": card.listed, "here": card.here, "clips_sha256": card.clips_sha256}
            result["data"] = about
        report.row({"step": steps, "split": "test", **numbers})
        rows = report.rows()
    finally:
        report.end()
        checkpoints.close()
    done = Scores(each.test, score, target, result)
    _draw(folder, dataset, rows, [done], config)
    write_on_first_process(folder / "result.json", result)
    return done


def _draw(folder: Path, dataset: Dataset, rows: list[Row], done: list[Scores], config: Config) -> None:
    """Curves of training, and what was answered of the test clips."""
    if jax.process_index():
        return
    clips = np.concatenate([each.clips for each in done])
    score = np.concatenate([each.score for each in done])
    target = np.concatenate([each.target for each in done])
    save_test_figures(folder, dataset, clips, score, target, config.data.labels)
    save_training_curves(folder / "curves.png", rows, metrics.primary_metric(config.data.labels, dataset.heads))


def _summarise(results: list[Row], folds: list[int], headline: str) -> Row:
    """Means over folds; clips, steps and seconds are sums. The deviation, of the headline, is that of a sample."""
    measured = [name for name, value in results[0].items() if isinstance(value, float)]  # not what is counted
    mean = {name: float(np.mean([each[name] for each in results])) for name in measured}
    judged = [each[headline] for each in results]
    return {
        **results[0],
        **mean,
        "clips": sum(each["clips"] for each in results),
        "steps": sum(each["steps"] for each in results),
        "train_seconds": sum(each["train_seconds"] for each in results),
        f"{headline}_std": float(np.std(judged, ddof=1)) if len(judged) > 1 else 0.0,
        "folds": [{"fold": fold, **each} for fold, each in zip(folds, results)],
    }
