"""Cost of one run of a compiled program from its HLO text: memory traffic and communication between devices.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs. Of the branches of a
condition the one that moves most counts. Memory is counted from above: every instruction outside of a fusion reads its
operands and writes its result once, with the padding of tiles. What a fusion only slices or updates in place counts as
much as the slice, and what the compiler keeps on the chip (memory spaces other than 0) nothing. Not seen: a product
that reads an operand again, tile by tile.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from typing import NamedTuple

from datar_jax.training.estimate.hlo_text import Buffer, Computation, Instruction, Program, buffers, parse

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
SLICES = ("dynamic-slice", "slice", "gather")
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("partition-id", "replica-id", "while", "conditional", "call", "domain"),
)


class Collective(NamedTuple):
    """One exchange between devices."""

    kind: str
    devices: int  # that take part in it together
    bytes: int  # of the whole value: what is reduced, or what is there after a gather; without padding

    @property
    def sent(self) -> float:
        """Bytes that each device sends around a ring."""
        if self.devices == 1:
            return 0.0
        if self.kind == "collective-permute":
            return float(self.bytes)
        share = (self.devices - 1) / self.devices
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


class Work(NamedTuple):
    """Traffic of one run of a computation."""

    memory: int  # bytes read and written
    collectives: Counter[Collective]
    unread: int = 0  # loops whose number of turns could not be read; their bodies count once


def work(text: str) -> Work:
    """Traffic of one run of a compiled program (`compiled.as_text()`) on each device."""
    program = parse(text)

    @cache
    def visit(name: str) -> Work:
        here = program.computations[name]
        memory, collectives, unread = 0, Counter[Collective](), 0
        fused: set[str] = set()  # a collective that runs beside products is started, carried and ended in fusions
        for line in here.instructions.values():
            if line.opcode == "while":
                turns = trip_count(program, here, line)
                parts = [visit(part) for part in line.called("condition", "body")]
                times, unread = turns if turns is not None else 1, unread + (turns is None)
            elif line.opcode == "conditional":
                names = line.called("branch_computations", "true_computation", "false_computation")
                parts, times = [max(map(visit, names), key=lambda part: part.memory)], 1
            elif line.opcode in ("call", "async-start"):
                parts, times = [visit(part) for part in line.called("to_apply", "calls", "called_computation")], 1
            else:
                parts, times = [], 1
                memory += traffic(program, here, line)
                for channel, each in exchanges(program, line):
                    if line.opcode == "fusion" and channel:
                        if channel in fused:
                            continue
                        fused.add(channel)
                    collectives[each] += 1
            for part in parts:
                memory += times * part.memory
                collectives += Counter({each: times * count for each, count in part.collectives.items()})
                unread += part.unread
        return Work(memory, collectives, unread)

    return visit(program.entry)


def trip_count(program: Program, here: Computation, loop: Instruction) -> int | None:
    """Trip count of a `while`, from the compiler's annotation or its condition; None if unknown.

    A counter is taken to grow by one a turn, as those of `jax.lax.scan` and `fori_loop` do.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]]
    compare = _through(program, [(condition, condition.root)])
    if compare[-1][1].opcode != "compare":
        return None
    sides = [_through(program, [*compare[:-1], (compare[-1][0], _operand(compare[-1], i))]) for i in (0, 1)]
    direction = re.findall(r"direction=(\w+)", compare[-1][1].rest)[0]
    if sides[0][-1][1].opcode == "constant":
        sides, direction = sides[::-1], {"GT": "LT", "GE": "LE"}.get(direction, "")
    counter, limit = sides[0][-1][1], sides[1][-1][1]
    if limit.opcode != "constant" or counter.opcode != "get-tuple-element" or direction not in ("LT", "LE", "NE"):
        return None
    index = int(re.findall(r"index=(\d+)", counter.rest)[0])
    start = _through(program, [(here, here.instructions[loop.operands[0]])])[-1]
    if start[1].opcode != "tuple":
        return None
    first = _through(program, [(start[0], _operand(start, index))])[-1][1]
    if first.opcode != "constant":
        return None
    return max(0, int(limit.inside) - int(first.inside) + (direction == "LE"))


Place = tuple[Computation, Instruction]


def _operand(place: Place, i: int) -> Instruction:
    return place[0].instructions[place[1].operands[i]]


def _through(program: Program, path: list[Place]) -> list[Place]:
    """Follows a value to where it comes from: through copies, into fusions, and out of them by their parameters."""
    while True:
        here, line = path[-1]
        if line.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            path = [*path[:-1], (here, _operand(path[-1], 0))]
        elif line.opcode == "fusion":
            inner = program.computations[line.called("calls")[0]]
            path = [*path, (inner, inner.root)]
        elif line.opcode == "parameter" and len(path) > 1:
            path = [*path[:-2], (path[-2][0], _operand(path[-2], int(line.inside)))]
        else:
            return path


