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
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import pytest
from jax.sharding import PartitionSpec as P

from datar_jax import config as c
from datar_jax.cli import estimate as plan_command
from datar_jax.cli import main as command
from datar_jax.config import loader as settings
from datar_jax.models.flops import macs_per_clip
from datar_jax.training.estimate import estimate as plan
from datar_jax.training.estimate import hlo_cost as hlo
from datar_jax.training.estimate import hlo_text, report, roofline
from datar_jax.training.estimate.hlo_cost import Collective
from datar_jax.training.estimate.topology import topology
from datar_jax.training.monitoring.accelerators import CHIPS
from datar_jax.training.sharding import make_mesh
from datar_jax.training.train_step import abstract_state

ROOT = Path(__file__).parent.parent.parent.parent
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (requirements-bench.txt)"
)

# A loop of five turns, its limit in the condition, around a loop of three, which the compiler wrote down.
LOOPS = """\
HloModule loops, is_scheduled=true, replica_count=1, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[100])) -> (s32[], f32[100]) {
  %p = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[100]{0} get-tuple-element(%p), index=1
  %gathered = f32[400]{0} all-gather(%x), channel_id=2, replica_groups=[2,2]<=[4], dimensions={0}
  %y = f32[100]{0} slice(%gathered), slice={[0:100]}
  ROOT %out = (s32[], f32[100]{0}) tuple(%i, %y)
}

%inner_condition (p.1: (s32[], f32[100])) -> pred[] {
  %p.1 = (s32[], f32[100]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

%body (q: (s32[], f32[100])) -> (s32[], f32[100]) {
  %q = (s32[], f32[100]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %v = f32[100]{0} get-tuple-element(%q), index=1
  %w = f32[100]{0} all-reduce(%v), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %start = (s32[], f32[100]{0}) tuple(%j, %w)
  ROOT %turned = (s32[], f32[100]{0}) while(%start), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"3"}}
}

%condition (r: (s32[], f32[100])) -> pred[] {
  %r = (s32[], f32[100]{0}) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %limit = s32[] constant(LIMIT)
  ROOT %less = pred[] compare(SIDES), direction=DIRECTION
}

ENTRY %main (input: f32[100]) -> f32[100] {
  %input = f32[100]{0} parameter(0)
  %first = s32[] constant(2)
  %copied = s32[]{:S(6)} copy(%first)
  %begin = (s32[], f32[100]{0}) tuple(%copied, %input)
  %loop = (s32[], f32[100]{0}) while(%begin), condition=%condition, body=%body
  %result = f32[100]{0} get-tuple-element(%loop), index=1
  ROOT %twice = f32[100]{0} multiply(%result, %result)
}
"""


def loops(limit: int = 7, sides: str = "%k, %limit", direction: str = "LT") -> str:
    return LOOPS.replace("LIMIT", str(limit)).replace("SIDES", sides).replace("DIRECTION", direction)


def test_loops_count_as_often_as_they_run() -> None:
    """2, 3, 4, 5, 6: five turns of the outer, fifteen of the inner loop."""
    found = hlo.work(loops())
    assert found.collectives == Counter({Collective("all-reduce", 4, 400): 5, Collective("all-gather", 2, 1600): 15})
    compare = 4 + 4 + 1  # two numbers in, a truth value out; the last turn's comparison is one more and not counted
    inner = (400 + 1600) + (400 + 400)  # the gather; the slice
    body = 800 + 3 * inner
    assert found.memory == 5 * (body + compare) + 3 * 400 + 4  # the product; the copy reads, and writes on the chip
    assert found.unread == 0


@pytest.mark.parametrize(
    "limit, sides, direction, turns",
    [
        (7, "%limit, %k", "GT", 5),
        (7, "%k, %limit", "LE", 6),
        (7, "%limit, %k", "GE", 6),
        (7, "%k, %limit", "NE", 5),
        (1, "%k, %limit", "LT", 0),
        (7, "%k, %limit", "GT", None),
        (7, "%k, %k", "LT", None),
    ],
)
def test_the_turns_of_a_loop(limit: int, sides: str, direction: str, turns: int | None) -> None:
    found = hlo.work(loops(limit, sides, direction))
    assert found.unread == (turns is None)
    assert found.collectives[Collective("all-reduce", 4, 400)] == (1 if turns is None else turns)


