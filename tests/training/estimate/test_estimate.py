"""The plan for a slice that is not there: programs read from their text, a roofline by hand, one real compile."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import pytest

from datar_jax import config as c
from datar_jax.cli import estimate as plan_command
from datar_jax.cli import main as command
from datar_jax.config import loader as settings
from datar_jax.models.flops import macs_per_clip
from datar_jax.training.estimate import estimate as plan
from datar_jax.training.estimate import hlo_cost as hlo
from datar_jax.training.estimate import report, roofline
from datar_jax.training.estimate.hlo_cost import Collective
from datar_jax.training.estimate.topology import topology
from datar_jax.training.monitoring.accelerators import CHIPS
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_step import abstract_state

ROOT = Path(__file__).parent.parent.parent.parent
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-bench.txt)"
)


@pytest.mark.parametrize(
    "kind, sent", [("all-reduce", 1500), ("all-gather", 750), ("reduce-scatter", 750), ("collective-permute", 1000)]
)
def test_bytes_around_a_ring_of_four(kind: str, sent: float) -> None:
    assert Collective(kind, 4, 1000).sent == sent
    assert Collective(kind, 1, 1000).sent == 0


def test_roofline_by_hand() -> None:
    chip = CHIPS["v5e"]
    times = roofline.roofline(chip, 100e9, 197e9, 819e6 * 3, 50e6)
    assert (times.compute, times.memory, times.links) == pytest.approx((1e-3, 3e-3, 0.5e-3))
    assert times.step == pytest.approx(3.5e-3)
    assert times.bound == "memory"
    assert roofline.roofline(chip, 100e9, 197e9 * 4, 819e6 * 3, 50e6).step == pytest.approx(4.5e-3)
    assert roofline.roofline(chip, 100e9, 197e9, 819e6, 500e6).bound == "links"
    assert roofline.roofline(chip, 0.0, 197e9, 0.0, 0.0).step == pytest.approx(1e-3)


def test_the_largest_batch() -> None:
    assert roofline.largest_batch(100, (10, 30), (20, 50)) == 45
    assert roofline.largest_batch(100, (20, 50), (10, 30)) == 45
    assert roofline.largest_batch(99, (10, 30), (0, 10)) == 44
    assert roofline.largest_batch(5, (10, 30), (20, 50)) == 0


def test_the_size_of_a_refusal() -> None:
    """Texts of the compiler."""
    refusal = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.84G) "
    assert plan.needed(refusal + "exceeds available HBM (15.75G).") == int(26.84 * 2**30)
    assert plan.needed("RESOURCE_EXHAUSTED: Used 512.50M of 15.75G hbm.") == int(512.5 * 2**20)
    with pytest.raises(ValueError, match="without a size"):
        plan.needed("RESOURCE_EXHAUSTED: something else")


@pytest.mark.parametrize(
    "name, share",
    [
        ("v5e:1x1", 0),
        ("v5e:2x2", 1 / 2),
        ("v5e:4x4", 1 / 2),
        ("v5e:8x16", 3 / 4),
        ("v6e:16x16", 1),
        ("v5p:2x2x1", 1 / 3),
        ("v4:2x4x4", 1 / 2),
        ("v5p:4x4x4", 1),
    ],
)
def test_links_of_a_slice(name: str, share: float) -> None:
    place = topology(name)
    assert place.name == name
    assert place.link_rate == pytest.approx(share * place.chip.link_rate)


def test_slices_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert topology("4x4", "v6e").name == "v6e:4x4"
    for text, parts in (
        ("v7:2x2", ["--topology=v7:2x2", *CHIPS, "16x16"]),
        ("16x16", ["GENERATION:SHAPE"]),
        ("v5e:16x61", ["did you mean v5e:16x16?", "4x4"]),
        ("v5e:32x32", ["v5e has no such slice"]),
    ):
        assert command.main(["estimate", "--config=configs/esc10.py", f"--topology={text}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(part in said for part in parts), said


def test_libtpu_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else pytest.fail(name))
    monkeypatch.setattr(plan_command.settings, "load_config", lambda *_: c.Config())
    assert command.main(["estimate", "--config=configs/esc10.py", "--topology=v5e:2x2"]) == 2
    assert "pip install libtpu==" in capsys.readouterr().err
    assert plan_command.LIBTPU in (ROOT / "requirements-bench.txt").read_text().splitlines()


def test_other_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["plant"], "plant: no such command"),
        (["estimate", "--config=configs/esc10.py", "--topology=v5e:2x2", "--batches=3"], "--batches=3: not an option"),
        (["estimate", "--config=configs/none.py", "--topology=v5e:2x2"], "no such file"),
    ):
        assert command.main(arguments) == 2
        assert said in capsys.readouterr().err


def made(chips: int, step: float | None) -> plan.Plan:
    """A plan by hand."""
    first = plan.Plan(
        topology=f"v5e:{chips}",
        chips=chips,
        hosts=chips // 4,
        batch=2,
        global_batch=2 * chips,
        data=chips,
        fsdp=1,
        seconds=10.0,
        mels=64,
        frames=500,
        classes=527,
        dtype="bfloat16",
        remat=False,
        parameters=1_500_000,
        macs_per_clip=10**9,
        operations=12 * 10**9,
        clip_bytes=64 * 500 * 4,
        compile_seconds=1.0,
        usable_bytes=2**34,
        needed_bytes=2**33 if step else 2**35,
        fits=step is not None,
    )
    if step is None:
        return first
    compiled = plan.Compiled(2**30, 2**32, 2**33, -1e-3, 7e9, hlo.Work(int(819e9 * step), Counter(), 1))
    return plan._timed(first, topology("v5e:4x4"), compiled, 5, 1)


def test_what_follows_from_the_time_of_a_step() -> None:
    """Sixteen chips, two clips each, 10 ms a step."""
    found = made(16, 10e-3)
    assert (found.bound, found.step_seconds) == ("memory", pytest.approx(10e-3))
    assert found.clips_per_second == pytest.approx(3200)
    assert found.utilisation == pytest.approx(6 * 2e9 / 197e12 / 10e-3)
    assert found.epoch_hours == pytest.approx({"AudioSet": 2_041_789 / 3200 / 3600, "VGGSound": 183_730 / 3200 / 3600})
    assert found.host_clips_per_second == pytest.approx(800)
    assert found.host_megabytes_per_second == pytest.approx(800 * 64 * 500 * 4 / 1e6)
    nothing = plan.Compiled(0, 0, 0, 0.0, 0.0, hlo.Work(0, Counter()))
    again = plan._timed(msgspec.structs.replace(found, remat=True), topology("v5e:4x4"), nothing, 5, 1)
    assert again.compute_seconds == pytest.approx(8 * 2e9 / 197e12), "the forward pass twice"
    assert again.utilisation == pytest.approx(6 / 8), "but of the model's own operations"


def test_pages() -> None:
    shown = report.page(made(16, 10e-3))
    for part in (
        "10 ms a step",
        "3,200 clips/s",
        "fits",
        "about 5 clips",
        "1 loops whose turns",
        "-1 ms",
        "16 data x 1",
    ):
        assert part in shown
    assert "AudioSet: 10.6 min an epoch" in shown and "VGGSound: 57.4 s an epoch" in shown
    refused = report.page(made(16, None))
    assert "needs 32.00 of 16.00 GiB: does not fit; give a smaller --batch" in refused
    assert "clips/s" not in refused
    rows = report.scaling([made(16, None), made(16, 10e-3), made(64, 12.5e-3)]).splitlines()[2:]
    assert [row.split("|")[5].strip() for row in rows] == ["", "100.0 %", "80.0 %"]
    assert "does not fit: needs 32.00" in rows[0]


TINY = """\
from datar_jax import config as c


