"""The main job on the command line: what a run leaves, how it resumes, what it says to mistakes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import pytest

import train
from datar_jax.atomic_files import write_json
from datar_jax.checkpoints.manager import CheckpointError, CheckpointManager
from datar_jax.checkpoints.model_info import read_model_info
from datar_jax.checkpoints.pretrained import load_pretrained
from datar_jax.compilation_cache import keep_compiled
from datar_jax.config import ConfigError, DataConfig
from datar_jax.data.dataset import Dataset
from datar_jax.data.loader import TrainBatches
from datar_jax.data.readers import read_dataset
from datar_jax.training import input_pipeline, trainer
from datar_jax.training import train_loop as loop
from datar_jax.training.input_pipeline import with_classes
from tests.end_to_end.small_run import KINDS, command, params_of, rows_of
from tests.helpers import head

pytestmark = pytest.mark.usefixtures("quick_compiles")


def test_a_run_leaves_what_it_promises_and_a_second_call_shows_its_result(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    left = {path.name for path in run.iterdir()}
    assert left >= {
        "config.json",
        "data.identity",
        "model.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "confusion.png",
        "curves.png",
        "hardest.png",
        "hardest.csv",
        "result.json",
    }
    assert ".lock" not in left
    assert any("tfevents" in path.name for path in (run / "tensorboard").iterdir())
    assert read_model_info(run / "model.json").labels == KINDS
    result = json.loads((run / "result.json").read_text())
    assert {
        "top1", "top5", "mean_class_accuracy", "mean_average_precision", "roc_auc", "d_prime", "loss", "clips",
        "classes", "parameters", "macs_per_clip", "steps", "train_seconds", "clips_per_second",
    } <= set(result)  # fmt: skip
    rows = rows_of(run)
    assert [row["step"] for row in rows if "split" not in row] == list(range(1, result["steps"] + 1))
    assert all(np.isfinite(row["loss"]) for row in rows)

    moved = shutil.copytree(finished / "sounds", tmp_path / "moved", copy_function=shutil.copyfile)  # with other times
    arguments = command("folder", run, data__root=str(moved))

    def again() -> str:
        capsys.readouterr()
        assert train.main(arguments) == 0
        assert json.loads((run / "result.json").read_text()) == result
        assert len(rows_of(run)) == len(rows)
        assert len(list((run / "cache").glob("*.frames"))) == 1, "nothing was decoded"
        return capsys.readouterr().out

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_fold", None)  # nothing is scored
        assert "finished already: these are the numbers of" in (out := again()) and "top-1" in out
    (run / "result.json").unlink()
    assert "finished already; evaluating" in again()


def test_a_run_of_an_earlier_version_goes_on_with_one_note(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    record = (run / "data.identity").read_bytes()
    (run / "data.identity").unlink()
    assert train.main(command("folder", run, data__root=str(finished / "sounds"))) == 0
    assert capsys.readouterr().out.count("of an earlier version, which kept no record of its data") == 1
    assert (run / "data.identity").read_bytes() == record


def test_a_stopped_run_continues_as_if_it_had_not_been_stopped(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"data__root": str(sounds / "by_class"), "augment__mixup": "0.3", "model__drop_path": "0.2"}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main(command("folder", whole, **fields)) == 0

    log = loop._log
    for number, at, status in ((signal.SIGTERM, 3, 75), (signal.SIGINT, 6, 130)):

        def log_and_kill(report: Any, step: int, *rest: Any, number: int = number, at: int = at) -> None:
            log(report, step, *rest)
            if step == at:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(loop, "_log", log_and_kill)
        assert train.main(command("folder", stopped, **fields)) == status
        assert "the same command continues" in capsys.readouterr().err
        assert not (stopped / "result.json").exists()
    monkeypatch.setattr(loop, "_log", log)
    assert train.main(command("folder", stopped, **fields)) == 0

    jax.tree.map(np.testing.assert_array_equal, params_of(whole), params_of(stopped))
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (whole, stopped))
    assert first["loss"] == second["loss"]
    for one, other in zip(rows_of(whole), rows_of(stopped), strict=True):
        timings = {"clips_per_second", "steps_per_second", "data_wait"}
        assert {k: v for k, v in one.items() if k not in timings} == {
            k: v for k, v in other.items() if k not in timings
        }


@pytest.mark.slow
def test_several_labels_with_a_validation_split_keep_the_best(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(
        "csv", tmp_path / "run", data__root=str(sounds), data__labels="multi", train__evaluate_every_epochs="1"
    )
    validate = loop._validate

    def terminated(*rest: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*rest)

    monkeypatch.setattr(loop, "_validate", terminated)
    assert train.main(arguments) == 75, "the state is saved, the score is made up for"
    assert "stopped at step 2" in capsys.readouterr().err
    monkeypatch.setattr(loop, "_validate", validate)
    assert train.main(arguments) == 0
    rows = rows_of(tmp_path / "run")
    scores = [row for row in rows if row.get("split") == "validation"]
    scored = {row["step"]: row["mean_average_precision"] for row in scores}
    assert len(scored) == len(scores) and min(scored) == 2
    assert len(scored) >= 2
    source = load_pretrained(tmp_path / "run").source
    assert source in {f"{tmp_path / 'run'} (step {step})" for step in scored if scored[step] == max(scored.values())}
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"curves.png", "hardest.png"}


def with_heads(dataset: Dataset) -> Dataset:
    """What is heard, and beside it, as a second question, whether a second class is named with it."""
    clips = tuple(replace(clip, labels=(clip.labels[0], 2 + len(clip.labels))) for clip in dataset.clips)
    return replace(dataset, clips=clips, labels=(*KINDS, "alone", "together"), heads=(head("kind", 3), head("how", 2)))


@pytest.mark.slow
def test_two_heads_are_trained_scored_and_drawn_each(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = DataConfig(kind="csv", root=str(sounds), labels="multi")
    monkeypatch.setattr(input_pipeline, "read_dataset", lambda config: with_heads(read_dataset(several)))
    judged, validate = [], loop._validate
    monkeypatch.setattr(loop, "_validate", lambda *rest: judged.append(validate(*rest)) or judged[-1])
    arguments = command("csv", tmp_path / "run", data__root=str(sounds), train__evaluate_every_epochs="1")
    assert train.main([*arguments, "--config.augment.mixup=0.3", "--config.optim.label_smoothing=0.1"]) == 0
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {
        "kind_confusion.png",
        "how_confusion.png",
        "curves.png",
        "hardest.png",
    }
    description = read_model_info(tmp_path / "run" / "model.json")
    assert description.head_sizes == {"kind": 3, "how": 2}
    assert description.labels == (*KINDS, "alone", "together")
    assert abs(rows_of(tmp_path / "run")[0]["loss"] - np.log(3 * 2)) < 0.4, "no opinion on either question"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"kind_top1", "how_top1", "how_d_prime", "action_top1", "action_top5", "loss"} <= set(result)
    assert result["classes"] == 5 and "top1" not in result
    rows = [row for row in rows_of(tmp_path / "run") if row.get("split") == "validation"]
    assert judged == [row["action_top1"] for row in rows] and len(rows) >= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": (1, 2)}, "has 2 labels of the head 'kind'; give it one, or 'multi'"),
        ({"labels": (1,)}, "has 0 labels of the head 'how'; give it one, or 'multi'"),
        ({"heads": (head("kind", 3), head("how", 3))}, "heads of [3, 3] classes share out 5 classes"),
        ({"heads": (head("kind", 3), head("kind", 2))}, "head 'kind'; give each a word of its own"),
        ({"heads": (head("kind", 3), head("../how", 2))}, "head '../how'; give each a word of its own"),
        ({"heads": (head("kind", 3), head("action", 2))}, "other than 'action'"),
        ({"heads": ()}, "has 2 labels; give it one, or 'multi'"),
    ],
)
def test_heads_that_do_not_fit_their_clips_are_refused(sounds: Path, change: dict[str, Any], said: str) -> None:
    dataset = with_heads(read_dataset(DataConfig(kind="csv", root=str(sounds), labels="multi")))
    if labels := change.get("labels"):
        clips = (*dataset.clips[:7], replace(dataset.clips[7], labels=labels), *dataset.clips[8:])
        change = {"clips": clips}
        said = f"{dataset.where(7)} {said}"
    config, *_ = train.parse(command("csv", Path("run"), data__root=str(sounds)))
    with pytest.raises(ConfigError) as error:
        with_classes(config, replace(dataset, **change))
    assert said in str(error.value)
    assert with_classes(config, dataset).model.num_classes == 5


@pytest.mark.slow
def test_cross_validation_scores_every_clip_once(sounds: Path, tmp_path: Path) -> None:
    arguments = command("esc10", tmp_path / "run", data__root=str(sounds), data__fold="0", train__epochs="1")
    assert train.main(arguments) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [each["fold"] for each in result["folds"]] == [1, 2]
    assert result["clips"] == 36
    tops = [each["top1"] for each in result["folds"]]
    assert result["top1"] == pytest.approx(np.mean(tops))
    assert result["top1_std"] == pytest.approx(np.std(tops, ddof=1))
    for name in ("mean_class_accuracy", "roc_auc", "d_prime", "loss"):
        assert result[name] == pytest.approx(np.mean([each[name] for each in result["folds"]]))
    assert all(result[name] == result["folds"][0][name] for name in ("classes", "parameters", "macs_per_clip"))
    assert (tmp_path / "run" / "confusion.png").exists()
    with (tmp_path / "run" / "hardest.csv").open() as file:
        clips = list(csv.DictReader(file))
    assert len({clip["clip"] for clip in clips}) == 36, "of all folds"
    right = [clip["truth"] == clip["predicted_instead"] for clip in clips]
    assert np.mean(right) == pytest.approx(np.mean(tops))  # of folds of equal size
    assert all(clip["truth"] in clip["clip"] for clip in clips), "each clip has its own truth"
    losses = [float(clip["loss"]) for clip in clips]
    assert losses == sorted(losses, reverse=True) and np.mean(losses) == pytest.approx(result["loss"], rel=1e-4)
    assert (tmp_path / "run" / "fold_2" / "checkpoints").is_dir()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_none_at_all_is_said(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"data__root": str(sounds / "by_class"), "train__checkpoint_every_epochs": "1"}
    assert train.main(command("folder", tmp_path / "run", **fields)) == 0
    steps = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert len(steps) == 2
    for step in steps[-1:]:
        for part in (tmp_path / "run" / "checkpoints" / str(step) / "state").rglob("*"):
            if part.is_file():
                part.write_bytes(b"")
    assert train.main(command("folder", tmp_path / "run", **fields)) == 0  # trains again from the one before
    said = capsys.readouterr().out
    assert said.count("skipped and") == 1 and f"renamed to {steps[-1]}.damaged" in said
    for part in (tmp_path / "run" / "checkpoints").rglob("*"):
        if part.is_file():
            part.write_bytes(b"")
    assert train.main(command("folder", tmp_path / "run", **fields)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        ("folder", {"modle.dims": "8"}, "did you mean model?"),
        ("folder", {"train.epochs": "many"}, "give a whole number"),
        ("folder", {"data.root": "no/such/folder"}, "data.root='no/such/folder'"),
        ("folder", {"data.root": ""}, "data.root=''"),
        ("folder", {"model.heads": "1,3"}, "model.heads[1]=3"),
        ("folder", {"model.num_classes": "2", "data.root": "BY_CLASS"}, "the data have 3 classes"),
        ("folder", {"model.num_classes": "5", "data.root": "BY_CLASS"}, "the data have 3 classes"),
        ("folder", {"data.fold": "0", "data.root": "BY_CLASS"}, "no folds"),
        ("esc10", {"data.fold": "3", "data.root": "ROOT"}, "data.fold=3"),
        ("csv", {"data.root": "ROOT"}, "set data.labels to 'multi'"),
        ("csv", {"data.root": "ROOT", "data.manifest": "none.csv"}, "none.csv"),
        ("folder", {"train.batch_size": "12", "data.root": "BY_CLASS"}, "train.batch_size=12"),
        ("missing", {}, "no such file"),
    ],
)
def test_mistakes_end_in_one_line_that_names_the_field(
    config: str,
    fields: dict[str, str],
    said: str,
    sounds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"BY_CLASS": str(sounds / "by_class"), "ROOT": str(sounds)}
    fields = {name: places.get(value, value) for name, value in fields.items()}
    assert train.main(command(config, tmp_path / "run", **fields)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_work_directory_belongs_to_one_configuration(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    arguments = command("folder", tmp_path / "run", data__root=str(sounds / "by_class"))
    config, workdir, *_ = train.parse(arguments)
    write_json(workdir / "config.json", msgspec.to_builtins(with_classes(config, read_dataset(config.data))))
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    changed = command("folder", workdir, data__root=str(sounds / "by_class"), optim__learning_rate="0.5")
    assert train.main(changed) == 2
    assert "optim.learning_rate=0.5" in capsys.readouterr().err


def test_an_option_that_is_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*command("folder", tmp_path), "--epochs=3"]) == 2
    assert "--epochs=3: not an option" in capsys.readouterr().err


def test_a_compiled_program_that_was_cut_off_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    contents = {"whole": zlib.compress(b"program" * 99), "cut": zlib.compress(b"program" * 99)[:-4], "empty": b""}
    for name, content in contents.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    before = jax.config.jax_compilation_cache_dir
    keep_compiled(tmp_path)
    jax.config.update("jax_compilation_cache_dir", before)
    assert [path.name for path in tmp_path.iterdir()] == ["whole-cache"]


def test_no_checkpoint_to_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="delete that folder"):
        checkpoints.restore({"x": jax.numpy.zeros(2)})  # type: ignore[arg-type]
    checkpoints.close()


@pytest.mark.slow
def test_a_profile_is_left_where_it_was_asked_for(sounds: Path, tmp_path: Path) -> None:
    arguments = command("folder", tmp_path / "run", data__root=str(sounds / "by_class"), train__epochs="5")
    assert train.main([*arguments, "--profile"]) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "split" not in row]
    assert steps[-1]["clips_per_second"] == pytest.approx(8 * steps[-1]["steps_per_second"]) and steps[-1]["step"] > 10
    assert all(0 <= row["data_wait"] <= 1 for row in steps)


@pytest.mark.slow
def test_a_pipeline_that_stalls_is_heard(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, number = TrainBatches.__next__, itertools.count()

    def slow(batches: TrainBatches) -> Any:
        if next(number) == 5:
            time.sleep(1)
        return draw(batches)

    monkeypatch.setattr(TrainBatches, "__next__", slow)
    fields = {"data__root": str(sounds / "by_class"), "train__stall_seconds": "0.3"}
    assert train.main(command("folder", tmp_path / "run", **fields)) == 0
    waits = [line for line in capsys.readouterr().out.splitlines() if "no progress" in line and "a batch" in line]
    assert len(waits) == 2, "after one time and after twice that"
    assert "from 2 threads of this process that read" in waits[0] and ".frames" in waits[0]
