"""Operations, memory and exchanged bytes of a compiled program, read from its text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from datar_jax import config as c
from datar_jax.training.estimate import hlo_cost as hlo
from datar_jax.training.estimate import hlo_text
from datar_jax.training.estimate.hlo_cost import Collective
from datar_jax.training.sharding import make_mesh

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
