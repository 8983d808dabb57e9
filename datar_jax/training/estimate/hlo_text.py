"""Parses the text of an optimised HLO program."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line."""

    name: str
    shape: str
    opcode: str
    inside: str  # between its parentheses
    rest: str  # attributes

    @property
    def operands(self) -> list[str]:
        """Names of what it is applied to."""
        return re.findall(r"%([\w.\-]+)", self.inside)

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations under these attributes."""
        names = re.findall(rf"\b(?:{'|'.join(attributes)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
        return [part.strip().lstrip("%") for pair in names for part in (pair[0] or pair[1]).split(",")]


class Computation:
    """Instructions by name, and who uses them."""

    def __init__(self, lines: list[Instruction], root: str) -> None:
        self.instructions = {line.name: line for line in lines}
        self.root = self.instructions[root]
        parameters = {int(line.inside): line for line in lines if line.opcode == "parameter"}
        self.parameters = [parameters[i].name for i in sorted(parameters)]
        self.users: dict[str, list[Instruction]] = defaultdict(list)
        for line in lines:
            for operand in dict.fromkeys(line.operands):
                self.users[operand].append(line)


class Program(NamedTuple):
    """A module."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: not the text of a compiled program.
    """
    computations: dict[str, Computation] = {}
    lines: list[Instruction] = []
    entry, root, name = "", "", ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif line == "}" and name:
            computations[name], name = Computation(lines, root), ""
        elif name and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(", line)):
            end = _closing(line, found.end())
            lines.append(Instruction(found[2], found[3], found[4], line[found.end() : end], line[end + 1 :]))
            root = found[2] if found[1] else root
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    counts = [int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])]
    return Program(computations, entry, math.prod(counts))


def _closing(line: str, at: int) -> int:
    """Where the parenthesis closes that opened before `at`."""
    depth = 1
    for match in re.compile(r"[()]").finditer(line, at):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis does not close: {line[:120]}")


class Buffer(NamedTuple):
    """An array of a shape's text."""

    bits: int  # of one number
    dims: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return math.ceil(self.bits * math.prod(self.dims) / 8)

    @property
    def stored(self) -> int:
        """Bytes with the padding of its tiles."""
        tile = re.search(r":[^T]*T\(([\d,]+)\)", self.layout)
        if tile is None:
            return self.bytes
        order = [int(axis) for axis in self.layout.partition(":")[0].split(",") if axis]  # the fastest first
        sizes = [self.dims[axis] for axis in order]
        steps = [int(step) for step in tile[1].split(",")][::-1]
        sizes += [1] * (len(steps) - len(sizes))
        padded = [math.ceil(size / step) * step for size, step in zip(sizes, steps)] + sizes[len(steps) :]
        return math.ceil(self.bits * math.prod(padded) / 8)

    @property
    def moved(self) -> int:
        """Bytes that go to or from memory: none of what is kept on the chip."""
        space = re.search(r"S\((\d+)\)", self.layout)
        return 0 if space and space[1] != "0" else self.stored


def buffers(shape: str) -> list[Buffer]:
    """The arrays of a shape, a tuple's one after another."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?", shape)
    return [Buffer(_bits(kind), tuple(int(n) for n in dims.split(",") if n), layout) for kind, dims, layout in found]


def _bits(kind: str) -> int:
    if kind in ("token", "opaque"):
        return 0
    if kind == "pred":
        return 8
    width = re.match(r"[a-z]+(\d+)", kind)  # f32, bf16, s8, u4, f8e4m3fn, c64
    if width is None:
        raise ValueError(f"{kind}: a number format that is not known here")
    return int(width[1])
