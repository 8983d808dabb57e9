"""Parses the pickle in a `.pth` file without executing it.

`pickle.Unpickler` with a restricted `find_class` runs no code, but is no defense against exhaustion: hashing a dict key
of nested tuples takes 2**depth steps (two bytes a level), and one 9-byte LONG_BINPUT allocates gigabytes. This parser
reads the opcodes with `pickletools` and knows containers, numbers, strings and the few names by which PyTorch describes
a tensor. Every other name, and whatever is called or built with it, becomes an `Opaque`. Values are never walked or
compared, and only texts and small numbers are hashed, so nesting costs nothing. Memory and time grow as the length.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MAX_INSTRUCTIONS = 500_000  # about 25 for a tensor
MAX_ARGUMENTS = 16  # of a call: those that are allowed take 4 to 7
MAX_KEY = 1 << 32  # numbers beyond may be chosen so that all have one hash
MAX_NAME_LENGTH = 60  # characters kept: a long name that is referenced many times would fill the memory


class Opaque(NamedTuple):
    """Placeholder for a name, call or object that is not interpreted."""

    name: str


class Storage(NamedTuple):
    """A storage in the archive: name of its type, file, number of elements."""

    kind: str
    key: str
    numbers: int


class Tensor(NamedTuple):
    """A view of a storage as the pickle describes it; not validated yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)


ALLOWED: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "collections OrderedDict": lambda *_: {},
}
MARK = Opaque("(mark)")


def parse_pickle(data: bytes) -> Any:
    """Returns the value that a pickle describes; imports and calls nothing that it names.

    The value consists of dicts, lists, tuples, numbers, strings, `Tensor` and `Opaque`. Dicts keep only str and small
    int keys, because hashing any other key may take exponential time.

    Raises:
      ValueError, IndexError, KeyError, TypeError: not a pickle, or an incomplete one.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    instructions: Any = pickletools.genops(data)
    for count, (opcode, arg, _) in enumerate(instructions):
        name = opcode.name
        if count >= MAX_INSTRUCTIONS:
            raise ValueError(f"more than {MAX_INSTRUCTIONS:,} instructions")
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            at = len(memo) if name == "MEMOIZE" else arg
            if not 0 <= at < MAX_KEY:
                raise ValueError("a memo of another size")
            memo[at] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        else:
            operands = _pop_operands(stack, opcode.stack_before)
            if opcode.stack_after:
                stack.append(_apply_opcode(opcode, arg, operands))
    raise ValueError("ends too early")


def _pop_operands(stack: list[Any], before: list[Any]) -> list[Any]:
    """Operands of an opcode, lowest first; all values above the topmost mark are one list, the last operand."""
    items: list[Any] = []
    marked = pickletools.markobject in before
    if marked:
        while (value := stack.pop()) is not MARK:
            items.append(value)
    count = before.index(pickletools.markobject) if marked else len(before)
    if count > len(stack):
        raise IndexError("pop from an empty stack")
    operands = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return [*operands, items[::-1]] if marked else operands


def _apply_opcode(opcode: Any, arg: Any, operands: list[Any]) -> Any:
    """The one value that an opcode leaves on the stack."""
    match opcode.name, operands:
        case "NONE", _:
            return None
        case ("NEWTRUE" | "NEWFALSE") as name, _:
            return name == "NEWTRUE"
        case "EMPTY_LIST", _:
            return []
        case "EMPTY_DICT", _:
            return {}
        case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", _:
            return tuple(operands)
        case "TUPLE", [items]:
            return tuple(items)
        case "LIST", [items]:
            return items
        case "DICT", [items]:
            return _pairs(items)
        case ("APPEND" | "APPENDS") as name, [target, value]:
            if isinstance(target, list):
                target.extend(value if name == "APPENDS" else [value])
            return target
        case "SETITEM" | "SETITEMS", [target, *rest]:
            if isinstance(target, dict):
                target.update(_pairs(rest if opcode.name == "SETITEM" else rest[0]))
            return target
        case "GLOBAL", _:
            return Opaque(arg[:MAX_NAME_LENGTH])
        case "STACK_GLOBAL", [module, attribute]:
            names = type(module) is str and type(attribute) is str
            return Opaque(f"{module[:MAX_NAME_LENGTH]} {attribute[:MAX_NAME_LENGTH]}" if names else "?")
        case "REDUCE" | "NEWOBJ", [function, args]:
            return _call(function, args)
        case "BUILD", [target, _]:  # the state of an object; no allowed one needs it
            return target
        case "BINPERSID", [description]:
            return _storage(description)
    literal = opcode.arg and not operands and opcode.stack_after != [pickletools.anyobject]
    return arg if literal else Opaque(opcode.name)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    pairs = zip(items[::2], items[1::2])
    return {key: x for key, x in pairs if type(key) is str or (type(key) is int and 0 <= key < MAX_KEY)}


def _call(function: Any, args: Any) -> Any:
    known = ALLOWED.get(function.name) if isinstance(function, Opaque) else None
    if known is None:
        return Opaque(f"{name_of(function)}(...)")
    return known(*args) if isinstance(args, tuple) and len(args) <= MAX_ARGUMENTS else Opaque("?")


def _storage(given: Any) -> Any:
    """Parses what torch.save writes for a storage: ("storage", class, file, device, number of elements)."""
    if isinstance(given, tuple) and len(given) == 5 and isinstance(given[1], Opaque):
        module, _, kind = given[1].name.partition(" ")
        if module == "torch" and kind in STORAGES and type(given[2]) is str and type(given[4]) is int:
            return Storage(kind, given[2], given[4])
    return Opaque("storage")


def name_of(value: Any) -> str:
    """Name of a placeholder, or the type of any other value."""
    if isinstance(value, Opaque):
        return value.name.replace(" ", ".")[:MAX_NAME_LENGTH]
    return f"a {type(value).__name__}"