def test_an_inner_loop_that_cannot_be_read() -> None:
    found = hlo.work(loops().replace('backend_config={"known_trip_count":{"n":"3"}}', ""))
    assert found.unread == 1
    assert found.collectives[Collective("all-gather", 2, 1600)] == 5


def test_a_comparison_inside_a_fusion_and_a_loop_inside_a_call() -> None:
    """As a CPU's compiler writes them."""
    compare = "ROOT %less = pred[] compare(%k, %limit), direction=LT"
    fused = "ROOT %less = pred[] fusion(%k, %limit), kind=kLoop, calls=%compared"
    compared = (
        "%compared (u: s32[], t: s32[]) -> pred[] {\n  %u = s32[] parameter(0)\n  %t = s32[] parameter(1)\n"
        "  ROOT %under = pred[] compare(%u, %t), direction=LT\n}\n\n"
    )
    text = loops()
    assert compare in text
    assert hlo.work(text.replace(compare, fused).replace("%condition (", compared + "%condition (")) == hlo.work(text)
    outer = (
        "\nENTRY %outside (o: f32[100]) -> f32[100] {\n  %o = f32[100]{0} parameter(0)\n"
        "  ROOT %called = f32[100]{0} call(%o), to_apply=%main\n}\n"
    )
    assert hlo.work(text.replace("ENTRY ", "") + outer) == hlo.work(text)


@pytest.mark.parametrize(
    "shape, stored, moved",
    [
        ("f32[3,130]{1,0:T(8,128)}", 8 * 256 * 4, 8 * 256 * 4),
        ("f32[3,130]{0,1:T(4,128)}", 132 * 128 * 4, 132 * 128 * 4),  # the first axis is the fast one
        ("bf16[2,3,16]{2,1,0:T(4,128)(2,1)S(1)}", 2 * 4 * 128 * 2, 0),
        ("f32[5]{0:T(128)S(0)}", 512, 512),
        ("s32[]{:T(128)}", 512, 512),
        ("pred[7]{0}", 7, 7),
        ("s4[7]{0}", 4, 4),
        ("f8e4m3fn[10,2]", 20, 20),
        ("token[]", 0, 0),
        ("(f32[2]{0}, /*index=1*/(bf16[3]{0}, s32[]{:S(2)}))", 8 + 6 + 4, 8 + 6),
    ],
)
def test_bytes_of_shapes(shape: str, stored: int, moved: int) -> None:
    found = hlo_text.buffers(shape)
    assert (sum(each.stored for each in found), sum(each.moved for each in found)) == (stored, moved)


@pytest.mark.parametrize(
    "groups, devices",
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups={}", 6),
        ("replica_groups=[2,3]<=[6]", 3),
        ("replica_groups=[3,2]<=[2,3]T(1,0), dimensions={0}", 2),
        ("replica_groups=mesh['a'=3,'b'=2] {'a'}, use_global_device_ids=true", 3),
        ("replica_groups=mesh['a'=3,'b'=1,'c'=2], device_ids=([2,3]T(1,0)) {'a','c'}, dimensions={0}", 6),
    ],
)
def test_who_takes_part(groups: str, devices: int) -> None:
    text = (
        "HloModule m, replica_count=1, num_partitions=6\n\n"
        "ENTRY %main (x: f32[8]) -> f32[8] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        f"  ROOT %y = f32[8]{{0}} all-to-all(%x), channel_id=1, {groups}\n"
        "}\n"
    )
    assert hlo.work(text).collectives == Counter({Collective("all-to-all", devices, 32): 1})


