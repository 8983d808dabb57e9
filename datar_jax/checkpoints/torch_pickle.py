"""What a pickle describes, found out without running it.

A pickle is a program for a small stack machine, whose instructions may call any function by its name. Here its
instructions are listed by `pickletools` and interpreted by a machine that knows containers, numbers, texts and the few
names by which PyTorch describes a tensor. Every other name is a placeholder: to call it, to build it or to give it a
state gives a placeholder, and runs nothing. Nothing that was built is walked through, compared or hashed, so that no
nesting of it can take long.
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


class Opaque(NamedTuple):
    """What stands for a name, a call or an object that is not looked into."""

    name: str


class Storage(NamedTuple):
    """Numbers in the archive: their type, the file, how many."""

    kind: str
    key: str
    numbers: int


class Tensor(NamedTuple):
    """A view of a storage, as the pickle describes it; nothing is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)


KNOWN: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "collections OrderedDict": lambda *_: {},
}
LONGEST_NAME = 60  # letters that are kept: a long name that is put together many times would fill the memory
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
MARK = Opaque("(mark)")


def interpret(data: bytes) -> Any:
    """What a pickle builds, of dicts, lists, tuples, numbers, texts, `Tensor` and `Inert`; nothing is imported or run.

    Dicts keep what has a text or a whole number for a key: no other key is of use here, and to hash one may take long.

    Raises:
      ValueError, IndexError, KeyError, TypeError: this is no pickle, or not one that is complete.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def items() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not MARK:
            at -= 1
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    instructions: Any = pickletools.genops(data)
    for opcode, arg, _ in instructions:
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME", "READONLY_BUFFER"):
            continue
        if name in VALUES:
            stack.append(VALUES[name])
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            last = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(last)))
        elif name in ("TUPLE", "LIST", "DICT"):
            taken = items()
            stack.append(tuple(taken) if name == "TUPLE" else taken if name == "LIST" else _pairs(taken))
        elif name in ("APPEND", "APPENDS"):
            taken = items() if name == "APPENDS" else [stack.pop()]
            if isinstance(stack[-1], list):
                stack[-1].extend(taken)
        elif name in ("SETITEM", "SETITEMS"):
            taken = items() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            if isinstance(stack[-1], dict):
                stack[-1].update(_pairs(taken))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            items()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "GLOBAL":
            stack.append(Opaque(arg[:LONGEST_NAME]))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            texts = type(module) is str and type(attribute) is str
            stack.append(Opaque(f"{module[:LONGEST_NAME]} {attribute[:LONGEST_NAME]}" if texts else "?"))
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = stack.pop(), stack.pop()
            stack.append(_call(function, args))
        elif name == "BUILD":  # an object's state; none that is known here needs one
            stack.pop()
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "NEWOBJ_EX":
            stack[-3:] = [Opaque(name)]
        elif name in ("OBJ", "INST", "FROZENSET", "ADDITEMS"):
            items()
            if name != "ADDITEMS":  # that one adds to a set, which is there already
                stack.append(Opaque(name))
        elif name in ("EMPTY_SET", "PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"):
            stack.append(Opaque(name))
        else:  # every other instruction pushes the number or text that it carries
            stack.append(arg)
    raise ValueError("ends too early")


def _pairs(taken: list[Any]) -> dict[Any, Any]:
    return {key: value for key, value in zip(taken[::2], taken[1::2]) if type(key) in (str, int)}


def _call(function: Any, args: Any) -> Any:
    known = KNOWN.get(function.name) if isinstance(function, Opaque) else None
    if known is None:
        return Opaque(f"{name_of(function)}(...)")
    return known(*args) if isinstance(args, tuple) else Opaque("?")


def _storage(given: Any) -> Any:
    """What torch.save writes for a storage: ("storage", its class, file, device, how many numbers)."""
    if isinstance(given, tuple) and len(given) == 5 and isinstance(given[1], Opaque):
        module, _, kind = given[1].name.partition(" ")
        if module == "torch" and kind in STORAGES and type(given[2]) is str and type(given[4]) is int:
            return Storage(kind, given[2], given[4])
    return Opaque("storage")


def name_of(value: Any) -> str:
    """A placeholder's name, or the type of what is none."""
    return value.name.replace(" ", ".")[:LONGEST_NAME] if isinstance(value, Opaque) else f"a {type(value).__name__}"
