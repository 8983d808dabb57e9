"""A command that is refused changes nothing in the work directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

import train
from datar_jax.checkpoints.integrity import with_checksum
from datar_jax.checkpoints.pretrained import load_pretrained
from datar_jax.locks import locked_folder
from tests.end_to_end.small_run import command, content_of, swap_files

pytestmark = pytest.mark.usefixtures("quick_compiles")


def make_of_another_head(run: Path, _: Path) -> None:
    """The checkpoints become those of a model with a class more."""
    for path in run.glob("checkpoints/*/meta/metadata"):
        metadata = json.loads(path.read_bytes())
        del metadata["crc"]
        metadata["leaves"]["params/head/kernel"]["shape"][-1] += 1
        path.write_text(json.dumps(with_checksum(metadata)))


def make_unreadable(run: Path, _: Path) -> None:
    """Every file of every state is emptied."""
    for path in run.glob("checkpoints/*/state/**/*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "fields", "said"),
    [
        (lambda run, data: (data / "bark").rename(data / "wolf"), {}, "no class 'bark' and a new class 'wolf'"),
        (lambda run, data: shutil.rmtree(data / "bark"), {}, "model.num_classes=2"),
        (
            lambda run, data: swap_files(data / "bark/bark_01.wav", data / "rain/rain_01.wav"),
            {},
            "2 clips (bark/bark_0",
        ),
        (lambda run, data: (data / "rain/rain_05.wav").unlink(), {}, "1 clip (rain/rain_05.wav) missing"),
        (lambda run, data: (data / "rain/rain_05.wav").write_bytes(b"no sound"), {}, "(rain/rain_05.wav) with another"),
        (lambda run, data: None, {"optim__learning_rate": "0.5"}, "optim.learning_rate=0.5"),
        (lambda run, data: None, {"data__test_fraction": "0.5"}, "data.test_fraction=0.5"),
        (lambda run, data: None, {"audio__sample_rate": "16000"}, "audio.sample_rate=16000"),
        (lambda run, data: None, {"mesh__fsdp": "3"}, "mesh.fsdp=3"),
        (lambda run, data: None, {"train__eval_batch_size": "7"}, "train.eval_batch_size=7"),
        (lambda run, data: None, {"data__root": "nowhere"}, "nowhere"),
        (lambda run, data: (run / "data.identity").write_bytes(b"?"), {}, "data.identity: not readable"),
        (lambda run, data: (run / "config.json").write_bytes(b"{"), {}, "run/config.json: "),
        (make_of_another_head, {}, "of another model: params/head/kernel"),
        (make_unreadable, {}, "no checkpoint can be read"),
    ],
)
def test_a_command_that_is_refused_changes_no_byte_of_the_work_directory(
    finished: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Any,
    fields: dict[str, str],
    said: str,
) -> None:
    run, data = (Path(shutil.copytree(finished / name, tmp_path / name)) for name in ("run", "sounds"))
    (run / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()  # of a run that was killed
    change(run, data)
    before = content_of(run)
    capfd.readouterr()
    assert train.main(command("folder", run, **{"data__root": str(data), **fields})) == 2
    errors = capfd.readouterr().err.splitlines()
    assert said in errors[-1] and len(errors) == 1
    assert content_of(run) == before


def test_a_second_run_in_a_work_directory_is_refused_and_the_holder_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    arguments = command("folder", run, data__root=str(finished / "sounds"))
    with locked_folder(run):
        before = content_of(run)
        assert train.main(arguments) == 2
        assert f"{run}: another process ({os.getpid()} on " in capsys.readouterr().err
        assert content_of(run) == before
        load_pretrained(run)  # readers are not blocked
    (run / ".lock").write_text("1 on a host that is gone")  # left by a killed process
    capsys.readouterr()
    assert train.main([*arguments, "--config.optim.learning_rate=0.5"]) == 2
    assert "optim.learning_rate" in capsys.readouterr().err and not (run / ".lock").exists()


def test_a_missing_backend_leaves_the_work_directory_as_it_is(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise RuntimeError("no such backend")

    monkeypatch.setattr(jax, "devices", missing)
    before = content_of(finished / "run")
    assert train.main(command("folder", finished / "run", data__root=str(finished / "sounds"))) == 2
    assert "jax cannot start this backend" in capsys.readouterr().err and content_of(finished / "run") == before
