"""Spoiled files of models and data: a small run of fuzz_models.py, and what it calls broken."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.robustness import fuzz_models as fuzz
from benchmarks.robustness.spoil_models import KINDS, spoil_json, write_originals
from datar_jax.checkpoints.model_info import ModelError


@pytest.fixture(scope="module")
def small():
    return list(fuzz.run(120, seed=1))


def test_a_small_run_breaks_nothing(small):
    assert [each for each in small if each["result"] == fuzz.BROKEN] == []
    assert [each["kind"] for each in small] == [*KINDS] * 20
    for kind in KINDS:
        assert any(each["result"] == fuzz.REFUSED for each in small if each["kind"] == kind)
    assert any(each["result"] == fuzz.READ for each in small)


def test_every_original_is_read(tmp_path):
    for kind, path in write_originals(tmp_path).items():
        assert fuzz.outcome(kind, path, set()) == (fuzz.READ, "")


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (ModelError("PATH: wrong"), fuzz.REFUSED),
        (ModelError("wrong"), fuzz.BROKEN),
        (ModelError("PATH: wrong\nand more"), fuzz.BROKEN),
        (ValueError("PATH: wrong"), fuzz.BROKEN),
        (MemoryError(), fuzz.BROKEN),
    ],
)
def test_only_a_named_line_counts_as_refused(tmp_path, monkeypatch, error, result):
    error.args = tuple(text.replace("PATH", str(tmp_path)) for text in error.args)

    def read(*_):
        raise error

    monkeypatch.setattr(fuzz, "read", read)
    assert fuzz.outcome("npz", tmp_path, set())[0] == result


@pytest.mark.parametrize("program", ["os.abort()", "time.sleep(60)"])
def test_a_child_that_crashes_or_hangs_is_broken_there(monkeypatch, program):
    real = subprocess.Popen

    def other(_, **options):
        lines = "print('{\"ready\": true}', flush=True)"
        return real([sys.executable, "-c", f"import os, time; {lines}; {program}"], **options)

    monkeypatch.setattr(subprocess, "Popen", other)
    monkeypatch.setattr(fuzz, "SLOWEST", -4.5)
    found = list(fuzz.run(2, seed=0))
    assert [(each["kind"], each["result"]) for each in found] == [(kind, fuzz.BROKEN) for kind in KINDS[:2]]


def test_a_text_is_spoiled_by_the_seed():
    text = b'{"a": {"b": [1, 2, 3]}, "c": "d"}'
    made = [[spoil_json(text, np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
    assert made[0] == made[1] and len({*made[0], text}) > 10
