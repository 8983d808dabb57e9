"""Exports on disk: what is damaged, exchanged or half replaced is refused by name; nothing else is answered."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.robustness import flip_exports as flips
from datar_jax.audio.framing import window_samples
from datar_jax.checkpoints.model_info import MODEL_FILE, ModelError, read_model_info
from datar_jax.checkpoints.pretrained import load_pretrained
from datar_jax.export import exporter
from datar_jax.export.onnx import from_onnx
from datar_jax.export.stablehlo import to_stablehlo
from datar_jax.inference.classifier import AudioClassifier, load

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model in every format."""
    return flips.write_exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def copy(exports: dict[str, Path], tmp_path: Path) -> Any:
    def copied(form: str) -> Path:
        return Path(shutil.copytree(exports[form], tmp_path / form))

    return copied


# Damage.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax, of files that it cannot read
def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(exports):
    answers, counts = flips.Answers(), Counter()
    expected = {form: answers(out) for form, out in exports.items()}
    for flip in flips.draw_flips(exports, 40 * len(exports), seed=1):
        kind, text = flips.outcome(exports[flip.form], flip, answers, expected[flip.form])
        assert kind != flips.ELSE, f"{flip}: {text}"
        counts[flip.form, kind] += 1
    assert all(counts[form, flips.REFUSED] >= 12 for form in exports), counts


def test_a_flip_that_is_not_noticed_is_counted(exports, monkeypatch):
    """The harness itself: without checksums it finds what the issue found."""
    monkeypatch.setattr("datar_jax.checkpoints.safetensors.compare_checksums", lambda *_: None)
    answers, out = flips.Answers(), exports["safetensors"]
    flip = flips.Flip("safetensors", Path("model.safetensors"), 8 * (out / "model.safetensors").stat().st_size - 10)
    assert flips.outcome(out, flip, answers, answers(out)) == (flips.ELSE, "another answer")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config.audio.sample_rate", 16_000),
        ("config.audio.fmin", 40.0),
        ("config.model.deformable.grid", "dat2022"),
        ("config.model.deformable.strides", [1]),
        ("labels", ["rain", "bell", "saw"]),
        ("frames", 34),
        ("mean_db", -30.0),
        ("heads", {"b": 1, "a": 2}),
        ("structure", ""),
    ],
)
@pytest.mark.parametrize("form", flips.FORMATS)
def test_a_changed_description_is_refused_by_its_field(copy, exports, form, field, value):
    if form not in exports:
        pytest.skip("its writer is not installed")
    out = copy(form)
    tree = json.loads((out / MODEL_FILE).read_text())
    *above, name = field.split(".")
    node = tree
    for each in above:
        node = node[each]
    assert node[name] != value
    node[name] = value
    (out / MODEL_FILE).write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=rf"^{re.escape(str(out / MODEL_FILE))}: {field} differs since"):
        load(out)


def test_exchanged_tensors_of_equal_shape_are_refused(copy):
    out = copy("safetensors")
    tensors = load_file(out / "model.safetensors")
    first, second = [name for name, tensor in tensors.items() if tensor.shape == (8,)][:2]
    save_file({**tensors, first: tensors[second], second: tensors[first]}, out / "model.safetensors")
    with pytest.raises(ModelError, match=rf"model\.safetensors: ({first}|{second}) differs since it was written"):
        load(out)
    import orbax.checkpoint as ocp

    out = copy("params")
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((out / "params").absolute())
        norm = next(node for node in _nodes(params) if set(node) == {"scale", "bias"})
        norm["scale"], norm["bias"] = norm["bias"], norm["scale"]
        checkpointer.save((out / "params").absolute(), params, force=True)
    with pytest.raises(ModelError, match=r"params: .*(scale|bias) differs since it was written"):
        load(out)


def _nodes(tree: Any) -> Any:
    for value in tree.values():
        if isinstance(value, dict):
            yield value
            yield from _nodes(value)


