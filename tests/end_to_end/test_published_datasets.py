"""Every published data set from its official rows: lists, sounds, prepare, two training steps, evaluation."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

import train
from datar_jax.cli.main import main
from datar_jax.data.datasets import CORPORA
from datar_jax.data.synthetic_sounds import render
from datar_jax.escaping import from_csv_cell
from tests.data.datasets.published_lists import LISTS, put
from tests.end_to_end.small_run import TINY

pytestmark = pytest.mark.usefixtures("quick_compiles")

RATE = 8_000
# Clips of which no sound is made: one that begins an hour into its recording, one that is listed and nowhere.
UNREADABLE, MISSING = {"epic_kitchens": 1}, {"vggsound": 1}


def make_sounds(name: str, lists: Path, audio: Path) -> None:
    """A file for each clip under the first name that it may have; recordings last some seconds longer than asked."""
    ends: dict[str, float] = {}
    segments = CORPORA[name].read(lists).segments
    for number, segment in enumerate(segments[: len(segments) - MISSING.get(name, 0)]):
        whole = name.startswith("epic")
        stem = (segment.whole if whole else segment.cut)[0]
        long = segment.end + 2 if whole and segment.end < 600 else 1.0
        ends[stem] = max(long, ends.get(stem, 0))
        path = audio / f"{stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = render("bark" if number % 2 else "rain", np.random.default_rng(number), ends[stem], RATE)
        soundfile.write(path, sound, RATE)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "esc50" else pytest.mark.slow) for n in sorted(CORPORA)]
)
def test_from_the_rows_to_a_score(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, audio, out, workdir = (tmp_path / part for part in ("lists", "audio", "prepared", "run"))
    put(lists, LISTS[name])
    make_sounds(name, lists, audio)
    config = Path(__file__).parent.parent.parent / "configs" / f"{name}.py"
    small = {field: value for field, value in TINY.items() if not field.startswith("train")}
    front = [f"--config.{field}={value}" for field, value in small.items()]
    order = ["prepare", name, f"--lists={lists}", f"--audio={audio}", f"--out={out}", f"--config={config}", *front]
    assert main([*order, "--workers=1"]) == 0, capsys.readouterr().err
    listed = CORPORA[name].read(lists).segments
    here = len(listed) - UNREADABLE.get(name, 0) - MISSING.get(name, 0)
    assert f"{here} of {len(listed)} listed clips are here" in capsys.readouterr().out
    with (out / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [from_csv_cell(row["id"]) for row in rows] == [segment.id for segment in listed], (
        "every listed clip has its row"
    )

    there = [row for row in rows if row["status"] == "here"]
    test = [row for row in there if (row["fold"] == "1" if row["fold"] else row["split"] == "test")]
    learned = [row for row in there if (row["fold"] != "1" if row["fold"] else row["split"] == "train")]
    fields = {**small, "data.kind": "prepared", "data.root": str(out), "data.window_seconds": "1"}
    steps = {"train.epochs": str(math.ceil(16 / len(learned))), "train.batch_size": "8", "train.eval_batch_size": "8"}
    given = [f"--config.{field}={value}" for field, value in {**fields, **steps}.items()]
    assert train.main([f"--config={config}", f"--workdir={workdir}", *given]) == 0, capsys.readouterr().err
    assert f"{here} of {len(listed)} clips, SHA-256" in capsys.readouterr().out.replace("\n", " "), "beside the score"
    result = json.loads((workdir / "result.json").read_text())
    assert result["clips"] == len(test)
    assert result["steps"] == 2
    assert math.isfinite(result["loss"])
    assert result["data"]["here"] == here
    assert result["data"]["clips_sha256"] == json.loads((out / "corpus.json").read_text())["clips_sha256"]
