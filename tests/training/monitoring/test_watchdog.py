"""A loop that stands still is heard, one that moves is not."""

from __future__ import annotations

import threading
from pathlib import Path

from datar_jax.training.monitoring.profiler import ProfilerWindow
from datar_jax.training.monitoring.watchdog import Watchdog


def test_a_stage_that_lasts_is_named_and_named_again_at_twice_the_time() -> None:
    said, twice = [], threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            twice.set()

    with Watchdog(0.05, say) as watch:
        watch.stage("a batch of 2 reading processes")
        assert twice.wait(30)
    assert all(line.endswith("s: waiting for a batch of 2 reading processes") for line in said)


def test_a_loop_that_moves_is_silent() -> None:
    said: list[str] = []
    over = threading.Event()
    with Watchdog(5.0, said.append) as watch:
        for i in range(20):
            watch.stage(f"step {i}")
            over.wait(0.01)
        watch.stage("")
    assert not said and "watch" not in {thread.name for thread in threading.enumerate()}


def test_a_first_step_may_take_longer() -> None:
    """Of two watches the patient one has not spoken when the other has."""
    said: list[str] = []
    spoken = threading.Event()
    with (
        Watchdog(0.05, lambda line: (said.append("quick"), spoken.set())) as quick,
        Watchdog(0.05, lambda line: said.append("patient")) as patient,
    ):
        patient.stage("the first step", times=1e6)
        quick.stage("a batch")
        assert spoken.wait(30)
    assert "patient" not in said


def test_a_run_too_short_for_a_profile_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    ProfilerWindow(tmp_path, said.append).close()
    assert said == ["no profile: fewer than 6 steps were left to do"]
    ProfilerWindow(None, said.append).close()
    assert len(said) == 1 and not list(tmp_path.iterdir())