@pytest.mark.parametrize("form", flips.FORMATS)
def test_an_export_without_checksums_is_read_and_noted(copy, exports, form):
    if form not in exports:
        pytest.skip("its writer is not installed")
    assert load_pretrained(exports[form]).notes == ()
    out = copy(form)
    tree = json.loads((out / MODEL_FILE).read_text())
    del tree["checksums"]
    (out / MODEL_FILE).write_text(json.dumps(tree))
    (note,) = load_pretrained(out).notes
    assert note.startswith(f"{out / exporter.FILES[form]}: has no checksums")
    if form in ("params", "safetensors"):  # what is read with a note is exported with checksums
        exporter.export(out, out.parent / "again", "safetensors")
        assert load_pretrained(out.parent / "again").notes == ()


def test_no_export_names_a_path_of_this_machine(exports):
    for path in (path for out in exports.values() for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in content and b"datar_jax/" not in content, path
    module = jax.export.deserialize(bytearray((exports["stablehlo"] / "model.stablehlo").read_bytes())).mlir_module()
    assert ".py" not in module


@pytest.mark.parametrize("form", ["params", "safetensors"])
def test_an_export_over_links_leaves_what_they_lead_to(tmp_path, exports, form):
    out, store = tmp_path / "link", tmp_path / "store"
    (tmp_path / "out").mkdir()
    out.symlink_to("out")
    store.mkdir()
    for name in (exporter.FILES[form], "README.md", MODEL_FILE):
        shutil.move(shutil.copytree(exports[form], tmp_path / name) / name, store / name)
        (out / name).symlink_to(store / name)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    exporter.export(flips.write_model(tmp_path / "other", ("x", "y", "z"), seed=1), out, form)
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert load_pretrained(tmp_path / "out").description.labels == ("x", "y", "z")
    assert out.is_symlink() and not any(path.is_symlink() for path in out.iterdir())


# A kill in the middle.


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int, after: bool) -> list[str]:
    """Ends the program before or after the given call that changes a name; returns the calls so far."""
    calls: list[str] = []

    def watched(name: str) -> Any:
        real = getattr(Path, name)

        def call(self: Path, *args: Any, **options: Any) -> Any:
            calls.append(f"{name} {self.name}")
            if len(calls) == moment and not after:
                raise Killed
            result = real(self, *args, **options)
            if len(calls) == moment:
                raise Killed
            return result

        return call

    for name in ("unlink", "rename", "replace"):
        monkeypatch.setattr(Path, name, watched(name))
    real = shutil.rmtree  # what a killed program leaves, stays
    monkeypatch.setattr(
        exporter.shutil, "rmtree", lambda *of, **how: None if len(calls) >= moment else real(*of, **how)
    )
    return calls


def content(out: Path) -> tuple[Any, ...]:
    """What a reader gets: labels and weights, or the program."""
    saved = load_pretrained(out)
    weights = saved.read_program() if saved.program else [x.tobytes() for x in jax.tree.leaves(saved.params)]
    return saved.description.labels, weights