FUSED = """\
HloModule fused, num_partitions=4

%update (into: f32[64,100], row: f32[1,100], at: s32[]) -> f32[64,100] {
  %into = f32[64,100]{1,0} parameter(0)
  %row = f32[1,100]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %written = f32[64,100]{1,0} dynamic-update-slice(%into, %row, %at, %zero)
  ROOT %shown = f32[64,100]{1,0} bitcast(%written)
}

%part (of: f32[64,100], at.1: s32[]) -> f32[1,100] {
  %of = f32[64,100]{1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %same = f32[64,100]{1,0} bitcast(%of)
  %one = f32[1,100]{1,0} dynamic-slice(%same, %at.1, %zero.1), dynamic_slice_sizes={1,100}
  ROOT %minus = f32[1,100]{1,0} negate(%one)
}

%whole (of.1: f32[64,100], at.2: s32[]) -> f32[64,100] {
  %of.1 = f32[64,100]{1,0} parameter(0)
  %at.2 = s32[] parameter(1)
  %zero.2 = s32[] constant(0)
  %one.1 = f32[1,100]{1,0} dynamic-slice(%of.1, %at.2, %zero.2), dynamic_slice_sizes={1,100}
  %wide = f32[64,100]{1,0} broadcast(%one.1), dimensions={0,1}
  ROOT %both = f32[64,100]{1,0} add(%of.1, %wide)
}

%scatter (input: f32[64,100]) -> f32[16,100] {
  %input = f32[64,100]{1,0} parameter(0)
  %total = f32[64,100]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%sum
  %zero.3 = s32[] constant(0)
  ROOT %mine = f32[16,100]{1,0} dynamic-slice(%total, %zero.3, %zero.3), dynamic_slice_sizes={16,100}
}

ENTRY %main (map: f32[64,100], index: s32[]) -> f32[16,100] {
  %map = f32[64,100]{1,0} parameter(0)
  %index = s32[] parameter(1)
  LINE
}
"""


@pytest.mark.parametrize(
    "line, memory",
    [
        ("ROOT %r = f32[1,100]{1,0} fusion(%map, %index), kind=kLoop, calls=%part", 400 + 4 + 400),
        ("ROOT %r = f32[64,100]{1,0} fusion(%map, %index), kind=kLoop, calls=%whole", 25600 + 4 + 25600),
        ("ROOT %r = f32[64,100]{1,0:S(1)} fusion(%map, %index), kind=kLoop, calls=%whole", 25600 + 4),
        ("ROOT %r = f32[1,100]{1,0} dynamic-slice(%map, %index, %index), dynamic_slice_sizes={1,100}", 400 + 400),
        ("ROOT %r = (f32[64,100]{1,0:S(1)}, f32[64,100]{1,0}, u32[]{:S(2)}) copy-start(%map)", 25600),
        (
            "ROOT %r = ((f32[64,100]{1,0}), f32[8,100]{1,0}, u32[]{:S(2)}) slice-start(%map), slice={[0:8], [0:100]}",
            6400,
        ),
    ],
)
def test_a_slice_of_a_map_is_not_the_map(line: str, memory: int) -> None:
    assert hlo.work(FUSED.replace("LINE", line)).memory == memory


def test_an_update_in_place_moves_what_is_new() -> None:
    row = "%row.1 = f32[1,100]{1,0:S(1)} broadcast(%index), dimensions={}\n  "
    fused = row + "ROOT %r = f32[64,100]{1,0} fusion(%map, %row.1, %index), kind=kLoop, calls=%update"
    assert hlo.work(FUSED.replace("LINE", fused)).memory == 4 + 4 + 400
    bare = row + "ROOT %r = f32[64,100]{1,0} dynamic-update-slice(%map, %row.1, %index, %index)"
    assert hlo.work(FUSED.replace("LINE", bare)).memory == 4 + 400


def test_a_sum_that_is_sliced_at_once_is_scattered() -> None:
    line = "ROOT %r = f32[16,100]{1,0} fusion(%map), kind=kCustom, calls=%scatter"
    assert hlo.work(FUSED.replace("LINE", line)).collectives == Counter({Collective("reduce-scatter", 4, 25600): 1})


def test_what_runs_beside_products_counts_once() -> None:
    """It stands in several fusions under one channel; under another channel it is another one."""
    line = (
        "%begun = f32[16,100]{1,0} fusion(%map), kind=kCustom, calls=%scatter\n"
        "  ROOT %ended = f32[16,100]{1,0} fusion(%map), kind=kCustom, calls=%scatter"
    )
    kind = Collective("reduce-scatter", 4, 25600)
    assert hlo.work(FUSED.replace("LINE", line)).collectives == Counter({kind: 1})
    start, end = FUSED.index("%scatter"), FUSED.index("ENTRY")
    other = FUSED[start:end].replace("%scatter", "%scatter.1").replace("channel_id=1", "channel_id=2")
    text = FUSED[:end] + other + FUSED[end:].replace("LINE", line.replace("%scatter\n", "%scatter.1\n"))
    assert hlo.work(text).collectives == Counter({kind: 2})


