"""JSON as an attacker or a bad disk would write it: whole texts, and values in the place of those of a document."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

TEXTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "number": b"7",
    "text": b'"model"',
    "list": b"[]",
    "lists": b"[[],[[]]]",
    "object": b"{}",
    "cut": b'{"format": "datar-jax 1", "config": {"aud',
    "not a number": b'{"frames": NaN}',
    "infinite": b'{"frames": -Infinity}',
    "infinite by size": b'{"frames": 1e999}',
    "long number": b'{"frames": ' + b"9" * 400 + b"}",
    "number beyond all digits": b'{"frames": ' + b"9" * 10_000 + b"}",
    "lists without end": b"[" * 200_000,
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"config":' * 100_000 + b"1" + b"}" * 100_000,
    "deep pretraining": b'{"provenance":' + b'{"pretraining":' * 900 + b"{}" + b"}" * 901,
    "name twice": b'{"frames": 1, "frames": 2}',
    "name twice inside": b'{"config": {"audio": {"n_mels": 32, "n_mels": 64}}}',
    "name twice by escape": b'{"frames": 1, "fr\\u0061mes": 2}',
    "byte order mark": b'\xef\xbb\xbf{"frames": 1}',
    "utf-16": '{"frames": 1}'.encode("utf-16"),
    "not utf-8": b'{"format": "\xff\xfe"}',
    "half a pair": b'{"format": "\\ud800 is half of a character"}',
    "control character": b'{"\\u001b[31m": "\\u001b]0;title\\u0007"}',
    "null bytes": bytes(1000),
    "two values": b"{} {}",
    "binary": bytes(range(256)),
}
VALUES: list[Any] = [
    *(None, True, "", "x", "../a/b", "\x1b[31m\n", "y" * 10_000, 0, -1, 0.5, 1e300, -1e300, 1 << 62, -(1 << 62)),
    *(1 << 70, 10**300, [], [[]], {}, {"": {}}, {"a/b": 1}, ["x"] * 1000, [1e300] * 9),
    *({"\x1b[31m\n": "x"}, {"y" * 10_000: "x"}),
]


def spoiled(document: Any) -> Iterator[tuple[str, bytes]]:
    """A document with one of its values replaced, or a name added or left out; and what was done."""
    for path in list(_paths(document)):
        for number, value in enumerate(VALUES):
            yield f"{'.'.join(map(str, path))} <- {number}", _changed(document, path, value)
        yield f"without {'.'.join(map(str, path))}", _changed(document, path, _paths)
    yield "another name", json.dumps({**document, "another": 1}).encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, each in items:
        yield (*path, name)
        yield from _paths(each, (*path, name))


def _changed(document: Any, path: tuple[Any, ...], value: Any) -> bytes:
    """The document as JSON; `_paths` as a value leaves the place out."""
    document = copy.deepcopy(document)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    if value is _paths:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(document).encode()
