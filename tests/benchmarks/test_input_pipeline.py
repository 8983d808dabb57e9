"""The parts of benchmarks/input_pipeline.py on a few short sounds: they run, and what is compared is the same."""

import os

import numpy as np
import pytest

from benchmarks import _input_stages as chain
from benchmarks import _sounds as sounds
from benchmarks import input_pipeline as input
from datar_jax.config import DataConfig
from datar_jax.data.prepare.encode import EncodeOptions
from datar_jax.data.readers import read_dataset

CLIPS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Short recordings, and their shards."""
    folder = tmp_path_factory.mktemp("input")
    sounds.record(folder / "sounds", CLIPS, 1.0)
    for coding in ("pcm", "flac"):
        sounds.shard(folder / "sounds", folder / coding, EncodeOptions(chain.HOST, coding))
    return folder / "sounds", folder


@pytest.fixture(scope="module")
def costs(made):
    """What the chain costs; the process is held to one core no longer than that."""
    before = os.sched_getaffinity(0)
    found = chain.measure(*made, rounds=1, clips=2)
    os.sched_setaffinity(0, before)
    return found


def test_every_contestant_is_timed(costs):
    assert all(cost >= 0 for cost in costs.spent.values())
    for origin in chain.ORIGINS:
        for front in chain.FRONT_ENDS:
            assert costs.whole(f"{origin} {front}") > 0
            there = {part for name, part in costs.spent if name == f"{origin} {front}"}
            features = {"mel"} if front == "host" else set()
            parts = {"read", "decode", *features} if origin != "cache" else set()
            assert there == {"batch", "transfer", *parts}
    # 500 frames: 200 sums by 257 cosines and 199 differences by 257 sines, each three times, and 128 filters
    assert costs.macs == 500 * 257 * (3 * (200 + 199) + 128)


def test_the_tables_say_what_was_found(costs, capsys, monkeypatch):
    spent = dict.fromkeys(costs.spent, 0.1) | {("plain", "batch"): 1.5}
    input.show_chain(costs._replace(spent=spent))
    told = capsys.readouterr().out
    # a batch and its way into jax: 0.2 ms
    assert "| pcm shards | host | 0.100 | 0.100 |  | 0.100 | -0.200 | 0.100 | 0.200 | 5,000 | **7.5** |" in told
    assert "missed with device." in told
    monkeypatch.setattr(input, "macs_per_clip", lambda *_: 1e10)
    input.show_cores(costs._replace(spent=spent), {"datar_tiny": 1000.0})
    rows = capsys.readouterr().out.splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ")[2:] for line in rows if line.startswith("| datar")}
    assert cells["| datar_tiny"] == ["1,000 (given)", "8,000", "1.3", "1.6", "1.6 |"]
    assert cells["| datar_small"][:2] == ["3,283 (peak)", "26,267"]
    assert cells["| datar_base"][:2] == ["554 (estimate)", "4,432"]


def test_chains_that_are_not_the_same_are_not_timed(made, monkeypatch):
    dataset, store = chain.opened(*made, "pcm", chain.HOST)
    files = [clip.path for clip in read_dataset(DataConfig(root=str(made[0]))).clips]
    chain.compare(dataset, store, files)
    monkeypatch.setattr(chain, "resample", lambda sound_N, rate: 1.1 * sound_N[:: int(rate) // 16_000])
    with pytest.raises(ValueError, match="dB apart"):
        chain.compare(dataset, store, files)


def test_rounds_take_turns_and_the_first_is_not_counted(monkeypatch):
    clock, seen = iter([0, 50, 50, 60, 100, 102, 102, 105]), []
    monkeypatch.setattr(chain.time, "process_time", lambda: next(clock))
    first, second = chain.over([1, 2, 3], 2, seen.append), chain.over([7], 1, seen.append)
    assert chain.interleaved({("a", ""): first, ("b", ""): second}, 1) == {("a", ""): 1000, ("b", ""): 3000}
    assert seen == [1, 2, 7, 3, 1, 7]


def test_long_lists_over_few_records_are_read_like_any(made):
    sounds.list_more(made[1] / "pcm", made[1] / "many", 40, 10)
    dataset = read_dataset(DataConfig(root=str(made[1] / "many"), kind="prepared"))
    assert len({clip.name for clip in dataset.clips}) == 50 and [c.split for c in dataset.clips].count("test") == 10
    few, few_store = chain.opened(made[0], made[1], "pcm", chain.HOST)
    _, store = chain.opened(made[0], made[1], "many", chain.HOST)
    np.testing.assert_array_equal(store.get(CLIPS + 3), few_store.get(3))
    assert dataset.clips[CLIPS + 3].labels == few.clips[3].labels


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_a_start_is_reported_in_seconds_and_megabytes(made):
    sounds.list_more(made[1] / "pcm", made[1] / "many", 40, 10)
    found = input.start(made[1] / "many")
    assert all(seconds >= 0 for seconds in found[:5]) and found.memory < 2_000


def test_the_pipeline_runs_with_threads(made):
    assert len(input.scaling(made[1], "device", 0, (1, 2), seconds=0.01)) == 2
    assert 0 < input.to_be_had(seconds=0.05) <= (os.cpu_count() or 1) + 0.5
