"""Small files of models and data of every kind, and ways to spoil them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import soundfile

from benchmarks._sounds import shard
from benchmarks.robustness.flip_exports import write_model
from datar_jax import config as c
from datar_jax.checkpoints.integrity import with_checksum
from datar_jax.checkpoints.manager import CheckpointManager
from datar_jax.checkpoints.model_info import MODEL_FILE, Checksums, read_model_info, write_model_info
from datar_jax.checkpoints.pretrained import SAFETENSORS, load_pretrained
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.data.prepared import CARD, MANIFEST, STATISTICS
from tests.corpus.official_files import as_pth, official_shapes, published, random_weights

KINDS = ("npz", "pth", "safetensors", "model.json", "checkpoint", "shard")
NUMBERS = (None, True, "", "a/b", "\x1b[31m", -1, 0, 0.5, 1e300, 1 << 62, 1 << 70, 10**300, [], {}, [[]] * 99)
RATE = 8_000  # Hz


class State(NamedTuple):
    """The least that a checkpoint holds."""

    step: Any
    params: Any


def write_originals(folder: Path) -> dict[str, Path]:
    """One whole file or folder of each kind, which its reader takes."""
    weights = random_weights(official_shapes(published(), (32, 32), 3))
    weights = {name: value.round(1) for name, value in weights.items()}  # which compresses, unlike noise
    np.savez_compressed(folder / "official.npz", **weights)
    as_pth(folder / "official.pth", weights)
    export = write_model(folder / "export")
    info = msgspec.structs.replace(read_model_info(export / MODEL_FILE), checksums=Checksums())
    write_model_info(export / MODEL_FILE, info)
    run = folder / "run"
    write_model_info(run / MODEL_FILE, info)
    manager = CheckpointManager(run / "checkpoints")
    params = jax.tree.map(jnp.asarray, load_pretrained(export).params)
    manager.save(State(jnp.int32(1), params), {"next_batch": 1}, {"train_seconds": 1.0}, 0.5)
    manager.finish()
    manager.close()
    for i in range(6):
        path = folder / "sounds" / ("bell", "rain")[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(i).uniform(-0.5, 0.5, RATE // 2), RATE)
    shard(folder / "sounds", folder / "prepared", EncodeOptions(c.AudioConfig(sample_rate=RATE), "flac"))
    return {
        "npz": folder / "official.npz",
        "pth": folder / "official.pth",
        "safetensors": export,
        "model.json": export,
        "checkpoint": run,
        "shard": folder / "prepared",
    }


def spoil(kind: str, path: Path, rng: np.random.Generator) -> str:
    """Spoils one file of a copy of an original; returns its name."""
    if kind in ("npz", "pth"):
        _spoil_archive(path, rng)
        return path.name
    name = {"safetensors": SAFETENSORS, "model.json": MODEL_FILE}.get(kind, "")
    inside = path / "checkpoints" / "1" if kind == "checkpoint" else path
    names = sorted(each for each in inside.rglob("*") if each.is_file() and "parts" not in each.parts)
    # The texts of a folder as often as all else in it.
    texts = [each for each in names if each.name in (CARD, MANIFEST, STATISTICS, "metadata", "_METADATA")]
    some = texts if texts and rng.integers(2) else names
    file = path / name if name else some[rng.integers(len(some))]
    content = file.read_bytes()
    if rng.integers(2):
        file.write_bytes(spoil_bytes(content, rng))
    elif name == SAFETENSORS:
        size = int.from_bytes(content[:8], "little")
        text = spoil_json(content[8 : 8 + size], rng)
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    else:
        text = spoil_json(content, rng)
        file.write_bytes(_signed(text) if file.name == "metadata" else text)
    return file.name


def spoil_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one of seven kinds of damage."""
    start, stop = sorted(rng.integers(len(content) + 1, size=2).tolist())
    stop = min(stop, start + 64) if rng.integers(2) else stop
    begin, span, end = content[:start], content[start:stop], content[stop:]
    way = rng.integers(7)
    if way == 0:
        changed = bytearray(content)
        for at in rng.integers(len(content), size=rng.integers(1, 9)) if content else ():
            changed[at] = rng.integers(256)
        return bytes(changed)
    ways = [b"", span + span, bytes(len(span)), b"\xff" * len(span), rng.bytes(16)]
    return begin if way == 1 else begin + ways[way - 2] + end


def spoil_json(content: bytes, rng: np.random.Generator) -> bytes:
    """A JSON text with an odd value in the place of one of its values, or without it; any other text as bytes."""
    try:
        tree = json.loads(content)
    except ValueError:
        return spoil_bytes(content, rng)
    node, places = tree, []
    while isinstance(node, dict | list) and node:
        name = list(node)[rng.integers(len(node))] if isinstance(node, dict) else int(rng.integers(len(node)))
        places.append((node, name))
        node = node[name]
    if places:
        inner, name = places[rng.integers(len(places))]
        value = NUMBERS[rng.integers(len(NUMBERS))]
        if rng.integers(4):
            inner[name] = value
        elif isinstance(inner, dict) and rng.integers(2):
            inner["x" * int(rng.integers(9))] = inner.pop(name)
        else:
            del inner[name]
    return json.dumps(tree).encode()


def _signed(text: bytes) -> bytes:
    """Metadata of a checkpoint under its own checksum, as an attacker would write it."""
    try:
        return json.dumps(with_checksum(json.loads(text))).encode()
    except (ValueError, AttributeError):
        return text


def _spoil_archive(path: Path, rng: np.random.Generator) -> None:
    """Spoils an archive as a file, or one of its members under a checksum that is right."""
    if rng.integers(3) == 0:
        path.write_bytes(spoil_bytes(path.read_bytes(), rng))
        return
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        method = archive.infolist()[0].compress_type
    names = list(members)
    pickles = [name for name in names if name.endswith("data.pkl")]
    name = pickles[0] if pickles and rng.integers(4) else names[rng.integers(len(names))]
    way = rng.integers(4)
    if way == 0:
        members[f"{name[: rng.integers(1, len(name) + 1)]}{NUMBERS[rng.integers(5)]}"] = members.pop(name)
    elif way == 1 and name.endswith(".npy"):  # another header over the same numbers
        shape = tuple(int(n) for n in rng.choice([0, 1, 3, 32, 1 << 20, 1 << 40], size=rng.integers(5)))
        text = io.BytesIO()
        np.lib.format.write_array_header_1_0(text, {"descr": "<f4", "fortran_order": False, "shape": shape})
        members[name] = text.getvalue() + members[name][128:]
    elif way == 2 and name.endswith(".npy"):  # an array of another shape
        text = io.BytesIO()
        np.save(text, np.zeros(rng.choice([0, 1, 2, 8, 32], size=rng.integers(5)).tolist(), np.float32))
        members[name] = text.getvalue()
    else:
        members[name] = spoil_bytes(members[name], rng)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