def get_config():
    model = c.ModelConfig(
        dims=(8, 16), spec=("L", "D"), heads=(2, 4), window=c.WindowSettings(sizes=((4, 4), (4, 4))),
        deformable=c.DeformableSettings(groups=(1, 2), strides=(2, 1), kernels=(3, 3)),
        mlp_ratio=2, adaptor="none", dtype="bfloat16",
    )
    return c.Config(audio=c.AudioConfig(n_mels=32), model=model)
"""


def python(*arguments: str) -> str:
    """What another process prints: this one has its jax and its environment already."""
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four chips of 15.75 GiB; the compiler's answers are given, for 4 clips on a chip and for 8."""
    (tmp_path / "tiny.py").write_text(TINY)
    config, place, answers = settings.load_config(tmp_path / "tiny.py"), topology("v5e:2x2"), {}
    monkeypatch.setattr(plan, "macs_per_clip", lambda *_: 1)
    monkeypatch.setattr(plan, "abstract_state", cache(abstract_state))
    monkeypatch.setattr(plan, "devices", lambda place: jax.devices()[: place.chips])
    monkeypatch.setattr(plan, "_compiled", lambda spec, mesh: answers[spec.config.train.batch_size // mesh.size])

    def using(gib: float) -> plan.Compiled:
        return plan.Compiled(0, 0, int(gib * 2**30), 0.0, 0.0, hlo.Work(1, Counter()))

    answers |= {4: using(2), 8: using(3)}
    found = plan.make_plan(config, place, 4, 0.32, 4, largest=True)
    assert (found.largest_batch, found.largest_compiles) == (4 + 55, 2)
    found = plan.make_plan(config, place, 4, 0.32, 4)
    assert found.largest_batch == 31, "from nothing but the state, which is small, at no clips"
    answers[8] = 24 * 2**30
    found = plan.make_plan(config, place, 4, 0.32, 4, largest=True)
    assert found.largest_batch == 6, "the line goes on where the compiler refused"
    answers[4] = 20 * 2**30
    found = plan.make_plan(config, place, 4, 0.32, 4, largest=True)
    assert (found.fits, found.needed_bytes, found.step_seconds) == (False, 20 * 2**30, None)


def test_the_state_on_a_chip() -> None:
    """Half of what is divided over two chips, all of what is not."""
    state = {"head": {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(4)}, "step": jnp.int32(0)}
    for fsdp, count in ((1, 24 + 4 + 1), (2, 12 + 4 + 1)):
        mesh = make_mesh(c.MeshConfig(fsdp=fsdp))
        assert plan._bytes_on_chip(state, mesh) == 4 * count


@needs_libtpu
def test_compiled_for_four_chips(tmp_path: Path) -> None:
    """A loop over four rows of queries, parameters in two parts, and numbers that agree with each other."""
    (tmp_path / "tiny.py").write_text(TINY)
    found = json.loads(
        python(
            *("-m", "datar_jax", "estimate", f"--config={tmp_path / 'tiny.py'}", "--topology=v5e:2x2", "--batch=2"),
            *("--seconds=0.32", "--classes=4", "--config.mesh.fsdp=2", "--json"),
        )
    )
    assert (found["chips"], found["hosts"], found["global_batch"], found["data"], found["fsdp"]) == (4, 1, 8, 2, 2)
    macs = macs_per_clip(settings.load_config(tmp_path / "tiny.py").model, 4, 32, 32)
    assert (found["macs_per_clip"], found["operations"]) == (macs, 12 * macs)
    assert found["fits"] and found["unread_loops"] == 0
    kinds = {(each["kind"], each["devices"]) for each in found["collectives"]}
    assert {("all-gather", 2), ("all-reduce", 4)} <= kinds, "parameters are gathered, gradients summed"
    longest = max(found["compute_seconds"], found["memory_seconds"])
    assert found["step_seconds"] == pytest.approx(longest + found["link_seconds"])
    assert found["link_seconds"] == pytest.approx(sum(each["sent_bytes"] for each in found["collectives"]) / 100e9)
    assert found["memory_bytes"] > found["argument_bytes"], "the state at least is read"


@needs_libtpu
def test_every_slice_can_be_described() -> None:
    lines = (
        "import os; from datar_jax.training.estimate.topology import ENVIRONMENT; os.environ |= ENVIRONMENT",
        "from datar_jax.training.estimate.topology import CHIPS, topology",
        "from datar_jax.training.estimate.estimate import devices",
        "places = [topology(f'{chip.name}:{shape}') for chip in CHIPS.values() for shape in chip.slices]",
        "wrong = [place.name for place in places if len(devices(place)) != place.chips]",
        "print(len(places), wrong)",
    )
    assert python("-c", "\n".join(lines)).split(maxsplit=1) == [str(sum(len(x.slices) for x in CHIPS.values())), "[]\n"]
