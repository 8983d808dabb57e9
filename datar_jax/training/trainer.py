"""Trains and evaluates a model: the way from a configuration to results in a work directory.

With `data.fold=0` the work directory holds one folder per test fold, and the results over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from datar_jax import metrics
from datar_jax.checkpoints.manager import CheckpointManager, check_checkpoints
from datar_jax.checkpoints.model_info import MODEL_FILE, ModelInfo, write_model_info
from datar_jax.checkpoints.pretrained import PretrainedModel
from datar_jax.compilation_cache import compiling, keep_compiled
from datar_jax.config import Config
from datar_jax.data.dataset import SPLITS, Dataset
from datar_jax.data.duplicates import pack_checksums
from datar_jax.data.identity import identity
from datar_jax.models.flops import count_parameters, macs_per_clip
from datar_jax.models.spec import ModelSpec
from datar_jax.training.eval_loop import score_clips
from datar_jax.training.evaluate import save_test_results
from datar_jax.training.finetune import initialize_from, provenance, read_init_source, source_provenance, started_run
from datar_jax.training.input_pipeline import FoldPipeline, InputPipeline, LabelledData
from datar_jax.training.monitoring.console import ProgressConsole, show_result
from datar_jax.training.monitoring.metric_writer import MetricWriter, NullWriter, Row, read_rows
from datar_jax.training.plots import save_training_curves, try_drawing
from datar_jax.training.sharding import check_batches, make_mesh
from datar_jax.training.train_loop import Trained, fit
from datar_jax.training.train_step import abstract_state
from datar_jax.training.workdir import (
    RESULT,
    bound,
    check_data,
    check_workdir,
    finished_result,
    has_checkpoint,
    only_writer,
    result_checksum,
    write_on_first_process,
    write_run,
)
from datar_jax.wording import count


@dataclass(frozen=True)
class Job:
    """Shared by all folds of a run."""

    pipeline: InputPipeline
    mesh: Mesh
    console: ProgressConsole
    profile: bool  # whether a profiler trace of a few steps is recorded
    read_source: Callable[[], PretrainedModel | None]  # reads the model of `init.from`
    begin: Callable[[], None]  # writes what binds the work directory; does nothing the second time

    @property
    def config(self) -> Config:
        """The configuration, with the number of classes."""
        return self.pipeline.config

    @property
    def cross_validates(self) -> bool:
        """Whether every fold is a test fold once."""
        return self.config.data.fold == 0


@dataclass(frozen=True)
class FoldScores:
    """Scores and targets of the test clips of one fold."""

    clips: np.ndarray  # (N,), indices into the data set
    score: np.ndarray  # (N, S)
    target: np.ndarray  # (N, S)
    metrics: dict[str, float | None]
    result: Row  # the metrics, and what they took


def train_and_evaluate(config: Config, workdir: Path, profile: bool = False) -> Row:
    """Trains and evaluates a model; continues a run that was stopped, and returns the result of a finished one.

    Args:
      config: of the run.
      workdir: folder for checkpoints, metrics, pictures and results; belongs to one configuration.
      profile: record a profiler trace of a few steps.

    Returns:
      The numbers of `result.json`.

    Raises:
      ConfigError: settings that contradict each other, the data, the devices or an earlier run in `workdir`.
      DataError: sounds that cannot be trained on.
      Stopped: a signal came; the state is saved.
    """
    console = ProgressConsole()
    with console.progress:
        result = _run(config, workdir, profile, console)
    show_result(console, result, workdir)
    return result


def _run(config: Config, workdir: Path, profile: bool, console: ProgressConsole) -> Row:
    mesh = make_mesh(config.mesh)
    check_batches(config, mesh)
    console.progress.stage("reading the lists")
    data = LabelledData.read(config)
    for note in data.notes:
        console.say(note)
    with only_writer(workdir):
        return _train_folds(data, workdir, mesh, console, profile)


def _train_folds(data: LabelledData, workdir: Path, mesh: Mesh, console: ProgressConsole, profile: bool) -> Row:
    """Trains and evaluates in a work directory whose lock is held. What could be refused is, before it is changed."""
    config, crossed = data.config, data.config.data.fold == 0
    folders = {fold: workdir / f"fold_{fold}" if crossed else workdir for fold in data.splits}
    check_workdir(config, workdir)
    known, note = check_data(data, workdir)
    if note:
        console.say(note)
    read_source = cache(partial(read_init_source, config))
    if not all(map(started_run, folders.values())):
        read_source()  # a mistake in init.from is reported before any sound is read
    programs = Path(config.data.cache or workdir / "cache").expanduser() / "xla"
    if not bound(workdir):
        keep_compiled(programs)

    pipeline = InputPipeline.open(data, workdir, console, known.content if known else None)
    for fold, folder in folders.items():
        if has_checkpoint(folder):
            like = abstract_state(_spec(pipeline, fold))
            check_checkpoints(folder / "checkpoints", like)

    @cache
    def begin() -> None:
        keep_compiled(programs)
        content = pipeline.source.content or data.content
        write_run(config, known or identity(data.dataset, data.splits, content), workdir)

    def checksum() -> int:
        return result_checksum(_tested(pipeline), config, workdir, folders.values())

    # Of several processes, not all may see the files of the first.
    if jax.process_count() == 1 and (finished := finished_result(workdir, checksum())):
        begin()
        console.say(f"finished already: these are the numbers of {workdir / RESULT}; delete it to score again")
        return finished
    job = Job(pipeline, mesh, console, profile, read_source, begin)
    scores = {fold: train_fold(job, fold, folder) for fold, folder in folders.items()}
    result = _cross_validation(job, workdir, scores) if crossed else scores[config.data.fold].result
    result = {**result, "inputs_checksum": checksum()}
    write_on_first_process(workdir / RESULT, result)
    return result


def _tested(pipeline: InputPipeline) -> list[object]:
    """The test clips of each fold, and their content where it has a checksum."""
    card, checksums = pipeline.dataset.card, pipeline.source.checksums
    tested: list[object] = [card.clips_sha256 if card else "", pipeline.frames]
    for fold, each in pipeline.splits.items():
        clips = [pipeline.dataset.clips[i] for i in each.test]
        tested += [fold, [(clip.name, clip.labels, clip.start, clip.end) for clip in clips]]
        tested.append([] if checksums is None else checksums[each.test].tolist())
    return tested


def _spec(pipeline: InputPipeline, fold: int) -> ModelSpec:
    """The model and the number of steps of one fold."""
    config, heads = pipeline.config, tuple(head.size for head in pipeline.dataset.heads)
    steps = max(1, config.train.epochs * len(pipeline.splits[fold].train) // config.train.batch_size)
    return ModelSpec(config, config.model.num_classes, pipeline.frames, steps, heads)


def train_fold(job: Job, fold: int, folder: Path) -> FoldScores:
    """Trains on the training clips of one fold and evaluates on its test clips."""
    config, dataset = job.config, job.pipeline.dataset
    own = started_run(folder) if config.init.source else None
    job.console.progress.stage("initializing the model")
    source = None if own else job.read_source()
    known = own or (source and source.description)  # a pretrained model keeps its normalization
    data = job.pipeline.fold(fold, known.normalization if known else None)
    spec = _spec(job.pipeline, fold)
    info = ModelInfo(
        config=config,
        labels=dataset.labels,
        head_sizes={head.name: head.size for head in dataset.heads},
        frames=spec.frames,
        mean_db=data.mean,
        std_db=data.std,
        provenance=provenance(
            config,
            dataset,
            data.split,
            fold,
            spec.steps,
            own.provenance.pretraining if own else source_provenance(source),
            pack_checksums(data.source, data.split),
        ),
    )
    label = f"fold {fold}" if job.cross_validates else ""
    report = NullWriter() if jax.process_index() else MetricWriter(folder, job.console, label)

    def begin() -> None:
        job.begin()
        if not jax.process_index():
            write_model_info(folder / MODEL_FILE, info)

    checkpoints = CheckpointManager(folder / "checkpoints", report.say)
    try:
        sizes = [len(getattr(data.split, name)) for name in SPLITS]
        counts = "{} training, {} validation, {} test clips".format(*sizes)
        counts += f"; {count(spec.steps, 'step')} of {count(config.train.batch_size, 'clip')}"
        report.say(f"{label}{': ' if label else ''}{counts}")
        initialize = partial(initialize_from, job.read_source, info, report.say) if config.init.source else None
        profile = folder / "profile" if job.profile else None
        trained = fit(spec, job.mesh, data, checkpoints, report, profile, initialize, begin)
        scores = _evaluate(spec, job.mesh, data, checkpoints, trained, report)
        report.row({"step": spec.steps, "split": "test", **scores.metrics})
        rows = report.rows()
    finally:
        report.end()
        checkpoints.close()
    write_on_first_process(folder / RESULT, scores.result)
    job.console.progress.stage("drawing")
    _save_figures(folder, dataset, rows, [scores], config, report.say)
    return scores


def _evaluate(
    spec: ModelSpec,
    mesh: Mesh,
    data: FoldPipeline,
    checkpoints: CheckpointManager,
    trained: Trained,
    report: MetricWriter,
) -> FoldScores:
    """Scores the test clips with the best weights by validation score, or with the last ones."""
    config, dataset, state = spec.config, data.dataset, trained.state
    if len(data.split.validation):
        state = checkpoints.restore(state, best=True)[0]
    weights = state.ema or state.params
    progress = report.scoring("test", compiling(config.model.spec))
    score, target = score_clips(
        spec, mesh, data.source, dataset, weights, state.statistics, data.split.test, progress=progress
    )
    values = metrics.evaluate(score, target, config.data.labels, dataset.heads)
    result: Row = {
        **values,
        "parameters": count_parameters(state.params),
        "macs_per_clip": macs_per_clip(config.model, spec.classes, config.audio.n_mels, spec.frames),
        "steps": spec.steps,
        "chosen_step": int(state.step),
        "train_seconds": trained.train_seconds,
        "clips_per_second": trained.clips_per_second,
    }
    if info := dataset.card:
        result["data"] = {name: getattr(info, name) for name in ("title", "listed", "here", "clips_sha256")}
    return FoldScores(data.split.test, score, target, values, result)


def _cross_validation(job: Job, workdir: Path, scores: dict[int, FoldScores]) -> Row:
    """Summarises all folds: mean results, curves, and figures over all test clips."""
    config, dataset = job.config, job.pipeline.dataset
    headline = metrics.primary_metric(config.data.labels, dataset.heads)
    result = _summarize([each.result for each in scores.values()], list(scores), headline)
    rows = [{**row, "fold": n} for n in scores for row in read_rows(workdir / f"fold_{n}" / "metrics.jsonl")[0]]
    write_on_first_process(workdir / RESULT, result)
    _save_figures(workdir, dataset, rows, list(scores.values()), config, job.console.say)
    return result


def _save_figures(
    folder: Path,
    dataset: Dataset,
    rows: list[Row],
    done: list[FoldScores],
    config: Config,
    say: Callable[[str], None],
) -> None:
    """Draws training curves, confusion matrices and the worst test clips, with tables of the latter two."""
    if jax.process_index():
        return
    clips = np.concatenate([each.clips for each in done])
    score = np.concatenate([each.score for each in done])
    target = np.concatenate([each.target for each in done])
    save_test_results(folder, dataset, clips, score, target, config.data.labels, say)
    chosen = [each.result["chosen_step"] for each in done]
    headline = metrics.primary_metric(config.data.labels, dataset.heads)
    try_drawing(say, save_training_curves, folder / "curves.png", rows, headline, chosen)


def _summarize(results: list[Row], folds: list[int], headline: str) -> Row:
    """Means over folds; clips, steps and seconds are summed; `<headline>_std` is the sample deviation over folds."""
    measured = [name for name in results[0] if any(isinstance(each[name], float) for each in results)]  # no counts
    mean = {name: metrics.mean(each[name] for each in results) for name in measured}
    judged = [each[headline] for each in results if each[headline] is not None]
    return {
        **results[0],
        **mean,
        "clips": sum(each["clips"] for each in results),
        "steps": sum(each["steps"] for each in results),
        "train_seconds": sum(each["train_seconds"] for each in results),
        f"{headline}_std": float(np.std(judged, ddof=1)) if len(judged) > 1 else 0.0,
        "folds": [{"fold": fold, **each} for fold, each in zip(folds, results)],
    }
