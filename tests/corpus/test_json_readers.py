"""Every reader of JSON meets every hostile text, and its own documents with each value replaced in turn."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datar_jax.checkpoints.integrity import BadCheckpoint, read_metadata, with_checksum
from datar_jax.checkpoints.model_info import MODEL_FILE, ModelError, ModelInfo, read_model_info
from datar_jax.checkpoints.provenance import MAX_CHAIN, DataProvenance, Metrics, Provenance, RunProvenance
from datar_jax.config import AudioConfig, Config, ConfigError, ModelConfig
from datar_jax.config.loader import read_stored
from datar_jax.data.prepared import DatasetInfo, Shard, read_card, read_statistics, summary
from datar_jax.export.model_card import model_card
from datar_jax.filesystem import storage_path
from datar_jax.labels import Head
from datar_jax.typed_json import JsonError, decode_json
from tests.corpus.json_texts import TEXTS, spoiled
from tests.hostile import irregular_files

FIRST = Provenance(source="runs/first", program="p", data=DataProvenance(kind="csv", name="first", clips={"train": 3}))
NUMBERS: Metrics = {
    "top1": 0.5,
    "clips": 8,
    "macs_per_clip": 1000,
    "roc_auc": None,
    "data": {"title": "sounds", "listed": 9},
}
INFO = ModelInfo(
    config=Config(model=ModelConfig(num_classes=2)),
    labels=("alarm", "bark"),
    head_sizes={"sound": 2},
    frames=100,
    mean_db=-40.0,
    std_db=10.0,
    structure="00000000",
    provenance=Provenance(
        program="datar-jax",
        data=DataProvenance(kind="csv", name="sounds", fold=1, clips_crc32=b"\0" * 8, clips={"test": 1}),
        run=RunProvenance(seed=0, epochs=1, steps=2),
        pretraining=FIRST,
        numbers=NUMBERS,
    ),
)


def model_json(path: Path) -> None:
    """Reads a description, and writes all that it says into a card."""
    info = read_model_info(path)
    model_card(info, 1, "params", "float32", {})


def metadata(path: Path) -> None:
    """Reads the metadata of checkpoint 3, with its own checksum as an attacker would write it."""
    with contextlib.suppress(ValueError, AttributeError, RecursionError, TypeError):
        if path.is_file():
            path.write_text(json.dumps(with_checksum(json.loads(path.read_bytes()))))
    try:
        read_metadata(path.parents[2], 3)
    except BadCheckpoint as error:
        raise ModelError(f"{path}: {error}") from None


def prepared(path: Path) -> None:
    """Reads the index and the statistics of prepared data."""
    folder = storage_path(str(path.parent), "data.root")
    summary(read_card(folder))
    read_statistics(folder, AudioConfig(), ["train"])


def statistics(path: Path) -> None:
    """Statistics that cannot be used are computed again."""
    found = read_statistics(storage_path(str(path.parent), "data.root"), AudioConfig(), ["train"])
    if not found:
        raise ConfigError(f"{path}: none")
    assert all(map(math.isfinite, found))


CARD = DatasetInfo(
    format=1,
    corpus="esc50",
    title="ESC-50",
    terms="none",
    labels="single",
    heads=(Head("", ("alarm", "bark")),),
    sample_rate=16_000,
    coding="pcm",
    listed=2,
    here=2,
    missing=0,
    unreadable=0,
    clips_sha256="0",
    lists={"esc50.csv": "0"},
    shards=(Shard("part-00000.array_record", 2, 100, "0"),),
)
META = with_checksum(
    {
        "step": 3,
        "data": {"next_batch": 3, "seed": 0},
        "run": {"train_seconds": 1.5},
        "score": 0.5,
        "leaves": {"params/head/kernel": {"shape": [8, 2], "dtype": "float32", "crc": {"0:8,0:2": 1}}},
    }
)
READERS: dict[str, tuple[Callable[[Path], Any], str, Any]] = {  # how a file is read, its name, what it may hold
    "model.json": (model_json, MODEL_FILE, json.loads(msgspec.json.encode(INFO))),
    "config.json": (read_stored, "config.json", msgspec.to_builtins(Config())),
    "metadata": (metadata, "checkpoints/3/meta/metadata", META),
    "corpus.json": (prepared, "corpus.json", json.loads(msgspec.json.encode(CARD))),
    "statistics.json": (
        statistics,
        "statistics.json",
        {
            "audio": msgspec.to_builtins(AudioConfig()),
            "parts": {"train": {"count": 4, "total": -160.0, "squares": 6500.0}},
        },
    ),
}
ERRORS = (ModelError, ConfigError)  # what the commands print as one line


def answer(reader: str, path: Path) -> str:
    """The error of a reader, empty without one; anything but one short line that names the file fails the test."""
    try:
        READERS[reader][0](path)
    except ERRORS as error:
        line = str(error)
        assert str(path) in line and line.isprintable() and len(line) < 1000, line
        return line
    return ""


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_hostile_text_is_one_line(tmp_path: Path, reader: str, text: str) -> None:
    path = tmp_path / READERS[reader][1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(TEXTS[text])
    if not answer(reader, path):
        assert text == "object", "an empty object may stand for what has a default everywhere"


@pytest.mark.parametrize("reader", READERS)
def test_any_value_in_any_place_is_one_line_or_is_taken(tmp_path: Path, reader: str) -> None:
    path = tmp_path / READERS[reader][1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(READERS[reader][2]))
    assert answer(reader, path) == "", "the document itself is valid"
    refused = 0
    for _, content in list(spoiled(READERS[reader][2]))[::3]:
        path.write_bytes(content)
        refused += bool(answer(reader, path))
    assert refused > 20


CHAIN: dict[str, Any] = {}
for _ in range(MAX_CHAIN + 1):
    CHAIN = {"pretraining": CHAIN}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *(({"frames": frames}, f"frames={frames}: a window has 1 to") for frames in (0, -1, 1 << 17, 1 << 62)),
        *(({"mean_db": decibels}, "no mean and deviation of decibels") for decibels in (1e300, -1001.0)),
        *(({"std_db": decibels}, "no mean and deviation of decibels") for decibels in (1e300, 0.0, -10.0)),
        ({"labels": [], "heads": {}}, "do not add up to the 0 labels"),
        ({"labels": ["alarm"], "heads": {}}, "there are 1 labels"),
        *(({"heads": heads}, "do not add up to the 2 labels") for heads in ({"a": 1}, {"a": 3, "b": -1})),
        ({"provenance": CHAIN}, "a chain of more than 32 models"),
        ({"provenance": {"numbers": {"top1": 0.5, "clips": 1}}}, "without the numbers clips and macs_per_clip"),
        ({"provenance": {"data": {"clips_crc32": "AAA="}}}, "not four bytes for each clip"),
    ],
)
def test_a_description_of_no_model_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    (tmp_path / MODEL_FILE).write_text(json.dumps({**READERS["model.json"][2], **change}))
    assert named in answer("model.json", tmp_path / MODEL_FILE)


def test_a_checksum_of_an_unknown_name_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / MODEL_FILE
    checksums = {"fields": {"\x1b[31m\n" + "y" * 10_000: "00000000"}}
    path.write_text(json.dumps({**READERS["model.json"][2], "checksums": checksums}))
    assert "is missing since it was written" in answer("model.json", path)


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(tmp_path: Path, reader: str) -> None:
    with irregular_files(tmp_path / "files") as files:
        for file in files:
            path = tmp_path / file.stem / READERS[reader][1]
            path.parent.mkdir(parents=True)
            path.symlink_to(file)
            assert answer(reader, path)


@pytest.mark.parametrize("text", [name for name in TEXTS if name not in ("object", "lists")])
def test_the_typed_reader_refuses_a_hostile_text(text: str) -> None:
    with pytest.raises(JsonError) as error:
        decode_json(TEXTS[text], dict[str, float])
    assert str(error.value) and len(str(error.value)) < 400 and str(error.value).isprintable()


def test_the_typed_reader_names_the_field_and_reads_what_is_valid() -> None:
    with pytest.raises(JsonError, match=r"Expected `float`, got `str` - at `\$\[\.\.\.\]`"):
        decode_json(b'{"a": "1"}', dict[str, float])
    with pytest.raises(JsonError, match="the name 'a' stands twice"):
        decode_json(b'{"a": 1, "a": 1}', dict[str, float])
    assert decode_json(b'{"b": {"b": [1]}}', dict[str, Any], lambda tree: tree["b"]) == {"b": [1]}