def exchanges(program: Program, line: Instruction) -> list[tuple[str, Collective]]:
    """Channels and collectives that an instruction is, or that are fused into it."""
    kind = line.opcode.removesuffix("-start")
    if kind in KINDS:
        channel = re.search(r"channel_id=(\d+)", line.rest)
        each = Collective(kind, _group(line, program.devices), _payload(line, kind))
        return [(channel[1] if channel else "", each)]
    if line.opcode != "fusion":
        return []
    inner = program.computations[line.called("calls")[0]]
    found = []
    for part in inner.instructions.values():
        sliced = [user.opcode for user in inner.users[part.name]] == ["dynamic-slice"]
        for name, one in exchanges(program, part):
            # Reduced and sliced in one: each device gets only its part of the sum.
            scattered = sliced and one.kind == "all-reduce"
            found.append((name, one._replace(kind="reduce-scatter") if scattered else one))
    return found


def _payload(line: Instruction, kind: str) -> int:
    """Bytes of the whole value. A started gather or permutation carries its operands before its result."""
    parts = buffers(line.shape)
    if line.opcode.endswith("-start") and kind in ("all-gather", "collective-permute", "reduce-scatter", "all-to-all"):
        count = len(line.operands)
        parts = parts[count : 2 * count]
    size = sum(part.bytes for part in parts)
    return size * _group(line, 1) if kind == "reduce-scatter" else size


def _group(line: Instruction, devices: int) -> int:
    """Devices that take part together, in each of the ways they are written."""
    if line.opcode.startswith("collective-permute"):
        return max(2, devices)
    groups = re.search(r"replica_groups=(.*)", line.rest)
    text = groups[1] if groups else ""
    if mesh := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if tiled := re.match(r"\[(\d+),(\d+)\]<=", text):
        return int(tiled[2])
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    return devices


def traffic(program: Program, here: Computation, line: Instruction) -> int:
    """Bytes between chip and memory of one instruction, at most."""
    if line.opcode in FREE or line.opcode.endswith("-done") or "AllocateBuffer" in line.rest[:60]:
        return 0
    results = buffers(line.shape)
    if line.opcode.endswith("-start") and line.opcode.removesuffix("-start") != "all-reduce":
        count = len(line.operands)
        results = results[:1] if line.opcode == "copy-start" else results[count : 2 * count]
    result = sum(each.moved for each in results)
    operands = [here.instructions[name] for name in line.operands]
    read = [sum(each.moved for each in buffers(operand.shape)) for operand in operands]
    if line.opcode == "fusion":
        inner = program.computations[line.called("calls")[0]]
        parts = [_read(program, inner, name) for name in inner.parameters]
        shares = [whole if part is None else min(whole, part) for whole, part in zip(read, parts)]
        return sum(shares) + _written(program, inner, results)
    if line.opcode.removesuffix("-start") in SLICES:
        return min(read[0], sum(each.stored for each in results)) + result
    if line.opcode == "dynamic-update-slice":
        return read[1] + min(result, sum(each.stored for each in buffers(operands[1].shape)))
    return sum(read) + result


def _read(program: Program, inner: Computation, name: str) -> int | None:
    """Bytes that a fusion reads of a value; None for all of it."""
    if name == inner.root.name:
        return None
    total = 0
    for user in inner.users[name]:
        part: int | None = None
        if user.opcode in SLICES and user.operands.index(name) == 0:
            part = sum(each.stored for each in buffers(user.shape))
        elif user.opcode == "dynamic-update-slice" and user.operands.index(name) == 0 and user in _results(inner):
            part = 0
        elif user.opcode == "bitcast":
            part = _read(program, inner, user.name)
        elif user.opcode == "fusion":
            nested = program.computations[user.called("calls")[0]]
            parts = [_read(program, nested, nested.parameters[i]) for i, x in enumerate(user.operands) if x == name]
            part = None if None in parts else sum(each or 0 for each in parts)
        if part is None:
            return None
        total += part
    return total


def _results(inner: Computation) -> list[Instruction]:
    """What a computation returns, before a change of shape."""
    outs = [inner.root]
    if inner.root.opcode == "tuple":
        outs = [inner.instructions[name] for name in inner.root.operands]
    return [inner.instructions[out.operands[0]] if out.opcode == "bitcast" else out for out in outs]


def _written(program: Program, inner: Computation, results: list[Buffer]) -> int:
    """Bytes that a fusion writes: of an update in place only what is new."""
    total = 0
    for out, buffer in zip(_results(inner), results):
        size = buffer.moved
        if out.opcode == "dynamic-update-slice":
            update = inner.instructions[out.operands[1]]
            size = min(size, sum(each.stored for each in buffers(update.shape)))
        elif out.opcode == "fusion":
            size = min(size, _written(program, program.computations[out.called("calls")[0]], [buffer]))
        total += size
    return total