@pytest.mark.parametrize(
    ("form", "before"),
    [
        ("params", "with checksums"),
        ("safetensors", "with checksums"),
        ("safetensors", "without checksums"),
        ("safetensors", "version 0.1"),
        ("stablehlo", "with checksums"),
    ],
)
def test_a_re_export_that_is_killed_leaves_the_old_or_the_new_or_an_error(tmp_path, monkeypatch, form, before):
    old, new = flips.write_model(tmp_path / "a"), flips.write_model(tmp_path / "b", ("x", "y", "z"), seed=1)
    if form == "stablehlo":  # a program of its labels serves here, and takes no time to compile

        def writer(target: Path, saved: Any, _weights: Any) -> dict[str, str]:
            return exporter._write_program(target, "".join(saved.description.labels).encode())

        monkeypatch.setitem(exporter._WRITERS, form, writer)
    wanted = {}
    for source in (old, new):
        exporter.export(source, tmp_path / f"whole {source.name}", form)
        wanted[source.name] = content(tmp_path / f"whole {source.name}")
    card = {name: (tmp_path / f"whole {name}" / "README.md").read_bytes() for name in wanted}
    ended = found = 0
    for after in (False, True):
        for moment in range(1, 30):
            out = Path(shutil.copytree(tmp_path / "whole a", tmp_path / f"{moment} {after}"))
            if before != "with checksums":
                tree = {k: v for k, v in json.loads((out / MODEL_FILE).read_text()).items() if k != "checksums"}
                (out / MODEL_FILE).unlink()
                (out / ("config.json" if before == "version 0.1" else MODEL_FILE)).write_text(json.dumps(tree))
            with monkeypatch.context() as patched:
                kill_at(patched, moment, after)
                try:
                    exporter.export(new, out, form)
                    ended += 1
                except Killed:
                    pass
            try:
                got = content(out)
            except ModelError:
                with pytest.raises(ModelError, match=re.escape(str(out))):
                    content(out)
                found += 1
            else:
                name = next(name for name, value in wanted.items() if value == got)
                assert (out / "README.md").read_bytes() == card[name]
            exporter.export(new, out, form)  # the same command mends it
            assert content(out) == wanted["b"] and not list(out.glob(".*"))
            if ended:
                break
        assert ended and moment > 4, "no moment was beyond the last one"
        ended = 0
    assert found, "no moment was between the old and the new"


# Programs that someone else wrote.


def test_a_program_of_other_shapes_is_refused(exports, copy):
    out = copy("stablehlo")
    info = read_model_info(out / MODEL_FILE)
    samples = window_samples(info.audio, info.frames)
    for program, named in (
        (lambda params, wave, length, start: jnp.zeros((wave.shape[0], 4)) + length[:, None], r"float32\[b,4\]"),
        (
            lambda params, wave, length, start: jnp.zeros((wave.shape[0], 3), jnp.int32) + length[:, None],
            r"int32\[b,3\]",
        ),
        (lambda params, wave, length, start: wave.sum() + length.sum() + start.sum(), r"float32\[\]"),
    ):
        replace_program(out, to_stablehlo(program, {}, samples, ["cpu"]))
        with pytest.raises(ModelError, match=rf"model\.stablehlo: a program of .*, {named}; its description needs"):
            load(out)


def test_an_onnx_program_of_other_inputs_is_one_line():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    given, taken = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("\x1b[31m\n", "y"))
    node = onnx.helper.make_node("Identity", [given.name], ["y"])
    graph = onnx.helper.make_graph([node], "g", [given], [taken])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(ValueError, match=r"^a program of \\x1b\[31m\\n; exported models take waveform, length, start$"):
        from_onnx(model.SerializeToString())


def replace_program(out: Path, program: bytes) -> None:
    """Another program in the place of the exported one, with a checksum that is right."""
    exporter._write_program(out / "model.stablehlo", program)
    info = read_model_info(out / MODEL_FILE)
    checksums = msgspec.structs.replace(info.checksums, weights={"model.stablehlo": exporter.file_checksum(program)})
    exporter.write_model_info(out / MODEL_FILE, msgspec.structs.replace(info, checksums=checksums))


@pytest.mark.parametrize(
    "result", [np.zeros((1, 4), np.float32), np.zeros((1, 3)), np.float32(0), np.zeros((3, 3), np.float32), None]
)
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_a_wrong_result_is_an_error_of_one_line(exports, form, result):
    if form not in exports:
        pytest.skip("its writer is not installed")
    model = AudioClassifier(load_pretrained(exports[form]))

    def program(*_: Any) -> Any:
        if result is None:
            raise RuntimeError("first line\nsecond line")
        return result

    model._program = program
    with pytest.raises(ModelError, match=r"its program (returned|cannot be run)") as error:
        model(flips.Answers().clip, flips.RATE)
    assert str(exports[form]) in str(error.value) and "\n" not in str(error.value)