@pytest.mark.parametrize(
    "line, found",
    [
        (
            "%s = (f32[64,100]{1,0}, f32[256,100]{1,0}) all-gather-start(%map), replica_groups=[1,4]<=[4]\n"
            "  ROOT %r = f32[256,100]{1,0} all-gather-done(%s)",
            Collective("all-gather", 4, 4 * 25600),
        ),
        (
            "ROOT %r = f32[16,100]{1,0} reduce-scatter(%map), replica_groups=[1,4]<=[4]",
            Collective("reduce-scatter", 4, 25600),
        ),
        (
            "ROOT %r = (f32[64,100]{1,0}, f32[2]{0}) all-reduce(%map, %map), replica_groups=[2,2]<=[4]",
            Collective("all-reduce", 2, 25608),
        ),
        (
            "ROOT %r = f32[64,100]{1,0} collective-permute(%map), source_target_pairs={{0,1},{1,0}}",
            Collective("collective-permute", 4, 25600),
        ),
    ],
)
def test_what_is_exchanged(line: str, found: Collective) -> None:
    assert hlo.work(FUSED.replace("LINE", line)).collectives == Counter({found: 1})


def test_of_branches_the_dearest_counts() -> None:
    line = "ROOT %r = f32[1,100]{1,0} conditional(%index, %map, %map), branch_computations={%update, %whole}"
    dearest = 400 + 400 + (400 + 25600) + 3 * 25600  # slice, broadcast, sum
    assert hlo.work(FUSED.replace("LINE", line)).memory == dearest


def test_no_program() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.work("")


def program(turns: int) -> Any:
    """Eight devices that sum and gather in every turn, and sum once after all."""
    mesh = make_mesh(c.MeshConfig())

    def turn(x: Any, row: Any) -> Any:
        x = jnp.tanh(x + jax.lax.psum(x * row.sum(), ("data", "fsdp")))
        return x + jax.lax.all_gather(x, "data").sum(0), None

    def inside(x: Any, rows: Any) -> Any:
        return jax.lax.psum(jax.lax.scan(turn, x, rows)[0].sum(), "data")

    mapped = jax.shard_map(inside, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(), check_vma=False)
    shapes = jax.ShapeDtypeStruct((16, 300), jnp.float32), jax.ShapeDtypeStruct((turns, 50), jnp.float32)
    return jax.jit(mapped).lower(*shapes).compile()


def test_a_real_program_of_eight_devices() -> None:
    """The compiler's own count of arguments, collectives per turn, and memory that grows by the same every turn."""
    found = []
    for turns in (20, 30, 40):
        compiled = program(turns)
        text = compiled.as_text()
        assert text.count(" while(") == 1, "it is a loop"
        assert compiled.cost_analysis()["flops"] < 20 * 600, "XLA counts one turn"
        parsed = hlo_text.parse(text)
        entry = parsed.computations[parsed.entry]
        sizes = [each.stored for name in entry.parameters for each in hlo_text.buffers(entry.instructions[name].shape)]
        assert (parsed.devices, sum(sizes)) == (8, compiled.memory_analysis().argument_size_in_bytes)
        work = hlo.work(text)
        assert work.unread == 0
        assert work.collectives == Counter(
            {
                Collective("all-reduce", 8, 2 * 300 * 4): turns,
                Collective("all-gather", 8, 8 * 2 * 300 * 4): turns,
                Collective("all-reduce", 8, 4): 1,
            }
        )
        found.append(work.memory)
    assert found[2] - found[1] > 10 * 8 * 2 * 300 * 4, "every turn writes what it gathered"
    assert found[2] - found[1] == pytest.approx(found[1] - found[0], rel=1e-3)  # longer rows: the slices of them


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
