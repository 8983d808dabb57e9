"""Flips single bits in every file of every export format and counts what is then answered.

    python benchmarks/robustness/flip_exports.py [--flips=2000] [--seed=0]

A flipped bit must be refused in one line that names the export, or change no answer: labels and scores of one clip, bit
for bit. Anything else is printed, and the exit status is 1. What is flipped depends on the seed alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import msgspec

from benchmarks._settings import header, row
from datar_jax import config as c
from datar_jax.checkpoints.model_info import MODEL_FILE, Checksums, ModelError, ModelInfo, write_model_info
from datar_jax.checkpoints.pretrained import SAFETENSORS, load_pretrained, structure_checksum
from datar_jax.checkpoints.safetensors import save_safetensors
from datar_jax.cli.options import quiet_libraries
from datar_jax.data.synthetic_sounds import render
from datar_jax.export.exporter import export
from datar_jax.inference.classifier import AudioClassifier
from datar_jax.models.spec import ModelSpec

FORMATS = ("params", "safetensors", "stablehlo", "onnx")
RATE, FRAMES = 8_000, 33
REFUSED, SAME, ELSE = "refused", "same answer", "else"


class Flip(NamedTuple):
    """One bit of one file of an export."""

    form: str
    file: Path  # below the folder of the export
    bit: int


def write_model(folder: Path, labels: tuple[str, ...] = ("bell", "rain", "saw"), seed: int = 0) -> Path:
    """Writes the weights of a small untrained model, from which `export` makes the other formats."""
    deformable = c.DeformableSettings(groups=(2,), strides=(2,), kernels=(3,))
    model = c.ModelConfig(dims=(8,), spec=("D",), heads=(2,), deformable=deformable, num_classes=len(labels))
    audio = c.AudioConfig(sample_rate=RATE, n_mels=32, window_ms=25.0, hop_ms=10.0)
    config = c.Config(audio=audio, model=model, data=c.DataConfig(window_seconds=0.33))
    mel = jax.ShapeDtypeStruct((1, audio.n_mels, FRAMES), jnp.float32)
    spec = ModelSpec(config, len(labels), FRAMES, 1)
    shapes = jax.eval_shape(spec.model(train=False).init, jax.random.key(0), mel)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    folder.mkdir()
    checksums = Checksums(weights=save_safetensors(folder / SAFETENSORS, params, "float32"))
    info = ModelInfo(config=config, labels=labels, frames=FRAMES, mean_db=-31.0, std_db=17.0, checksums=checksums)
    info = msgspec.structs.replace(info, structure=structure_checksum(info, params))
    write_model_info(folder / MODEL_FILE, info)
    return folder


def write_exports(folder: Path) -> dict[str, Path]:
    """Exports a small model in every format whose writer is installed."""
    source = write_model(folder / "source")
    forms = [form for form in FORMATS if form != "onnx" or importlib.util.find_spec("jax2onnx")]
    for form in forms:
        export(source, folder / form, form)
    return {form: folder / form for form in forms}


def draw_flips(exports: dict[str, Path], count: int, seed: int) -> Iterator[Flip]:
    """Bits to flip: formats in turn, of each its files in turn, of each file any bit."""
    rng = np.random.default_rng(seed)
    files = {form: sorted(path for path in out.rglob("*") if path.is_file()) for form, out in exports.items()}
    for i in range(count):
        form = list(exports)[i % len(exports)]
        path = files[form][i // len(exports) % len(files[form])]
        if size := path.stat().st_size:
            yield Flip(form, path.relative_to(exports[form]), int(rng.integers(8 * size)))


class Answers:
    """Labels and scores of one clip; models that were read as the same bytes are compiled once."""

    def __init__(self) -> None:
        self.clip = render("bark", np.random.default_rng(0), 0.5, RATE)
        self._known: dict[bytes, Any] = {}

    def __call__(self, folder: Path) -> tuple[tuple[str, ...], bytes]:
        """Loads an export and scores the clip."""
        saved = load_pretrained(folder)
        digest = hashlib.sha256(msgspec.json.encode(saved.description))
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved.params):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
        digest.update(saved.read_program() if saved.program else b"")
        if digest.digest() not in self._known:
            model = AudioClassifier(saved)
            self._known[digest.digest()] = model.labels, model(self.clip, RATE).tobytes()
        return self._known[digest.digest()]


def outcome(folder: Path, flip: Flip, answers: Answers, expected: Any) -> tuple[str, str]:
    """What becomes of an export with one bit flipped, and the error or what is wrong with it."""
    path = folder / flip.file
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[flip.bit // 8] ^= 1 << flip.bit % 8
    path.write_bytes(flipped)
    try:
        answer = answers(folder)
    except ModelError as error:
        text = str(error)
        return (REFUSED, text) if str(folder) in text and "\n" not in text else (ELSE, f"an error of no name: {text}")
    except Exception as error:  # what a user would see as a traceback
        return ELSE, f"{type(error).__name__}: {error}"
    finally:
        path.write_bytes(content)
    return (SAME, "") if answer == expected else (ELSE, "another answer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    start, slowest = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():  # as the commands do
        exports, answers = write_exports(Path(folder)), Answers()
        expected = {form: answers(out) for form, out in exports.items()}
        for flip in draw_flips(exports, given.flips, given.seed):
            began = time.perf_counter()
            kind, text = outcome(exports[flip.form], flip, answers, expected[flip.form])
            slowest = max(slowest, time.perf_counter() - began)
            counts[flip.form, kind] += 1
            if kind == ELSE:
                print(f"BROKEN: {flip.form}/{flip.file} bit {flip.bit}: {text}")
    print(header(["format", "flips", REFUSED, SAME, ELSE]))
    for form in exports:
        cells = [counts[form, kind] for kind in (REFUSED, SAME, ELSE)]
        print(row(form, sum(cells), *cells))
    print(f"\n{counts.total()} flips in {time.perf_counter() - start:.0f} s, at most {slowest:.1f} s for one")
    return int(any(kind == ELSE for _, kind in counts))


if __name__ == "__main__":
    sys.exit(main())
