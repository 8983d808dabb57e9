"""Corrupt files through the real pipeline: a small run of fuzz_audio.py, and its laws against what breaks them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from benchmarks.robustness import fuzz_audio as fuzz
from benchmarks.robustness.corrupt_audio import KINDS, REFUSED, USED, Made, make, seal_ogg


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    made = make(folder / "sounds", 64, seed=1)
    return made, fuzz.run(folder / "sounds", folder / "cache", len(made))


def test_a_small_run_breaks_no_law(small):
    made, found = small
    assert fuzz.broken_laws(made, found) == []
    assert {each.kind for each in made} == set(KINDS)
    assert sum(each.fate == USED for each in made) >= 16 and sum(each.fate == REFUSED for each in made) >= 16
    assert len(found["bad"]) + len(fuzz.used(found)) == 64


def test_the_same_seed_writes_the_same_files(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / name, 32, seed=3)
    contents = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("a", "b")
    ]
    assert contents[0] == contents[1] and len(contents[0]) > 20


def test_a_checksum_of_ogg_is_the_one_that_libsndfile_writes(tmp_path):
    soundfile.write(tmp_path / "a.ogg", np.random.default_rng(0).uniform(-1, 1, 40_000), 16_000)
    content = (tmp_path / "a.ogg").read_bytes()
    assert content.count(b"OggS") > 2
    sealed = bytearray(content)
    seal_ogg(sealed)
    assert sealed == content


DOCTORED = {
    "every file is a clip": lambda made, found: found["clips"].__setitem__(0, "bell/another.wav"),
    "every clip is used or has a reason": lambda made, found: found["bad"].pop(),
    "the report has one line for each": lambda made, found: found.update(report="\n" + found["report"]),
    "no line of the report": lambda made, found: found.update(report=found["report"][:-1] + "\x1b"),
    "intact files are used": lambda made, found: found["frames"].__setitem__(place(made, found, USED), 0),
    "unusable files are refused": lambda made, found: found["frames"].__setitem__(place(made, found, REFUSED), 9),
    "every used clip": lambda made, found: found["seen"].pop(),
    "spectrograms and statistics": lambda made, found: found.update(finite=False),
    "a second call": lambda made, found: found.update(kept=False),
    "nothing is executed": lambda made, found: found.update(executed=["os.system"]),
    "no file takes longer": lambda made, found: found.update(slowest=99.0),
    "memory grows": lambda made, found: found.update(growth=1000.0),
    "no crash": lambda made, found: found.update(died="exit status -11", done=3),
}


def place(made, found, fate):
    return found["clips"].index(next(each.name for each in made if each.fate == fate))


@pytest.mark.parametrize("law", DOCTORED)
def test_each_law_can_be_broken(small, law):
    made, found = small[0], json.loads(json.dumps(small[1]))
    DOCTORED[law](made, found)
    assert any(line.startswith(law) for line in fuzz.broken_laws(made, found))


def test_every_law_is_among_those_that_were_broken():
    assert all(any(law.startswith(begin) for begin in DOCTORED) for law in fuzz.LAWS)


@pytest.mark.parametrize(
    ("program", "reason"),
    [("import os; os.abort()", "exit status -6"), ("import time; time.sleep(60)", "not done after 0 s")],
)
def test_a_child_that_crashes_or_hangs_is_reported(tmp_path, monkeypatch, program, reason):
    real = subprocess.run

    def other(command, **options):
        options["timeout"] = 0.4 if "sleep" in program else 60
        return real([sys.executable, "-c", f"print(1, flush=True); {program}"], **options)

    monkeypatch.setattr(subprocess, "run", other)
    monkeypatch.setattr(fuzz, "LIMIT", (0, 0.4))
    found = fuzz.run(tmp_path, tmp_path / "cache", 1)
    assert found["died"].startswith(reason)
    (line,) = fuzz.broken_laws([Made("bell/a.wav", "intact", USED)], {**found, "done": 0})
    assert "bell/a.wav" in line
