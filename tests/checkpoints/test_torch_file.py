"""`.pth` and `.npz` files from untrusted sources are read without executing anything.

The files are written opcode by opcode, so that hostile ones can be built and no PyTorch is needed; where PyTorch is
installed, files that it writes are read too.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datar_jax.checkpoints import torch_file
from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.torch_file import read_arrays
from datar_jax.checkpoints.torch_pickle import Opaque, Tensor, parse_pickle
from tests.corpus.official_files import VALUES, number, table, tensor, text, write

KINDS = {
    "f8": "Double",
    "f4": "Float",
    "f2": "Half",
    "i8": "Long",
    "i4": "Int",
    "i2": "Short",
    "i1": "Char",
    "u1": "Byte",
}


@pytest.mark.parametrize("code, kind", KINDS.items())
def test_every_type_of_number(tmp_path: Path, code: str, kind: str) -> None:
    values = np.arange(6).astype(f"<{code}")
    path = write(
        tmp_path / "a.pth", table(a=tensor(shape=(2, 3), strides=(3, 1), numbers=6, kind=kind)), {"0": values.tobytes()}
    )
    read = read_arrays(path)["a"]
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values.reshape(2, 3))


def test_bfloat16_and_truth(tmp_path: Path) -> None:
    values = np.array([0.0, 1.5, -3.0, 0.15625], np.float32)  # exact in eight binary digits
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    program = table(a=tensor(shape=(4,), numbers=4, kind="BFloat16"), b=tensor("1", shape=(2,), numbers=2, kind="Bool"))
    read = read_arrays(write(tmp_path / "a.pth", program, {"0": upper.tobytes(), "1": b"\x01\x00"}))
    np.testing.assert_array_equal(read["a"].astype(np.float32), values)
    np.testing.assert_array_equal(read["b"], [True, False])


def test_strides_and_offsets_are_honoured(tmp_path: Path) -> None:
    program = table(
        turned=tensor(shape=(4, 6), strides=(1, 4)),
        part=tensor(shape=(2, 3), strides=(12, 2), offset=1),
        scalar=tensor(shape=(), strides=(), offset=23),
        empty=tensor(shape=(0, 3), strides=(3, 1), offset=24),
        again=tensor(),
    )
    read = read_arrays(write(tmp_path / "a.pth", program))
    np.testing.assert_array_equal(read["turned"], VALUES.reshape(6, 4).T)
    np.testing.assert_array_equal(read["part"], VALUES.reshape(2, 12)[:, 1:7:2])
    assert read["scalar"] == 23 and read["empty"].shape == (0, 3)
    assert not read["again"].flags.writeable


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (25,)},
        {"offset": 1},
        {"shape": (2, 12), "strides": (13, 1)},
        {"shape": (2, 3), "strides": (1 << 39, 1)},
        {"shape": (1 << 39,)},
        {"shape": (1 << 62,)},
        {"shape": (1 << 20, 1 << 20), "strides": (0, 0)},  # one number, seen a million million times
        {"shape": (5, 5), "strides": (0, 1)},
        {"strides": (-1,), "offset": 23},
        {"offset": -1},
        {"shape": (-1,)},
        {"shape": (2, 12)},  # one stride for two axes
        {"numbers": 1 << 39},
        {"numbers": 23},
        {"kind": "Double"},
        {"key": "1"},
        {"key": "../../a"},
        {"kind": "Complex"},
    ],
)
def test_a_tensor_beyond_its_numbers_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "a.pth", table(model=table(a=tensor(), wrong=tensor(**changes))))
    with pytest.raises(ModelError) as error:
        read_arrays(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert "wrong" in str(error.value) or "archive/data/" in str(error.value)


def test_aliases_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    data = {"0": np.zeros(1 << 16, np.float32).tobytes()}
    many = {f"a{i}": tensor(shape=(1 << 16,), numbers=1 << 16) for i in range(3)}
    with pytest.raises(ModelError, match="together are longer than the file"):
        read_arrays(write(tmp_path / "a.pth", table(**many), data))


@pytest.mark.parametrize("key", ["", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_where_the_weights_may_be(tmp_path: Path, key: str, prefix: str) -> None:
    weights = b"ccollections\nOrderedDict\n)R(" + text(f"{prefix}a.b") + tensor() + b"u}" + text("_metadata") + b"}sb"
    program = table(epoch=number(3), **{key: weights}) if key else weights
    read = read_arrays(write(tmp_path / "a.pth", program))
    np.testing.assert_array_equal(read["a.b"], VALUES)
    mark = {"": "", "model": "model/", "state_dict": "state_dict."}[key]
    np.savez(tmp_path / "b.npz", **{f"{mark}{prefix}a.b": VALUES}, **({"epoch": np.array(3)} if key else {}))  # type: ignore[arg-type]
    assert read_arrays(tmp_path / "b.npz").keys() == {"a.b"}
    np.testing.assert_array_equal(read_arrays(tmp_path / "b.npz")["a.b"], VALUES)


# What would run, if this were unpickled.


def touch(path: Path) -> bytes:
    return text(f"open({str(path)!r}, 'w').close()")


ATTACKS = {  # each leaves one value on the stack
    "reduce": lambda p: b"cbuiltins\nexec\n" + touch(p) + b"\x85R",
    "parameter": lambda p: b"ctorch._utils\n_rebuild_parameter\n(cbuiltins\nexec\n" + touch(p) + b"\x85R\x89Nt" + b"R",
    "stack global": lambda p: text("builtins") + text("exec") + b"\x93" + touch(p) + b"\x85R",
    "object": lambda p: b"(cbuiltins\nexec\n" + touch(p) + b"o",
    "instance": lambda p: b"(" + touch(p) + b"ibuiltins\nexec\n",
    "new object": lambda p: b"cbuiltins\nexec\n" + touch(p) + b"\x85\x81",
    "new object ex": lambda p: b"cbuiltins\nexec\n" + touch(p) + b"\x85}\x92",
    "state": lambda p: b"cargparse\nNamespace\n)R}" + text("__setstate__") + b"cbuiltins\nexec\nsb" + touch(p) + b"b",
    "state of a dict": lambda p: b"ccollections\nOrderedDict\n)R(" + touch(p) + b"cbuiltins\nexec\ntb",
    "attribute": lambda p: b"cbuiltins\ngetattr\ncos\nsystem\n" + touch(p) + b"\x86R",
    "hooks": lambda p: (
        tensor()[: -len(b"\x89ccollections\nOrderedDict\n)RtR")] + b"\x89cbuiltins\nexec\n" + touch(p) + b"\x85RtR"
    ),
    "storage": lambda p: b"(" + text("storage") + b"cbuiltins\nexec\n" + touch(p) + text("cpu") + number(1) + b"tQ",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_runs(tmp_path: Path, attack: str) -> None:
    ran = tmp_path / "ran"
    path = write(tmp_path / "a.pth", table(other=ATTACKS[attack](ran), model=table(a=tensor())))
    np.testing.assert_array_equal(read_arrays(path)["a"], VALUES)
    path = write(tmp_path / "b.pth", table(a=tensor()) + b"(" + text("b") + ATTACKS[attack](ran) + b"u")
    assert read_arrays(path).keys() >= {"a"}
    assert not ran.exists()


def test_the_payload_of_that_test_would_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for attack in ("reduce", "stack global", "object", "instance"):
        pickle.loads(b"\x80\x04" + ATTACKS[attack](ran) + b".")
        assert ran.exists()
        ran.unlink()


def test_names_that_are_not_known_are_placeholders() -> None:
    for value in (pickle.dumps(x, protocol) for protocol in range(6) for x in (argparse.Namespace(a=1), np.float64(2))):
        assert isinstance(parse_pickle(value), Opaque)
    assert isinstance(parse_pickle(b"\x80\x02" + tensor() + b"."), Tensor)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_makes_of_them(protocol: int) -> None:
    value = {
        "a": [1, -1, 255, 256, 1 << 20, -(1 << 40), 1 << 70, 1.5, None, True, False],
        "b": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "c": {"d": {}, 5: [[], "text", "\u20ac"]},
    }
    value["e"] = value["a"]
    data = pickle.dumps(value, protocol)
    assert parse_pickle(data) == value
    assert parse_pickle(pickletools.optimize(data)) == value


def test_keys_that_are_no_names_are_left_out() -> None:
    assert parse_pickle(pickle.dumps({(1, 2): 3, "a": 4, 1.5: 5})) == {"a": 4}


def test_nothing_that_is_nested_takes_long(tmp_path: Path) -> None:
    """A pair of pairs of pairs: to hash, compare or print it would take 2 ** 60 steps; or a name that grows."""
    doubled = b")" + b"2\x86" * 60
    program = b"}(" + doubled + number(1) + text("a") + tensor() + text("b") + doubled + b"u"
    np.testing.assert_array_equal(read_arrays(write(tmp_path / "a.pth", program))["a"], VALUES)
    deep = b"]" * 200_000 + b"a" * 199_999
    assert read_arrays(write(tmp_path / "b.pth", table(a=tensor(), b=deep))).keys() == {"a"}
    with pytest.raises(ModelError, match="holds a tuple"):
        read_arrays(write(tmp_path / "c.pth", doubled))
    long = text("n" * 1000)
    grown = parse_pickle(b"\x80\x04" + long + b"\x94" + (b"h\x00h\x00\x93") * 3 + b"\x87.")
    assert max(len(x.name) for x in grown) < 200


BOMBS = {  # each claims gigabytes in a few bytes
    "memo index": b"]r" + struct.pack("<I", (1 << 32) - 1),
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 40),
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 40),
    "frame": b"\x95" + struct.pack("<Q", 1 << 40) + b"]",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_pickle_allocates_no_more_than_it_holds(tmp_path: Path, bomb: bytes) -> None:
    path = write(tmp_path / "a.pth", table(a=tensor(), b=bomb))
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelError):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


BROKEN = {
    "an empty stack": b"0",
    "no mark": b"t",
    "a memo that is not": b"h\x05",
    "too few arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "no instruction": b"\xff",
    "a length beyond the end": b"\x8d" + struct.pack("<Q", 1 << 62),
    "a number beyond the end": b"\x8b" + struct.pack("<i", 1 << 30),
    "a number that is none": b"Ix\n",
}


@pytest.mark.parametrize("program", BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_pickle_is_refused(tmp_path: Path, program: bytes) -> None:
    path = write(tmp_path / "a.pth", program)
    with pytest.raises(ModelError, match=r"data\.pkl is damaged|not a dict of tensors") as error:
        read_arrays(path)
    assert "\n" not in str(error.value)


def test_a_pickle_must_end() -> None:
    with pytest.raises(ValueError, match="pickle exhausted before seeing STOP"):
        parse_pickle(b"\x80\x02}")


def test_a_spoiled_file_is_read_or_refused(tmp_path: Path) -> None:
    """Every other byte of a program may be another: an answer or one line, and never anything else."""
    whole = table(model=table(a=tensor(shape=(4, 6), strides=(6, 1)), b=number(3)), config=b"cyacs.config\nCfgNode\n)R")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        program = bytearray(whole)
        for at in rng.integers(len(program), size=rng.integers(1, 4)):
            program[at] = rng.integers(256)
        try:
            read_arrays(write(tmp_path / "a.pth", bytes(program)))
        except ModelError:
            refused += 1
    assert 20 < refused < 400


# Files of other kinds.


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    def refusal(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError) as error:
            read_arrays(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)
        return str(error.value)

    old = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    assert "before 1.6" in refusal("old.pth", old) and "torch.save(" in refusal("old.pth", old)
    assert "neither" in refusal("a.txt", b"hello") and "No such file" in refusal("none.pth")
    assert "neither" in refusal("empty.pth", b"")
    path = write(tmp_path / "a.pth", table(a=tensor()))
    assert "damaged" in refusal("cut.pth", path.read_bytes()[:-30])
    raw = path.read_bytes()
    assert "damaged (Bad CRC" in refusal("bit.pth", raw.replace(VALUES.tobytes(), VALUES[::-1].tobytes()))
    write(tmp_path / "big.pth", table(a=tensor()), byteorder=b"big")
    assert "byte order" in refusal("big.pth")
    write(tmp_path / "none.pth", table(a=number(1)))
    assert "no named arrays" in refusal("none.pth")
    write(tmp_path / "whole.pth", b"c__main__\nNet\n)R")
    assert "holds __main__.Net(...), not a dict of tensors" in refusal("whole.pth")
    with zipfile.ZipFile(tmp_path / "squeezed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + table(a=tensor()) + b".")
    assert "compressed" in refusal("squeezed.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", b"")
    assert "neither of torch.save nor of numpy.savez" in refusal("other.zip")


def test_a_long_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.pth", table(a=tensor()))
    monkeypatch.setattr(torch_file, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(ModelError, match="longer than 100 bytes"):
        read_arrays(path)


def test_an_npz_with_objects_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "a.npz", a=np.array([Payload()], object))
    with pytest.raises(ModelError, match="without objects"):
        read_arrays(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_what_pytorch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = OrderedDict(
        a=torch.randn(3, 4),
        b=torch.randn(4, 6)[1:, ::2].t(),
        c=torch.randn(3).bfloat16(),
        d=torch.nn.Parameter(torch.randn(2, 2)),
        e=torch.arange(4),
        f=torch.tensor(2.5),
    )
    beside = {"args": argparse.Namespace(a=[1]), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "set": {1}}
    for protocol in (2, 3, 4, 5):
        torch.save(
            {"model": weights, "scale": np.float64(3), "array": np.ones(3), **beside},
            tmp_path / "a.pth",
            pickle_protocol=protocol,
        )
        read = read_arrays(tmp_path / "a.pth")
        assert list(read) == list(weights)
        for name, value in weights.items():
            assert read[name].dtype.name == str(value.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(read[name].astype(np.float64), value.detach().double().numpy())
    torch.save(weights, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"before 1\.6"):
        read_arrays(tmp_path / "a.pth")
