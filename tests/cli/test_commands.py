"""The commands: what they make of a trained model, what they leave, and what they say to mistakes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile

import datar_jax
import train
from datar_jax.audio.recording import plan_windows
from datar_jax.checkpoints.model_info import ModelError, find_model_info
from datar_jax.checkpoints.pretrained import load_pretrained
from datar_jax.cli.main import COMMANDS, command, main
from datar_jax.data.synthetic_sounds import render
from datar_jax.escaping import read_csv
from datar_jax.inference.predict import predict_files
from datar_jax.training import evaluate
from datar_jax.training import train_loop as loop
from datar_jax.training import trainer as run
from datar_jax.training.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compiles")

ROOT = Path(__file__).parent.parent.parent
KINDS = ("alarm", "bark", "rain")
CSV = f"--config={ROOT / 'configs' / 'csv'}.py"
SMALL = {
    "model.dims": "8",
    "model.spec": "L",
    "model.stem": "patch",
    "model.mlp": "plain",
    "model.local_perception": "false",
    "model.heads": "1",
    "model.window.sizes": "[[4,4]]",
    "model.mlp_ratio": "2",
    "audio.n_mels": "32",
    "audio.hop_ms": "25",
    "audio.window_ms": "50",
    "audio.sample_rate": "8000",
}
OURS = {
    "data.kind": "csv",
    "data.window_seconds": "0.8",  # clips of a second have two views
    "augment.freq_width": "4",
    "train.batch_size": "8",
    "train.eval_batch_size": "8",
    "train.epochs": "1",
    "train.log_every_steps": "1",
    "optim.ema": "0.5",
}


def training(config: str, sounds: Path, workdir: Path, **fields: str) -> list[str]:
    given = {**OURS, **{name.replace("__", "."): value for name, value in fields.items()}}
    return [
        f"--config={ROOT / 'configs' / config}.py",
        f"--workdir={workdir}",
        f"--config.data.root={sounds}",
        f"--config.data.cache={sounds.parent / 'cache'}",
        *(f"--config.{name}={value}" for name, value in given.items()),
    ]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six clips, some shorter than the window, and a list with two folds."""
    root = tmp_path_factory.mktemp("commands") / "sounds"
    root.mkdir()
    rows = ["path,label,fold"]
    for target, kind in enumerate(KINDS):
        for i in range(6):
            name = f"{kind} {i}.wav"
            soundfile.write(root / name, render(kind, np.random.default_rng([target, i]), 0.6 + 0.2 * i, 8000), 8000)
            rows.append(f"{name},{kind},{i % 2 + 1}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def quick_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs for one device compile faster than those for the eight that tests have, and each is compiled once."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    with pytest.MonkeyPatch.context() as patched:
        for module in (run, evaluate):
            patched.setattr(module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        patched.setenv("JAX_COMPILATION_CACHE_DIR", "here")  # commands leave the setting as it is
        yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="module")
def work(sounds: Path) -> Path:
    """A trained run."""
    workdir = sounds.parent / "run"
    arguments = training("csv", sounds, workdir, **{k.replace(".", "__"): v for k, v in SMALL.items()})
    assert train.main([*arguments, "--config.train.checkpoint_every_epochs=1"]) == 0
    return workdir


def said_once(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """One line of error with all of the parts."""
    error = capsys.readouterr().err
    assert error.startswith("datar-jax: error: ") and len(error.splitlines()) == 1, error
    assert all(part in error for part in parts), error


def test_every_example_is_understood(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its options are parsed; what runs would do is tested elsewhere."""

    class Parsed(Exception):
        pass

    understand = argparse.ArgumentParser.parse_known_args

    def parse(parser: argparse.ArgumentParser, *given: Any) -> Any:
        _, rest = understand(parser, *given)
        assert all(each.startswith("--config.") for each in rest)
        raise Parsed

    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        page = capsys.readouterr().out
        example = page.partition("example:\n")[2].replace("\\\n", " ").strip().splitlines()[0]
        assert end.value.code == 0 and example.startswith(f"datar-jax {name} ")
        given = shlex.split(example)[2:]
        with monkeypatch.context() as patched:
            patched.setattr(argparse.ArgumentParser, "parse_known_args", parse)
            with pytest.raises(Parsed):
                command(name)(given)


FORMS = [
    ("params", "float32"),
    ("safetensors", "float32"),
    ("safetensors", "bfloat16"),
    ("safetensors", "int8"),
    ("stablehlo", "float32"),
    ("onnx", "float32"),
]


def test_an_export_scores_as_its_run_and_evaluate_agrees(
    sounds: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(str(path) for path in sounds.glob("*.wav"))
    wanted = np.stack([heard.scores_S for heard in predict_files(datar_jax.load(work), files)])
    trained = load_pretrained(work).params
    for form, weights in FORMS:
        if form == "onnx" and not importlib.util.find_spec("jax2onnx"):
            continue
        out = tmp_path / f"{form}-{weights}"
        assert main(["export", str(work), str(out), f"--format={form}", f"--weights={weights}"]) == 0
        saved, rtol = load_pretrained(out), {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 127}[weights]
        if saved.params is None:
            scores = np.stack([heard.scores_S for heard in predict_files(datar_jax.load(out), files)])
            np.testing.assert_allclose(scores, wanted, atol=1e-5, err_msg=out.name)
        else:  # half a step of its largest weight is what int8 errs by
            for leaf, exact in zip(jax.tree.leaves(saved.params), jax.tree.leaves(trained), strict=True):
                np.testing.assert_allclose(leaf, exact, atol=rtol * np.abs(exact).max(), err_msg=out.name)
    again = tmp_path / "again"
    assert main(["export", str(tmp_path / "safetensors-float32"), str(again), "--licence=a: b # c"]) == 0
    card = (again / "README.md").read_text()
    numbers = json.loads((work / "result.json").read_text())
    for part in (
        'license: "a: b # c"',
        "sounds (csv), fold 1 held out for the test: 9 train",
        "pretraining: none",
    ):
        assert part in card, card
    assert f"| top-1 | {numbers['top1']:.1%} |" in card.replace("\xa0", " ")
    assert "weights: a: b # c\n- training data: not stated" in card

    capsys.readouterr()
    scored = ["evaluate", str(again), CSV, f"--config.data.root={sounds}", f"--out={tmp_path / 'ev'}"]
    assert main(scored) == 0
    result = json.loads((tmp_path / "ev" / "result.json").read_text())
    same = set(result) & set(numbers)
    assert {"top1", "loss", "clips", "mean_average_precision"} <= same
    assert {name: result[name] for name in same} == pytest.approx({name: numbers[name] for name in same}, abs=1e-5)
    with (tmp_path / "ev" / "classes.csv").open() as file:
        rows = list(read_csv(file))
    assert [row["class"] for row in rows] == list(KINDS) and sum(int(row["clips"]) for row in rows) == 9
    right = sum(float(row["recall"]) * int(row["clips"]) for row in rows)
    assert right / 9 == pytest.approx(result["top1"])
    assert {path.name for path in (tmp_path / "ev").iterdir()} >= {"confusion.png", "hardest.csv", "hardest.png"}
    assert "no test of it" not in capsys.readouterr().out
    assert main([*scored, "--split=all"]) == 0 and "no test of it" in capsys.readouterr().out

    other = tmp_path / "other"
    shutil.copytree(sounds, other)
    (other / "manifest.csv").write_text("path,label,fold\nbark 1.wav,cat,1\nrain 1.wav,rain,2\n")
    assert main([*scored, f"--config.data.root={other}"]) == 2
    said_once(capsys, "classes that the model does not know: cat; it knows alarm, bark, rain")
    assert main([*scored, "--config.data.labels=multi"]) == 2
    said_once(capsys, "data.labels='multi': the model gives a clip one class")

    text = (again / "model.json").read_text().replace('"mlp_ratio": 2', '"mlp_ratio": 3')
    (again / "model.json").write_text(text)
    assert main(scored) == 2
    said_once(capsys, str(again / "model.json"), "config.model.mlp_ratio differs since it was written")
    meant = {name: value for name, value in json.loads(text).items() if name != "checksums"}
    (again / "model.json").write_text(json.dumps(meant))
    assert main(scored) == 2
    said_once(capsys, str(again), "of another model than its description", "mlp")


def test_predict_and_embed_answer_what_they_can(
    sounds: Path, work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    strange = os.fsdecode(b"a 'b'\n\xff.wav")
    for name, source in ((strange, "bark 3.wav"), ("long.wav", "rain 3.wav")):
        shutil.copy(sounds / source, folder / name)
    (folder / "empty.wav").touch()
    good = [str(sounds / "alarm 0.wav"), str(folder / strange), str(folder / "long.wav")]
    given = [str(work), str(sounds / "alarm 0.wav"), str(folder)]
    model = datar_jax.load(work)
    wanted = {heard.path: heard for heard in predict_files(model, good)}

    events, tracks = tmp_path / "events.csv", tmp_path / "tracks"
    options = ["--top=3", "--onset=0.2", f"--events={events}", f"--audacity={tracks}"]
    for form in ("table", "jsonl", "csv"):
        assert main(["predict", *given, *options, f"--format={form}", f"--out={tmp_path / form}"]) == 1
        error = capfd.readouterr().err
        assert error.count("empty file") == 1 and f"{folder / 'empty.wav'}: empty file" in error
        assert "1 sound could not be used" in error
    table = (tmp_path / "table").read_text(encoding="utf-8")
    assert "a 'b'\\n\\udcff.wav  0:01.200" in table and "empty file" not in table
    rows = [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == sorted([*good, str(folder / "empty.wav")])
    with (tmp_path / "csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        told = {(row["path"], row["label"]): float(row["score"]) for row in read_csv(file)}
    assert len(told) == 9
    for row in rows:
        if "error" not in row:
            scores = dict(model.top_k(wanted[row["path"]].scores_S, 3))
            assert row["scores"] == pytest.approx(scores, abs=1e-6)
            assert {label: told[row["path"], label] for label in scores} == row["scores"]
    with events.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        counted = [row["path"] for row in read_csv(file)]
    assert counted and sorted(counted) == sorted(row["path"] for row in rows for _ in row.get("events", ()))
    assert {path.name for path in tracks.iterdir()} == {f"{Path(path).name}.txt" for path in good}
    assert sum(len(path.read_text().splitlines()) for path in tracks.iterdir()) == len(counted)

    sound = (sounds / "alarm 0.wav").read_bytes()
    for option in (f"--out={good[0]}", f"--events={tmp_path / 'new.flac'}"):
        assert main(["predict", *given, option]) == 2
        said_once(capfd, option)
    assert (sounds / "alarm 0.wav").read_bytes() == sound

    import pyarrow.parquet

    assert main(["embed", *given, f"--out={tmp_path / 'npy'}"]) == 1
    assert main(["embed", *given, f"--out={tmp_path / 'parquet'}", "--format=parquet"]) == 1
    clips, columns = (np.load(tmp_path / "npy" / f"{name}.npy") for name in ("clips", "columns"))
    with (tmp_path / "npy" / "columns.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        times = list(read_csv(file))
    assert clips.shape == (3, 8) and columns.shape == (len(times), 8)
    short = [row for row in times if row["path"] == good[0]]  # one window
    batch = {name: np.stack([row[name]]) for row in rows_of(model, good[0]) for name in row}
    alone = model.embed(batch)
    at = [i for i, row in enumerate(times) if row["path"] == good[0]]
    # A batch of another size is another program: rounding.
    np.testing.assert_allclose(columns[at], alone["columns"][0][: len(short)], atol=1e-5)
    np.testing.assert_allclose(clips[0], alone["clip"][0], atol=1e-5)
    assert [float(row["onset"]) for row in short] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5], abs=1e-9
    )  # of four 25 ms frames
    assert float(short[-1]["offset"]) == pytest.approx(0.6)
    stored = pyarrow.parquet.read_table(tmp_path / "parquet" / "clips.parquet").to_pylist()
    np.testing.assert_array_equal([row["embedding"] for row in stored], clips)
    assert any(row["path"].endswith("a 'b'\n\\xff.wav") for row in stored)
    assert pyarrow.parquet.read_table(tmp_path / "parquet" / "columns.parquet").num_rows == len(columns)

    picture = tmp_path / "look.png"
    assert main(["visualize", str(work), good[2], f"--out={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def rows_of(model: datar_jax.inference.classifier.AudioClassifier, path: str) -> list[dict[str, Any]]:
    from datar_jax.audio.recording import measure

    return list(measure(path, model.audio).windows([0], model.frames, model.input_kind))


def test_fine_tuning_states_what_it_took_and_outlives_its_source(
    sounds: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, exported = tmp_path / "source", tmp_path / "exported"
    shutil.copytree(work, source)
    assert main(["export", str(work), str(exported), "--format=safetensors"]) == 0
    log = loop._log

    def log_and_stop(report: Any, step: int, *rest: Any) -> None:
        log(report, step, *rest)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_log", log_and_stop)
    capsys.readouterr()
    losses, commands = [], []
    for origin in (exported, source):
        tuned = tmp_path / f"from {origin.name}"
        commands.append(training("finetune", sounds, tuned, init__from=str(origin), train__epochs="2"))
        assert train.main(commands[-1]) == 75
        told = capsys.readouterr().out
        for part in ("starts from", "parameters as they are", "head: 3 of 3 classes taken over", "newly made: nothing"):
            assert part in told, told
        losses.append(json.loads((tuned / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == losses[1]
    monkeypatch.setattr(loop, "_log", log)

    before = json.loads((tuned / "model.json").read_text())
    shutil.rmtree(source)
    assert train.main(commands[-1]) == 0, "it needs its source no more"
    assert json.loads((tuned / "model.json").read_text()) == before
    assert before["provenance"]["pretraining"]["from"] == f"{source} (step 1)"
    assert (before["mean_db"], before["std_db"]) == load_pretrained(work).description.normalization
    assert main(["export", str(tuned), str(tmp_path / "card")]) == 0
    card = (tmp_path / "card" / "README.md").read_text()
    assert f"pretraining: initialized from `{source} (step 1)`, trained on sounds without fold 1" in card
    capsys.readouterr()
    assert train.main(training("finetune", sounds, tmp_path / "new", init__from=str(source))) == 2
    assert f"init.from={str(source)!r}: {source}: no such file or folder" in capsys.readouterr().err


def test_an_export_on_a_full_disk_is_one_line_and_leaves_nothing(work: Path, tmp_path: Path) -> None:
    program = (
        "import resource, sys; from datar_jax.cli.main import main; import orbax.checkpoint;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
        "sys.exit(main(['export', sys.argv[2], sys.argv[3], '--format=params']))"
    )
    for size in (100, 1500):  # the first file is too large, or a later one
        given = [sys.executable, "-c", program, str(size), str(work), str(tmp_path / "out")]
        run = subprocess.run(given, check=False, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 2 and len(run.stderr.splitlines()) == 1, run.stderr
        assert run.stderr.startswith(f"datar-jax: error: {tmp_path / 'out'}") and "File too large" in run.stderr
        assert not list(tmp_path.iterdir())


def test_a_damaged_model_is_reported_by_name(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(work, tmp_path / name))

    numbered = copy("2024")  # a work directory that is called like a checkpoint
    assert load_pretrained(numbered).source == f"{numbered} (step 1)"
    assert find_model_info(numbered / "checkpoints" / "1") == find_model_info(numbered) == numbered / "model.json"

    sound = str(next(work.parent.joinpath("sounds").glob("*.wav")))
    damaged = copy("damaged")
    biggest = max((damaged / "checkpoints" / "1" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.write_bytes(content)
    assert main(["predict", str(damaged), sound]) == 2
    said_once(capsys, f"{damaged / 'checkpoints'}: no checkpoint can be read (step 1: ")

    text = (work / "model.json").read_text()
    for name, changed, said in (
        ("cut", text[:-20], "not a model description of this version"),
        ("later", text.replace("datar-jax 1", "datar-jax 2"), "not a model description of this version"),
        ("labels", text.replace('"rain"', '"rain", "dog"'), "model.num_classes=3: there are 4 labels"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.json").write_text(changed)
        assert main(["predict", str(folder), sound]) == 2
        said_once(capsys, str(folder / "model.json"), said)

    (tmp_path / "folds" / "fold_1").mkdir(parents=True)
    (tmp_path / "folds" / "fold_1" / "model.json").write_text(text)
    (tmp_path / "nothing").mkdir()
    for path, said in (
        (tmp_path / "folds", "holds 1 models, one a fold; give one of them"),
        (tmp_path / "folds" / "fold_1", "no checkpoint can be read (there is none yet)"),
        (tmp_path / "nothing", "neither a run's work directory nor an export"),
        (tmp_path / "none", "no such file or folder"),
        (Path(sound), "neither a run's work directory nor an export"),
    ):
        with pytest.raises(ModelError, match=re.escape(said)) as error:
            load_pretrained(path)
        assert str(path) in str(error.value)


def test_no_more_windows_than_columns() -> None:
    starts, _ = plan_windows(30, 10, 1 - 1e-12)
    assert starts.tolist() == list(range(21))
